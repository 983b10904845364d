"""Hours of a cycle by stage and iteration, beside the published ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ovlt.plan.stages import PlannedStage, stage_seconds

# Hours of one iteration as the authors report them, by the recipe's name.
PUBLISHED = {
    # v3: Table 8 (8 x H100); appendix C for making and verifying the traces, which names no GPUs.
    "openvlthinker-v2": {
        "distill": "8",
        "sft": "0.06 (8 x H100)",
        "grpo medium": "2.01 (8 x H100)",
        "grpo hard": "4.57 (8 x H100)",
    },
    # The authors' answer in issue 1 of their repository.
    "openvlthinker-v1": {"sft": "0.5 (2 x H100)", "grpo": "19 (4 x H100)"},
}


def hours_table(stages: Sequence[PlannedStage], name: str) -> list[str]:
    """Lines of the table; ``name`` is the recipe's. '?' is a stage with an unknown row count."""
    iterations = sorted({stage.iteration for stage in stages} - {0})
    rows: dict[str, dict[int, float | None]] = {}  # hours by stage and iteration
    for stage in stages:
        seconds = stage_seconds(stage)
        hours = sum(seconds.values()) / 3600 if seconds else None
        rows.setdefault(_row_name(stage), {})[stage.iteration] = hours
    published = PUBLISHED.get(name, {})
    titles = [*(f"iteration {i}" for i in iterations), "in all"]
    header = f"  {'hours (not measured)':<22}" + "".join(f"{title:>13}" for title in titles)
    lines = [header + "  published, each" * bool(published)]
    for row, hours_of in rows.items():
        cells = [_cell(hours_of[i]) if i in hours_of else "-" for i in iterations]
        cells.append(_cell(_sum(hours_of.values())))
        beside = f"  {published[row]}" if row in published else ""
        lines.append(_hours_line(row, cells) + beside)
    columns = [_sum(hours_of.get(i, 0.0) for hours_of in rows.values()) for i in iterations]
    total = _sum(_sum(hours_of.values()) for hours_of in rows.values())
    lines.append(_hours_line("all", [_cell(hours) for hours in (*columns, total)]))
    days = "unknown, see the stages marked '?'" if total is None else f"{total / 24:.2f}"
    return [*lines, f"  days to finish on {stages[0].run.node.name}: {days}"]


def _row_name(stage: PlannedStage) -> str:
    """The stage's name without its iteration."""
    if not stage.iteration:
        return stage.name.replace("_", " ")
    return stage.name.replace(str(stage.iteration), "", 1).replace("-", " ")


def _sum(hours: Iterable[float | None]) -> float | None:
    """The sum; None if one of them is unknown."""
    total = 0.0
    for value in hours:
        if value is None:
            return None
        total += value
    return total


def _hours_line(name: str, cells: Iterable[str]) -> str:
    return f"  {name:<22}" + "".join(f"{cell:>13}" for cell in cells)


def _cell(hours: float | None) -> str:
    return "?" if hours is None else f"{hours:.2f}"
