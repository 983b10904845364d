"""Responses that are on disk: a result of ovlt's, or a file that a benchmark's authors ship.

A shipped file (JSON object, JSON list or JSON lines) has a record per question with its response;
rows that it lacks are taken from the benchmark's own files by id.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ovlt.benchmarks.data import read_benchmark
from ovlt.benchmarks.files import records
from ovlt.benchmarks.items import BenchmarkTask
from ovlt.benchmarks.results import RESULT, UNSCORED, ScoredItem, ScoredSample, read_items

_RESPONSES = ("response", "prediction", "model_answer", "model_prediction", "output")


def stored_items(
    benchmark: BenchmarkTask, split: str, where: str, data: str, *, strict: bool = True
) -> list[ScoredItem]:
    """Read responses from a result folder or a shipped file; their rulings are to be made anew.

    ``data`` is where the benchmark's rows are, if the file does not hold them; ``strict`` as
    ``read_benchmark`` takes it. Raises ValueError.
    """
    path = Path(where).expanduser()
    if (path / RESULT).is_file():
        return read_items(path)
    if not path.is_file():
        raise ValueError(f"{path} is neither the folder of a result nor a file of responses")
    rows = dict(_responses(benchmark, path))
    if any(column not in row for row, _ in rows.values() for column in _needed(benchmark)):
        whole = read_benchmark(benchmark, split, data, strict=strict, with_images=False)
        own = {item.id: item.row for item in whole.items}
        unknown = [name for name in rows if name not in own]
        if unknown:
            raise ValueError(
                f"{path}: {len(unknown)} ids, the first is {unknown[0]!r}, are not of "
                f"{benchmark.title}'s {split}"
            )
        rows = {name: (own[name], text) for name, (_, text) in rows.items()}
    return [
        ScoredItem(name, row, (ScoredSample(text, 0, True, UNSCORED),))
        for name, (row, text) in rows.items()
    ]


def _needed(benchmark: BenchmarkTask) -> tuple[str, ...]:
    return tuple(column for column in benchmark.columns if column != "question")


def _responses(
    benchmark: BenchmarkTask, path: Path
) -> list[tuple[str, tuple[Mapping[str, object], str]]]:
    entries: list[tuple[str, tuple[Mapping[str, object], str]]] = []
    for number, row in enumerate(records(path)):
        if not isinstance(row, dict):
            raise ValueError(f"{path}: record {number} is no object")
        column = next((name for name in _RESPONSES if name in row), None)
        if column is None:
            raise ValueError(
                f"{path}: record {number} has no response ({', '.join(_RESPONSES)}); it has "
                f"{', '.join(row)}"
            )
        try:
            name = benchmark.row_id(row)
        except KeyError as error:
            raise ValueError(f"{path}: record {number} has no {error} to know it by") from None
        value = row[column]
        entries.append((name, (row, value if isinstance(value, str) else "")))
    return entries
