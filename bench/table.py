"""``python bench/table.py RESULTS.json``: a table (Markdown) and plots (SVG) beside a results file.

Reads what pytest-benchmark wrote, so it can be run again on an old file, or on one from another
machine. Times are the best of the rounds, because noise only ever adds. Columns:

    ms           best time
    x floor      over the time of the group's floor, measured in the same run
    x eager      eager's time over this one: how many times faster than plain PyTorch (for images:
                 than transformers' Pillow processor)
    peak MiB     most memory beyond the inputs
    error        largest relative error against float64 of what is returned
    vs eager     that error over eager's in the same dtype

``--publish cpu`` also puts one line for each group between the markers ``bench-cpu:begin`` and
``bench-cpu:end`` of the README or of a page of docs/. Results of bench/on_gpu.sh have more than
kernels: ceilings, a training step, checks (gpu_tables.py).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import gpu_tables

ROOT = Path(__file__).resolve().parents[1]
HEADER = ("what", "ms", "x floor", "x eager", "peak MiB", "error", "vs eager")
SUMMARY = (
    "task", "ms", "x floor", "x eager", "best peer", "x best peer", "peak MiB", "eager's",
    "error vs eager's",
)  # fmt: skip
COLOURS = {"ovlt": "#1b6ca8", "floor": "#999999"}


@dataclass(frozen=True)
class Line:
    """One implementation in one group."""

    what: str
    ms: float
    mib: float | None
    error: float | None
    floor: float | None  # times over the floor's
    eager: float | None  # how many times faster than plain PyTorch
    error_ratio: float | None  # times the error of plain PyTorch


T = TypeVar("T")
Groups = dict[str, list[Line]]
Benchmarks = Mapping[str, Mapping[str, Any]]  # pytest-benchmark's records by implementation


def groups_of(results: Mapping[str, Any]) -> Groups:
    """Return the lines of each group, fastest first."""
    groups: dict[str, dict[str, Mapping[str, Any]]] = {}
    for one in results["benchmarks"]:
        what = one["extra_info"].get("which") or one["name"]
        groups.setdefault(one["group"], {})[what] = one
    return {
        name: sorted((line_of(what, by_name) for what in by_name), key=lambda line: line.ms)
        for name, by_name in groups.items()
    }


def line_of(what: str, by_name: Benchmarks) -> Line:
    """Return a line with its ratios to the others of its group."""
    one, floor, plain = by_name[what], by_name.get("floor"), plain_of(by_name)
    best, error = one["stats"]["min"], error_of(one)
    plain_error = error_of(plain) if plain else None
    return Line(
        what=what,
        ms=1e3 * best,
        mib=one["extra_info"].get("peak_mib"),
        error=error,
        floor=best / floor["stats"]["min"] if floor else None,
        eager=plain["stats"]["min"] / best if plain else None,
        error_ratio=error / plain_error if error is not None and plain_error else None,
    )


def error_of(one: Mapping[str, Any]) -> float | None:
    """Return the largest relative error of what an implementation returns."""
    errors = one["extra_info"].get("errors")
    return max(errors) if errors else None


def plain_of(by_name: Mapping[str, T]) -> T | None:
    """Return plain PyTorch, or Pillow for images: what everything is compared with."""
    return by_name.get("eager") or by_name.get("pil")


def markdown(groups: Groups) -> str:
    """Return one table for each group."""
    blocks = []
    for name, lines in groups.items():
        rows = [f"**{name}**", "", "| " + " | ".join(HEADER) + " |", "|---" * len(HEADER) + "|"]
        rows += [
            "| " + " | ".join([
                line.what, number(line.ms), number(line.floor), number(line.eager),
                number(line.mib), scientific(line.error), number(line.error_ratio),
            ]) + " |"
            for line in lines
        ]  # fmt: skip
        blocks.append("\n".join(rows))
    return "\n\n".join(blocks)


def summary(groups: Groups) -> str:
    """Return one line for each group in which ovlt takes part."""
    rows = ["| " + " | ".join(SUMMARY) + " |", "|---" * len(SUMMARY) + "|"]
    for name, lines in groups.items():
        by_name = {line.what: line for line in lines}
        if (ours := by_name.get("ovlt")) is None:
            continue
        others = ("ovlt", "floor", "eager", "ovlt_logp", "ovlt_cuda")
        peers = [line for line in lines if line.what not in others]
        best = min(peers, key=lambda line: line.ms, default=None)
        plain = plain_of(by_name)
        rows.append("| " + " | ".join([
            name, number(ours.ms), number(ours.floor), number(ours.eager),
            best.what if best else "", number(best.ms / ours.ms) if best else "",
            number(ours.mib), number(plain.mib) if plain else "",
            number(ours.error_ratio),
        ]) + " |")  # fmt: skip
    return "\n".join(rows)


def number(value: float | None) -> str:
    if value is None:
        return ""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}"


def scientific(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"


def machine(results: Mapping[str, Any]) -> str:
    """Return what every figure was made with: date, commit, hardware, versions."""
    commit = results.get("commit_info", {})
    if "about" in results:
        return of_script(results["about"])
    info = results["benchmarks"][0]["extra_info"]
    processor = results["machine_info"].get("cpu", {}).get("brand_raw", "unknown processor")
    where = info["device"] if info["device"] != "cpu" else f"{processor}, {info['threads']} threads"
    dirty = " with changes" if commit.get("dirty") else ""
    return (
        f"{results['datetime'][:10]}, commit {commit.get('id', 'unknown')[:7]}{dirty}, {where}, "
        f"torch {info['torch']}, {info['extension']}"
    )


def of_script(about: Mapping[str, Any]) -> str:
    """Return the same for results of bench/on_gpu.sh, with the clocks."""
    gpu = about.get("gpu", {})
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    clocks = ""
    if gpu:
        clocks = (
            f", {gpu['name']}, driver {gpu['driver_version']}, clocks {gpu['clocks.sm']} and "
            f"{gpu['clocks.mem']} at the start"
        )
    return f"{about['date']}, commit {about['commit']}, {about['hardware']}{clocks}, {versions}"


def plot(groups: Groups, path: Path, title: str) -> None:
    """Draw bars of time for each group, with the floor as a line across them."""
    # Imported here because only the plots need it: a machine without it still gets the tables.
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    shown = {name: lines for name, lines in groups.items() if len(lines) > 2}
    if not shown:
        return
    columns = 3
    rows = -(-len(shown) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4.2 * columns, 2.4 * rows), squeeze=False)
    for axis in axes.flat[len(shown) :]:
        axis.set_visible(False)
    for axis, (name, lines) in zip(axes.flat, shown.items(), strict=False):
        bars = [line for line in reversed(lines) if line.what != "floor"]
        colours = [COLOURS.get(line.what.split("_")[0], "#d9a441") for line in bars]
        axis.barh([line.what for line in bars], [line.ms for line in bars], color=colours)
        for line in lines:
            if line.what == "floor":
                axis.axvline(line.ms, color=COLOURS["floor"], linestyle="--")
        axis.set_title(name, fontsize=9)
        axis.set_xlabel("ms (dashed: the floor)", fontsize=8)
        axis.tick_params(labelsize=8)
    inch = 1 / (2.4 * rows)  # of the figure's height
    figure.suptitle(title, fontsize=8, y=1 - 0.05 * inch, va="top")
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.2 * inch))
    # With a fixed salt and no date, the same figures give the same file.
    mpl.rcParams |= {"svg.hashsalt": "ovlt", "svg.fonttype": "none"}
    figure.savefig(path, metadata={"Date": None})


def trim(results: dict[str, Any], path: Path) -> None:
    """Write the file again with a line for each benchmark and without the time of every round."""
    for one in results["benchmarks"]:
        one["stats"].pop("data", None)
    rest = {key: value for key, value in results.items() if key != "benchmarks"}
    lines = ",\n".join(json.dumps(one) for one in results["benchmarks"])
    path.write_text(f'{json.dumps(rest)[:-1]}, "benchmarks": [\n{lines}\n]}}\n', encoding="utf-8")


def page_with(marker: str) -> Path:
    """Return the README or the page of docs/ that holds a marker."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    for page in pages:
        if marker in page.read_text(encoding="utf-8"):
            return page
    raise SystemExit(f"neither README.md nor a page of docs/ has {marker}")


