"""``python bench/table.py RESULTS.json``: a table (Markdown) and plots (SVG) beside a results file.

Reads what pytest-benchmark wrote, so it can be run again on an old file, or on one that came from
another machine. Times are the best of the rounds: noise only ever adds. Columns:

    ms           best time
    x floor      over the time of the group's floor, measured in the same run
    x eager      eager's time over this one: how many times faster than plain PyTorch (for images:
                 than transformers' Pillow processor)
    peak MiB     most memory beyond the inputs
    error        largest relative error against float64 of what is returned
    vs eager     that error over eager's in the same dtype

With ``--readme`` one line for each group goes between the README's markers.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt

README = Path(__file__).resolve().parents[1] / "README.md"
HEADER = ("what", "ms", "x floor", "x eager", "peak MiB", "error", "vs eager")
SUMMARY = (
    "task", "ms", "x floor", "x eager", "best peer", "x best peer", "peak MiB", "eager's",
    "error vs eager's",
)  # fmt: skip
COLOURS = {"ovlt": "#1b6ca8", "floor": "#999999"}
Line = dict[str, Any]


def groups_of(results: dict[str, Any]) -> dict[str, list[Line]]:
    """Lines by group, fastest first, the ratios worked out."""
    groups: dict[str, list[Line]] = {}
    for one in results["benchmarks"]:
        info = one["extra_info"]
        line = {
            "what": info.get("which") or one["name"],
            "ms": 1e3 * one["stats"]["min"],
            "mib": info.get("peak_mib"),
            "error": max(info["errors"]) if info.get("errors") else None,
        }
        groups.setdefault(one["group"], []).append(line)
    for lines in groups.values():
        known = {line["what"]: line for line in lines}
        floor, eager = known.get("floor"), plain_of(known)
        for line in lines:
            line["floor"] = line["ms"] / floor["ms"] if floor else None
            line["eager"] = eager["ms"] / line["ms"] if eager else None
            both = eager and eager["error"] and line["error"] is not None
            line["error_ratio"] = line["error"] / eager["error"] if eager and both else None
        lines.sort(key=lambda line: line["ms"])
    return groups


def plain_of(known: dict[str, Line]) -> Line | None:
    """What everything is measured against: plain PyTorch, or Pillow where images are prepared."""
    return known.get("eager") or known.get("pil")


def markdown(groups: dict[str, list[Line]]) -> str:
    """One table for each group."""
    blocks = []
    for name, lines in groups.items():
        rows = [f"**{name}**", "", "| " + " | ".join(HEADER) + " |", "|---" * len(HEADER) + "|"]
        rows += [
            "| " + " | ".join([
                line["what"], number(line["ms"]), number(line["floor"]), number(line["eager"]),
                number(line["mib"]), scientific(line["error"]), number(line["error_ratio"]),
            ]) + " |"
            for line in lines
        ]  # fmt: skip
        blocks.append("\n".join(rows))
    return "\n\n".join(blocks)


def summary(groups: dict[str, list[Line]]) -> str:
    """One line for each group in which ovlt takes part."""
    rows = ["| " + " | ".join(SUMMARY) + " |", "|---" * len(SUMMARY) + "|"]
    for name, lines in groups.items():
        known = {line["what"]: line for line in lines}
        if (ours := known.get("ovlt")) is None:
            continue
        peers = [
            line
            for line in lines
            if line["what"] not in ("floor", "eager", "ovlt_logp", "ovlt_cuda")
        ]
        best = min((p for p in peers if p is not ours), key=lambda line: line["ms"], default=None)
        rows.append("| " + " | ".join([
            name, number(ours["ms"]), number(ours["floor"]), number(ours["eager"]),
            best["what"] if best else "", number(best["ms"] / ours["ms"]) if best else "",
            number(ours["mib"]), number(plain["mib"]) if (plain := plain_of(known)) else "",
            number(ours["error_ratio"]),
        ]) + " |")  # fmt: skip
    return "\n".join(rows)


def number(value: float | None) -> str:
    if value is None:
        return ""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}"


def scientific(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"


def machine(results: dict[str, Any]) -> str:
    """The line under which every figure stands: date, commit, hardware, versions."""
    commit, info = results.get("commit_info", {}), results["benchmarks"][0]["extra_info"]
    processor = results["machine_info"].get("cpu", {}).get("brand_raw", "unknown processor")
    where = info["device"] if info["device"] != "cpu" else f"{processor}, {info['threads']} threads"
    dirty = " with changes" if commit.get("dirty") else ""
    return (
        f"{results['datetime'][:10]}, commit {commit.get('id', 'unknown')[:7]}{dirty}, {where}, "
        f"torch {info['torch']}, {info['extension']}"
    )


def plot(groups: dict[str, list[Line]], path: Path, title: str) -> None:
    """Bars of time for each group, with the floor as a line across them."""
    shown = {name: lines for name, lines in groups.items() if len(lines) > 2}
    columns = 3
    rows = -(-len(shown) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4.2 * columns, 2.4 * rows), squeeze=False)
    for axis in axes.flat[len(shown) :]:
        axis.set_visible(False)
    for axis, (name, lines) in zip(axes.flat, shown.items(), strict=False):
        bars = [line for line in reversed(lines) if line["what"] != "floor"]
        colours = [COLOURS.get(line["what"].split("_")[0], "#d9a441") for line in bars]
        axis.barh([line["what"] for line in bars], [line["ms"] for line in bars], color=colours)
        for line in lines:
            if line["what"] == "floor":
                axis.axvline(line["ms"], color=COLOURS["floor"], linestyle="--")
        axis.set_title(name, fontsize=9)
        axis.set_xlabel("ms (dashed: the floor)", fontsize=8)
        axis.tick_params(labelsize=8)
    inch = 1 / (2.4 * rows)  # of the figure's height
    figure.suptitle(title, fontsize=8, y=1 - 0.05 * inch, va="top")
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.2 * inch))
    mpl.rcParams |= {
        "svg.hashsalt": "ovlt",
        "svg.fonttype": "none",
    }  # the same figures, the same file
    figure.savefig(path, metadata={"Date": None})


def trim(results: dict[str, Any], path: Path) -> None:
    """Write the file again with a line for each benchmark, and without the time of every round."""
    for one in results["benchmarks"]:
        one["stats"].pop("data", None)
    rest = {key: value for key, value in results.items() if key != "benchmarks"}
    lines = ",\n".join(json.dumps(one) for one in results["benchmarks"])
    path.write_text(f'{json.dumps(rest)[:-1]}, "benchmarks": [\n{lines}\n]}}\n', encoding="utf-8")


def into_readme(text: str, kind: str) -> None:
    begin, end = f"<!-- bench-{kind}:begin -->", f"<!-- bench-{kind}:end -->"
    whole = README.read_text(encoding="utf-8")
    if begin not in whole or end not in whole:
        raise SystemExit(f"README.md has no {begin} ... {end}; the table is:\n{text}")
    head, rest = whole.split(begin)
    _, tail = rest.split(end)
    README.write_text(f"{head}{begin}\n{text}\n{end}{tail}", encoding="utf-8")


def main(arguments: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--readme", choices=["cpu", "gpu"], help="whose table to replace")
    options = parser.parse_args(None if arguments is None else list(arguments))
    results = json.loads(options.results.read_text(encoding="utf-8"))
    trim(results, options.results)
    groups = groups_of(results)
    text = f"{machine(results)}\n\n{markdown(groups)}\n"
    options.results.with_suffix(".md").write_text(text, encoding="utf-8")
    picture = options.results.with_suffix(".svg")
    plot(groups, picture, machine(results))
    if options.readme:
        place = picture.resolve().relative_to(README.parent)
        links = f"All lines: [{place.stem}.md]({place.with_suffix('.md')}).\n\n![times]({place})"
        short = f"{machine(results)}; `make bench`. {links}\n\n{summary(groups)}"
        into_readme(short, options.readme)
    print(text)


if __name__ == "__main__":
    main()
