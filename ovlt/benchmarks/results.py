"""The result of a benchmark: one line per question, the tables, and what decides comparability."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ovlt.benchmarks.items import BenchmarkRow, BenchmarkTask, Ruling, ScoreRow, ScoreTable
from ovlt.benchmarks.stats import mean_ci95, pass_at_k
from ovlt.run.record import whole_lines
from ovlt.system.files import read_object, write_whole

RESULT, HEAD, PAGE = "result.jsonl", "result.json", "result.md"
_KS = (1, 2, 4, 8, 16, 32, 64)
_MAX_ROWS = 60  # of one table in the Markdown page


@dataclass(frozen=True)
class ScoredSample:
    """One response with its ruling."""

    response: str
    tokens: int
    finished: bool
    ruling: Ruling
    replies: tuple[str | None, ...] = ()


UNSCORED = Ruling(None, None, "not scored yet", "nobody")


@dataclass(frozen=True)
class ScoredItem:
    """One question with its samples; ``error`` says why it was not asked, and then it has none."""

    id: str
    row: BenchmarkRow
    samples: tuple[ScoredSample, ...]
    error: str = ""

    def value(self, sample: int) -> float:
        """1 if that sample is right; undecided and unasked ones are wrong."""
        return float(bool(self.samples and self.samples[sample].ruling.right))

    @property
    def mean(self) -> float:
        """The share of its samples that are right."""
        count = len(self.samples)
        return sum(self.value(k) for k in range(count)) / count if count else 0.0


def tables_of(benchmark: BenchmarkTask, items: Sequence[ScoredItem]) -> list[ScoreTable]:
    """Return the benchmark's tables; with several samples their units are means over samples."""
    count = max((len(item.samples) for item in items), default=0) or 1
    rows = [item.row for item in items]
    runs = [benchmark.tables(rows, [item.value(k) for item in items]) for k in range(count)]
    if count == 1:
        return runs[0]
    merged: list[ScoreTable] = []
    for table in runs[0]:
        lines: list[ScoreRow] = []
        for row in table.rows:
            units = [_row(run, table.title, row.label).units for run in runs]
            means = tuple(sum(values) / count for values in zip(*units, strict=True))
            lines.append(ScoreRow(row.label, means, row.clusters))
        merged.append(replace(table, rows=tuple(lines)))
    return merged


def _row(tables: Sequence[ScoreTable], title: str, label: str) -> ScoreRow:
    return next(
        row for table in tables if table.title == title for row in table.rows if row.label == label
    )


def samples_summary(items: Sequence[ScoredItem]) -> dict[str, list[float]]:
    """Return mean@n and pass@k over questions, each with its 95 % interval; {} for one sample."""
    asked = [item for item in items if len(item.samples) > 1]
    if not asked:
        return {}
    n = min(len(item.samples) for item in asked)
    figures: dict[str, list[float]] = {}
    right = [sum(int(item.value(k)) for k in range(len(item.samples))) for item in items]
    counts = [len(item.samples) for item in items]
    figures[f"mean@{n}"] = _figure([item.mean for item in items])
    for k in (k for k in _KS if k <= n):
        shares = [
            pass_at_k(hits, count, k) if count >= k else 0.0
            for hits, count in zip(right, counts, strict=True)
        ]
        figures[f"pass@{k}"] = _figure(shares)
    return figures


def _figure(values: Sequence[float]) -> list[float]:
    mean, half = mean_ci95(values)
    return [mean, max(0.0, mean - half), min(1.0, mean + half)]


def decided(items: Sequence[ScoredItem]) -> dict[str, int]:
    """Count who decided each response: rule, judge, draw, nobody; and questions not asked."""
    counts = Counter(sample.ruling.by for item in items for sample in item.samples)
    asked_not = sum(bool(item.error) for item in items)
    return {**{str(by): n for by, n in sorted(counts.items())}, "not asked": asked_not}