def publish(results: Mapping[str, Any], groups: Groups, kind: str, picture: Path) -> Path:
    """Put the summary and the plots between the markers of ``kind`` ("cpu" or "gpu")."""
    begin, end = f"<!-- bench-{kind}:begin -->", f"<!-- bench-{kind}:end -->"
    page = page_with(begin)
    head, _, rest = page.read_text(encoding="utf-8").partition(begin)
    _, found, tail = rest.partition(end)
    if not found:
        raise SystemExit(f"{page} has {begin} without {end}")
    place = Path(os.path.relpath(picture.resolve(), page.parent))
    links = f"All lines: [{picture.stem}.md]({place.with_suffix('.md')}).\n\n![times]({place})"
    command = "bench/on_gpu.sh" if "about" in results else "make bench"
    text = f"{machine(results)}; `{command}`. {links}\n\n{summary(groups)}"
    if "step" in results:
        text += f"\n\n{gpu_tables.sections(results)}"
    page.write_text(f"{head}{begin}\n{text}\n{end}{tail}", encoding="utf-8")
    return page


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--publish", choices=["cpu", "gpu"], help="whose table to replace")
    options = parser.parse_args(arguments)
    results = json.loads(options.results.read_text(encoding="utf-8"))
    trim(results, options.results)
    groups = groups_of(results)
    blocks = [machine(results), markdown(groups)]
    if "step" in results:
        blocks.append(gpu_tables.sections(results))
    text = "\n\n".join(block for block in blocks if block) + "\n"
    options.results.with_suffix(".md").write_text(text, encoding="utf-8")
    picture = options.results.with_suffix(".svg")
    try:
        plot(groups, picture, machine(results))
    except ModuleNotFoundError as error:
        print(f"no plots: {error}. `pip install matplotlib`, then run this again", file=sys.stderr)
    if options.publish:
        print(f"wrote {publish(results, groups, options.publish, picture)}", file=sys.stderr)
    print(text)


if __name__ == "__main__":
    main()
