"""``python bench/check.py STORED.json FRESH.json ...``: has a kernel become slower or larger?

Compares ovlt's lines of fresh results with stored ones (``make bench-check``). A time is compared
as its ratio to the group's reference in the same run (the floor, or else plain PyTorch), which
cancels the clock rate and a steady load. It does not cancel another processor's caches and vector
units, so on another model of processor only the peaks are compared. Of several fresh files the
lowest ratio and the lowest peak count, because noise only ever adds.

Ends with status 0 if nothing regressed, 1 if something did or a stored line is missing, 2 if the
results cannot be compared.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# A ratio may grow by this factor. bench/NOTES.md has the measured noise that it stands on.
TIME_TOLERANCE = 1.35
# Below this many milliseconds, of ovlt or of its reference, a call or a wake-up of a thread is a
# large part of the time.
SHORT_MS, SHORT_TOLERANCE = 1.0, 2.0
# A peak may grow by this factor and by this many MiB. This catches all logits in memory at once,
# which multiplies a peak; it does not catch a block of logits that is half as large again.
MEMORY_TOLERANCE, MEMORY_MIB = 1.5, 16.0
REFERENCES = ("floor", "eager", "pil")  # the first one that the group has
HEADER = ("group", "what", "x reference", "stored", "peak MiB", "stored", "verdict")


@dataclass(frozen=True)
class Figure:
    """One line of ovlt in one group."""

    ratio: float  # its best time over the reference's
    ms: float  # its best time, or the reference's if that is shorter: a ratio is as noisy as both
    peak_mib: float
    reference: str


Key = tuple[str, str]  # group, what


def figures(results: Mapping[str, Any]) -> dict[Key, Figure]:
    """Return ovlt's lines of pytest-benchmark's results, but none of a group without reference."""
    groups: dict[str, dict[str, Mapping[str, Any]]] = {}
    for one in results["benchmarks"]:
        what = one["extra_info"].get("which") or one["name"]
        groups.setdefault(one["group"], {})[what] = one
    lines = {}
    for group, by_name in groups.items():
        name = next((name for name in REFERENCES if name in by_name), None)
        if name is None:
            continue
        for what, one in by_name.items():
            if what.split("_")[0] == "ovlt":
                best = one["stats"]["min"]
                lines[group, what] = Figure(
                    ratio=best / by_name[name]["stats"]["min"],
                    ms=1e3 * min(best, by_name[name]["stats"]["min"]),
                    peak_mib=one["extra_info"]["peak_mib"],
                    reference=name,
                )
    return lines


def best_of(runs: Sequence[dict[Key, Figure]]) -> dict[Key, Figure]:
    """Return each line with its lowest ratio, time and peak over all runs."""
    best: dict[Key, Figure] = {}
    for run in runs:
        for key, new in run.items():
            old = best.get(key, new)
            best[key] = Figure(
                min(old.ratio, new.ratio),
                min(old.ms, new.ms),
                min(old.peak_mib, new.peak_mib),
                new.reference,
            )
    return best


def verdict(stored: Figure, fresh: Figure, *, times: bool) -> str:
    """Return what regressed, empty if nothing did. Without ``times`` only the peak counts."""
    if stored.reference != fresh.reference:
        return f"measured against {fresh.reference}, not {stored.reference}"
    limit = SHORT_TOLERANCE if stored.ms < SHORT_MS else TIME_TOLERANCE
    problems = []
    if times and fresh.ratio > limit * stored.ratio:
        problems.append(f"{fresh.ratio / stored.ratio:.2f} x slower (limit {limit:g})")
    if fresh.peak_mib > MEMORY_TOLERANCE * stored.peak_mib + MEMORY_MIB:
        problems.append(f"{fresh.peak_mib - stored.peak_mib:+.0f} MiB")
    return ", ".join(problems)


def conditions(results: Mapping[str, Any]) -> tuple[str, int]:
    """Return the device and the number of threads, which two results must share."""
    info = results["benchmarks"][0]["extra_info"]
    return info["device"], info["threads"]


def chip(results: Mapping[str, Any]) -> str:
    """Return the GPU, or the model of processor, that times depend on."""
    device, _ = conditions(results)
    cpu = results["machine_info"].get("cpu", {})
    known = " ".join(f"{key} {cpu[key]}" for key in ("family", "model") if key in cpu)
    return device if device != "cpu" else f"{cpu.get('brand_raw', 'unknown')}, {known}"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return Markdown."""
    head = ["| " + " | ".join(HEADER) + " |", "|---" * len(HEADER) + "|"]
    return "\n".join([*head, *("| " + " | ".join(row) + " |" for row in rows)])


def compare(
    stored: dict[Key, Figure],
    fresh: dict[Key, Figure],
    *,
    times: bool = True,
    some: bool = False,
) -> tuple[str, bool]:
    """Compare line by line.

    Args:
        times: whether times can be compared, else only peaks are.
        some: a stored line that is missing is no regression, because only some were timed.

    Returns:
        A table of what regressed with a closing sentence, and whether all is well.
    """
    rows = []
    for (group, what), old in stored.items():
        new = fresh.get((group, what))
        if new is None:
            if not some:
                before = f"{old.ratio:.2f}", f"{old.peak_mib:.0f}"
                rows.append((group, what, "", before[0], "", before[1], "gone"))
            continue
        if problem := verdict(old, new, times=times):
            measured = f"{new.ratio:.2f}", f"{old.ratio:.2f}"
            peaks = f"{new.peak_mib:.0f}", f"{old.peak_mib:.0f}"
            rows.append((group, what, *measured, *peaks, problem))
    compared = len(stored.keys() & fresh.keys())
    lines = [table(rows), ""] if rows else []
    lines.append(f"{compared} lines compared, {len(rows)} worse than stored.")
    return "\n".join(lines), not rows and compared > 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("stored", type=Path)
    parser.add_argument("fresh", type=Path, nargs="+")
    parser.add_argument("--some", action="store_true", help="only some benchmarks were timed")
    options = parser.parse_args(arguments)
    stored = json.loads(options.stored.read_text(encoding="utf-8"))
    fresh = [json.loads(path.read_text(encoding="utf-8")) for path in options.fresh]
    for results, path in zip(fresh, options.fresh, strict=True):
        if conditions(results) != conditions(stored):
            here, there = conditions(results), conditions(stored)
            print(f"{path} is of {here}, {options.stored} of {there}: not comparable")
            return 2
    best = best_of([figures(run) for run in fresh])
    here, there = {chip(results) for results in fresh}, chip(stored)
    times = here == {there}
    if not times:
        print(f"{', '.join(sorted(here))} here, {there} stored: times are not compared, peaks are")
    elif (load := os.getloadavg()[0]) > 1.5 * (os.cpu_count() or 1):
        print(f"load average {load:.1f}: the machine is busy, and times mean little")
    text, well = compare(figures(stored), best, times=times, some=options.some)
    print(f"{', '.join(map(str, options.fresh))} against {options.stored}\n\n{text}")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