def write_result(
    folder: Path, benchmark: BenchmarkTask, items: Sequence[ScoredItem], facts: Mapping[str, object]
) -> list[ScoreTable]:
    """Write result.jsonl, result.json and result.md into ``folder``; return the tables."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(_line(benchmark, item), default=str) + "\n" for item in items]
    write_whole(folder / RESULT, "".join(lines).encode("utf-8", "replace"))
    tables = tables_of(benchmark, items)
    head: dict[str, object] = {
        **facts,
        "questions": len(items),
        "decided by": decided(items),
        "cut at the token limit": sum(
            not sample.finished for item in items for sample in item.samples
        ),
        "samples": samples_summary(items),
        "tables": [_plain(table) for table in tables],
    }
    text = json.dumps(head, indent=1, default=str)
    write_whole(folder / HEAD, text.encode("utf-8", "replace"))
    write_whole(folder / PAGE, markdown(head, tables).encode("utf-8", "replace"))
    return tables


def _line(benchmark: BenchmarkTask, item: ScoredItem) -> dict[str, object]:
    return {
        "id": item.id,
        "answer": benchmark.answer(item.row),
        "right": item.mean,
        "labels": {k: list(v) for k, v in benchmark.labels(item.row).items()},
        "samples": [_sample(sample) for sample in item.samples],
        "error": item.error,
        "row": dict(item.row),
    }


def _sample(sample: ScoredSample) -> Mapping[str, object]:
    ruling = asdict(sample.ruling)
    fields = {"response": sample.response, "tokens": sample.tokens, "finished": sample.finished}
    return fields | ruling | ({"replies": list(sample.replies)} if sample.replies else {})


def _plain(table: ScoreTable) -> dict[str, object]:
    rows = [
        {"label": row.label, "value": row.value, "ci95": list(row.interval), "of": len(row.units)}
        for row in table.rows
    ]
    number = {"number": table.number, "ci95": list(table.interval), "mean": bool(table.mean)}
    return {"title": table.title, "measure": table.measure, **number, "rows": rows}


def read_items(folder: Path) -> list[ScoredItem]:
    """Read result.jsonl of a folder. Raises ValueError if there is none or it is damaged."""
    path = folder / RESULT
    if not path.is_file():
        raise ValueError(f"no {RESULT} in {folder}: name the folder of one result")
    items: list[ScoredItem] = []
    for number, line in enumerate(whole_lines(path), 1):
        record = json.loads(line)
        try:
            samples = tuple(
                ScoredSample(
                    s["response"], s["tokens"], s["finished"],
                    Ruling(s["right"], s["extracted"], s["reason"], s["by"], s["normalised"]),
                    tuple(s.get("replies", ())),
                )
                for s in record["samples"]
            )  # fmt: skip
            items.append(ScoredItem(record["id"], record["row"], samples, record["error"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number}, is no line of a result: {error}") from None
    return items


def read_head(folder: Path) -> dict[str, object]:
    """Read result.json of a folder. Raises ValueError."""
    if not (folder / HEAD).is_file():
        raise ValueError(f"no {HEAD} in {folder}: name the folder of one result")
    return read_object(folder / HEAD)


def percent(value: float, interval: Sequence[float]) -> str:
    """Return "68.2 % [65.2, 71.0]"."""
    return f"{100 * value:.1f} % [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"


def markdown(head: Mapping[str, object], tables: Sequence[ScoreTable]) -> str:
    """Return the page: the number, what decides its comparability, and the tables."""
    first = tables[0]
    name = f"{first.title}: {first.mean}" if first.mean else "accuracy"
    title = f"# {head.get('benchmark')} ({head.get('split')}), style {head.get('style')}"
    said = percent(first.number, first.interval)
    lines = [title, "", f"**{name} {said}** on {head.get('questions')} questions", ""]
    samples = head.get("samples")
    if isinstance(samples, dict) and samples:
        lines += [f"- {name}: {percent(v[0], v[1:])}" for name, v in samples.items()] + [""]
    lines += ["## What decides comparability", "", "| | |", "|---|---|"]
    for key, value in head.items():
        if key not in ("tables", "samples", "benchmark", "split", "style", "questions"):
            lines.append(f"| {_cell(key)} | {_cell(_said(value))} |")
    for table in tables:
        lines += ["", f"## {table.title}", "", f"| | {table.measure} | 95 % interval | of |"]
        lines.append("|---|---:|---|---:|")
        lines += [
            _table_line(_cell(row.label), row.value, row.interval, str(len(row.units)))
            for row in table.rows[:_MAX_ROWS]
        ]
        if table.mean:
            lines.append(_table_line(f"**{table.mean}**", table.number, table.interval, ""))
    return "\n".join(lines) + "\n"


def _table_line(label: str, value: float, interval: tuple[float, float], of: str) -> str:
    low, high = (100 * bound for bound in interval)
    return f"| {label} | {100 * value:.1f} | {low:.1f} to {high:.1f} | {of} |"


def _said(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_said(part)}" for key, part in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(_said, value)) or "none"
    return str(value) if value not in (None, "") else "none"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())
