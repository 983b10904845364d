"""The public benchmarks of a run's stages: what "--benchmark" left in each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ovlt.benchmarks.results import HEAD, read_head
from ovlt.report.text import DASH

FOLDER = "benchmarks"  # of a stage
_PLAIN = "accuracy on the image questions, as OpenVLThinker prints"


@dataclass(frozen=True)
class BenchmarkCell:
    """Accuracy in percent with its 95 % interval; "" if the stage was not asked."""

    value: str
    interval: str

    def __str__(self) -> str:
        return f"{self.value} [{self.interval}]" if self.interval else self.value


@dataclass(frozen=True)
class BenchmarkTable:
    """Stages against benchmarks, as the paper's Tables 1 to 3 have them."""

    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[BenchmarkCell]]]  # title of the stage, its cells


def benchmark_table(run_dir: Path, stages: Sequence[tuple[str, str]]) -> BenchmarkTable | None:
    """Return the table of a run folder's stages, (name, title) each; None if none was asked."""
    found = {name: _figures(run_dir / name / FOLDER) for name, _ in stages}
    columns = list(dict.fromkeys(column for cells in found.values() for column in cells))
    if not columns:
        return None
    empty = BenchmarkCell(DASH, "")
    return BenchmarkTable(
        columns,
        [
            (title, [found[name].get(column, empty) for column in columns])
            for name, title in stages
            if found[name]
        ],
    )


def _figures(folder: Path) -> dict[str, BenchmarkCell]:
    """Return the number of each result below a folder, and HallusionBench's second one."""
    cells: dict[str, BenchmarkCell] = {}
    for path in sorted(folder.glob(f"*/*/{HEAD}")):
        head = read_head(path.parent)
        tables = head.get("tables")
        if not isinstance(tables, list) or not tables:
            continue
        name = f"{head.get('benchmark')} ({head.get('split')}, {head.get('style')})"
        first = tables[0]
        cells[f"{name}, mean" if first["mean"] else name] = _cell(first)
        for table in tables:
            if table["title"] == _PLAIN:
                cells[f"{name}, accuracy"] = _cell(table)
    return cells


def _cell(table: dict[str, object]) -> BenchmarkCell:
    number, interval = table["number"], table["ci95"]
    if not isinstance(number, float | int) or not isinstance(interval, list):
        return BenchmarkCell(DASH, "")
    low, high = (100 * float(bound) for bound in interval)
    return BenchmarkCell(f"{100 * number:.1f}", f"{low:.1f} to {high:.1f}")
