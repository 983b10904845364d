"""The result of a cycle as Markdown, one column for each seed and source of questions.

Read from cycle.json and the evaluation.json of each stage, nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ovlt.report.benchmark_table import benchmark_table
from ovlt.report.cycle import ALL, NAME, read_cycle
from ovlt.report.summary import MODES, Cycle, CycleEntry, Difference, Relation
from ovlt.report.text import DASH, signed, visible

_RELATIONS: tuple[Relation, ...] = ("own_sft", "iteration_before", "reference")


@dataclass(frozen=True)
class _Column:
    """One scope of questions of one run."""

    heading: str
    scope: str
    stages: Mapping[str, CycleEntry]  # by name


def cycle_markdown(folders: Sequence[Path]) -> str:
    """Return the accuracy of every stage, then paired differences, of several runs (the seeds).

    Raises ValueError if a folder holds no cycle.
    """
    runs = [_read(folder) for folder in folders]
    columns = [
        _Column(f"{seed}, {scope}", scope, {stage["name"]: stage for stage in cycle["stages"]})
        for seed, cycle in runs
        for scope in cycle["scopes"][1:] or [ALL]
    ]
    headings = [column.heading for column in columns]
    stages = [stage for _, run in runs for stage in run["stages"] if stage["table"] != "distill"]
    stages.sort(key=lambda stage: bool(stage["comparison"]))  # the cycle itself comes first
    parts = [
        "Accuracy on held-out questions, %, greedy / sampled:",
        _markdown(["Stage", *headings], _accuracy_rows(stages, columns)),
    ]
    if changes := _change_rows(stages, columns):
        parts += [
            "Paired differences, points, \u00b1 half width of the 95 % interval, greedy / sampled:",
            _markdown(["Difference", *headings], changes),
            "Bold if the interval excludes zero.",
        ]
    for (seed, run), folder in zip(runs, folders, strict=True):
        names = [(s["name"], s["title"]) for s in run["stages"] if s["table"] != "distill"]
        if table := benchmark_table(folder, names):
            rows = [[title, *map(str, cells)] for title, cells in table.rows]
            parts.append(f"Public benchmarks, % and 95 % interval, {_plain(seed)}:")
            parts.append(_markdown(["Stage", *table.columns], rows))
    problems = [f"- {_plain(f'{seed}: {text}')}" for seed, run in runs for text in run["problems"]]
    if problems:
        parts.append("\n".join(problems))
    return "\n\n".join(parts) + "\n"


def _read(folder: Path) -> tuple[str, Cycle]:
    """Return the name of a run, by its seed if it has one, and its cycle."""
    cycle = read_cycle(folder)
    if cycle is None:
        raise ValueError(f"{folder} holds no {NAME}: run python -m ovlt.cycle for it first")
    return folder.name if cycle["seed"] is None else f"seed {cycle['seed']:g}", cycle


def _titles(stages: Iterable[CycleEntry]) -> dict[str, str]:
    """Return {name: title}, the title of the first run with that stage."""
    titles: dict[str, str] = {}
    for stage in stages:
        titles.setdefault(stage["name"], stage["title"])
    return titles


def _accuracy_rows(stages: Iterable[CycleEntry], columns: Sequence[_Column]) -> list[list[str]]:
    return [
        [title, *(_accuracy(column.stages.get(name), column.scope) for column in columns)]
        for name, title in _titles(stages).items()
    ]


def _change_rows(stages: Sequence[CycleEntry], columns: Sequence[_Column]) -> list[list[str]]:
    titles = _titles(stages)
    others: dict[tuple[Relation, str], str] = {}  # title of what a stage is compared with
    for relation in _RELATIONS:
        for stage in stages:
            if difference := stage["difference"][relation]:
                others.setdefault((relation, stage["name"]), difference["title"])
    return [
        [f"{titles[name]} vs {other}", *(_differences(c, name, relation) for c in columns)]
        for (relation, name), other in others.items()
    ]


def _accuracy(stage: CycleEntry | None, scope: str) -> str:
    if stage is None:
        return DASH
    values = [stage["accuracy"][scope][mode]["accuracy"] for mode in MODES]
    if values == [None, None]:
        return DASH if stage["status"] == "done" else _plain(stage["status"])
    return " / ".join(DASH if value is None else f"{100 * value:.1f}" for value in values)


def _differences(column: _Column, name: str, relation: Relation) -> str:
    stage = column.stages.get(name)
    difference = stage["difference"][relation] if stage else None
    by_mode = difference["by_scope"].get(column.scope, {}) if difference else {}
    if not by_mode:
        return DASH
    return " / ".join(_change(by_mode[mode]) if mode in by_mode else DASH for mode in MODES)


def _change(difference: Difference) -> str:
    mean, half_width = difference["mean"], difference["half_width"]
    text = f"{signed(mean, 100, 1)} \u00b1 {100 * half_width:.1f}"
    return f"**{text}**" if abs(mean) > half_width else text


def _markdown(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; marks in headings and titles are escaped, the bold of a number is ours."""
    lines = [map(_plain, headings), ["---", *["---:"] * (len(headings) - 1)]]
    lines += [[_plain(row[0]), *row[1:]] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(text: str) -> str:
    """Return text from outside as one line that Markdown and HTML leave as it is."""
    return re.sub(r"([\\|<>&`*_\[\]])", r"\\\1", " ".join(visible(text).split()))
