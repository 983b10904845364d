"""The result of a cycle as Markdown, one column for each seed and source of questions.

Read from cycle.json and the evaluation.json of each stage, nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ovlt.report.cycle import ALL, MODES, NAME, read_cycle
from ovlt.report.text import signed, visible

_NOTHING = "\u2013"


def table(folders: Sequence[Path]) -> str:
    """Accuracy of every stage, then paired differences, of the runs in ``folders`` (the seeds).

    Raises ValueError where a folder holds no cycle.
    """
    runs = []
    for folder in folders:
        cycle = read_cycle(folder)
        if cycle is None:
            raise ValueError(f"{folder} holds no {NAME}: run python -m ovlt.cycle for it first")
        seed = folder.name if cycle["seed"] is None else f"seed {cycle['seed']:g}"
        runs.append((seed, cycle))
    columns = [
        (f"{seed}, {scope}", scope, {stage["name"]: stage for stage in cycle["stages"]})
        for seed, cycle in runs
        for scope in cycle["scopes"][1:] or [ALL]
    ]
    heads = [head for head, _, _ in columns]
    measured = [
        stage for _, cycle in runs for stage in cycle["stages"] if stage["table"] != "distill"
    ]
    measured.sort(key=lambda stage: bool(stage["comparison"]))  # the cycle itself comes first
    titles: dict[str, str] = {}
    for stage in measured:
        titles.setdefault(stage["name"], stage["title"])
    others: dict[tuple[str, str], str] = {}
    for relation in ("own_sft", "iteration_before", "reference"):
        for stage in measured:
            if difference := stage["difference"][relation]:
                others.setdefault((relation, stage["name"]), difference["title"])
    accuracy = [
        [title, *(_accuracy(stages.get(name), scope) for _, scope, stages in columns)]
        for name, title in titles.items()
    ]
    changes = [
        [
            f"{titles[name]} vs {other}",
            *(_differences(stages.get(name), relation, scope) for _, scope, stages in columns),
        ]
        for (relation, name), other in others.items()
    ]
    parts = [
        "Accuracy on held-out questions, %, greedy / sampled:",
        _markdown(["Stage", *heads], accuracy),
    ]
    if changes:
        parts += [
            "Paired differences, points, \u00b1 half of the 95 % interval, greedy / sampled:",
            _markdown(["Difference", *heads], changes),
            "Bold where the interval leaves out zero.",
        ]
    problems = [f"- {_plain(f'{seed}: {text}')}" for seed, run in runs for text in run["problems"]]
    return "\n\n".join([*parts, *filter(None, ["\n".join(problems)])]) + "\n"


def _accuracy(stage: dict[str, Any] | None, scope: str) -> str:
    if stage is None:
        return _NOTHING
    found = [stage["accuracy"][scope][mode]["accuracy"] for mode in MODES]
    if found == [None, None]:
        return _NOTHING if stage["status"] == "done" else _plain(stage["status"])
    return " / ".join(_NOTHING if value is None else f"{100 * value:.1f}" for value in found)


def _differences(stage: dict[str, Any] | None, relation: str, scope: str) -> str:
    difference = stage["difference"][relation] if stage else None
    by_mode = difference["by_scope"].get(scope, {}) if difference else {}
    if not by_mode:
        return _NOTHING
    return " / ".join(_change(by_mode[mode]) if mode in by_mode else _NOTHING for mode in MODES)


def _change(found: dict[str, float]) -> str:
    text = f"{signed(found['mean'], 100, 1)} \u00b1 {100 * found['half_width']:.1f}"
    return f"**{text}**" if abs(found["mean"]) > found["half_width"] else text


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; the bold of a number is ours, all other marks in a cell are text."""
    lines = [map(_plain, head), ["---", *["---:"] * (len(head) - 1)]]
    lines += [[_plain(row[0]), *row[1:]] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(text: str) -> str:
    """Text from outside as one line that Markdown and HTML leave as it is."""
    return re.sub(r"([\\|<>&`*_\[\]])", r"\\\1", " ".join(visible(text).split()))
