"""Hours of a cycle by phase and iteration, beside the published ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ovlt.plan.stages import Part, part_seconds

# Hours of one iteration as the authors have them, by the recipe's name.
PUBLISHED = {
    # v3: Table 8 (8 x H100); appendix C for making and verifying the traces, which names no GPUs.
    "openvlthinker-v2": {
        "distill": "8",
        "sft": "0.06 (8 x H100)",
        "grpo medium": "2.01 (8 x H100)",
        "grpo hard": "4.57 (8 x H100)",
    },
    # The authors' answer in issue 1.
    "openvlthinker-v1": {"sft": "0.5 (2 x H100)", "grpo": "19 (4 x H100)"},
}


def table(parts: Sequence[Part], name: str) -> list[str]:
    """Lines; ``name`` is the recipe's. A stage whose rows are unknown counts as '?'."""
    iterations = sorted({part.iteration for part in parts} - {0})
    hours: dict[str, dict[int, float | None]] = {}
    for part in parts:
        spent = part_seconds(part)
        total = sum(spent.values()) / 3600 if spent else None
        hours.setdefault(_phase(part), {})[part.iteration] = total
    published = PUBLISHED.get(name, {})
    titles = [f"iteration {i}" for i in iterations]
    lines = [f"  {'hours (not measured)':<22}" + "".join(f"{t:>13}" for t in [*titles, "in all"])]
    lines[0] += "  published, each" * bool(published)
    for phase, found in hours.items():
        cells = [found.get(i, 0.0) for i in iterations]
        row = "".join(
            f"{_cell(cell, i in found):>13}" for i, cell in zip(iterations, cells, strict=True)
        )
        lines.append(f"  {phase:<22}{row}{_cell(_sum(found.values())):>13}")
        if phase in published:
            lines[-1] += f"  {published[phase]}"
    columns = [[found.get(i, 0.0) for found in hours.values()] for i in iterations]
    everything = _sum(_sum(found.values()) for found in hours.values())
    row = "".join(f"{_cell(_sum(column)):>13}" for column in columns)
    lines.append(f"  {'all':<22}{row}{_cell(everything):>13}")
    where = parts[0].run.node.name
    if everything is None:
        return [*lines, f"  days to finish on {where}: unknown, see the stages marked '?'"]
    return [*lines, f"  days to finish on {where}: {everything / 24:.2f}"]


def _phase(part: Part) -> str:
    """The stage's name without its iteration."""
    if not part.iteration:
        return part.name.replace("_", " ")
    return part.name.replace(str(part.iteration), "", 1).replace("-", " ")


def _sum(cells: Iterable[float | None]) -> float | None:
    """None where one is."""
    found = list(cells)
    known = [cell for cell in found if cell is not None]
    return sum(known) if len(known) == len(found) else None


def _cell(hours: float | None, there: bool = True) -> str:
    return "-" if not there else "?" if hours is None else f"{hours:.2f}"
