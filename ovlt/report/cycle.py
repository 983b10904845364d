"""Reads cycle.json and what its stages left into the figures of the papers, as plain numbers.

Stages of the cycle itself have no ``comparison``; controls name theirs and are measured against a
reference stage of the cycle itself. What cannot be read becomes a sentence under ``problems``.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from ovlt.report.collect import (
    Evaluation,
    accuracy_of,
    as_object,
    differences,
    number,
    read_evaluation,
    read_object,
)
from ovlt.report.summary import (
    MODES,
    Cycle,
    CycleDifference,
    CycleEntry,
    DistillationSummary,
    GrpoCurves,
    Mode,
    Relation,
    ScopeResult,
    StageSummary,
)

NAME = "cycle.json"
ALL = "all"  # the scope of every question; the other scopes are names of sources
# metric of a GRPO stage, as shown end to end over the iterations
DURING_GRPO = (
    "reward/mean", "response/tokens_mean", "val/tokens_mean", "val/greedy", "val/sampled",
)  # fmt: skip
_STAGE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")  # it becomes a folder's name
_MAX_SOURCES = 4  # more are too many figures; the tables by source of the page hold them
_T = TypeVar("_T")
_Evaluations = Mapping[str, Evaluation | None]  # by the name of the stage


def read_cycle(run_dir: Path) -> Cycle | None:
    """Return the stages of cycle.json with the accuracies of their evaluation.json.

    Each stage has paired differences, by scope, to the stage ``before`` it; the last GRPO stage of
    an iteration also to its SFT (``own_sft``) and to the last of the ``iteration_before``; a
    control to its ``reference``. Returns None if there is no cycle.json.
    """
    if not (run_dir / NAME).is_file():
        return None
    problems: list[str] = []
    raw = read_object(run_dir / NAME, problems) or {}
    entries = raw.get("stages")
    if not isinstance(entries, list):
        problems.append(f"{NAME} has no list of stages, so the cycle is not shown.")
        entries = []
    by_name: dict[str, CycleEntry] = {}
    evaluations: dict[str, Evaluation | None] = {}
    for entry in entries:
        name = as_object(entry).get("name")
        if not isinstance(name, str) or not _STAGE_NAME.fullmatch(name):
            problems.append(f"{NAME}: an entry without the name of a folder is left out.")
            continue
        notes: list[str] = []
        evaluations[name] = read_evaluation(run_dir / name / "evaluation.json", notes)
        problems += [f"{name}: {note}" for note in notes]
        by_name[name] = _stage(name, as_object(entry), evaluations[name])
    stages = list(by_name.values())
    scopes = _scopes(evaluations)
    for stage in stages:
        evaluation = evaluations[stage["name"]]
        stage["accuracy"] = {scope: _accuracy(evaluation, scope) for scope in scopes}
    for stage, relation, other in _pairs(stages, evaluations):
        stage["difference"][relation] = _difference(stage, other, scopes, evaluations)
    return {
        "seed": number(raw.get("seed")),
        "scopes": scopes,
        "stages": stages,
        "problems": problems,
    }


def main_stages(cycle: Cycle, table: str = "") -> list[CycleEntry]:
    """Return the stages of the cycle itself, in order; only those of one recipe table if given."""
    return [
        stage
        for stage in cycle["stages"]
        if not stage["comparison"] and table in ("", stage["table"])
    ]


def curve_stages(cycle: Cycle) -> list[CycleEntry]:
    """Return a stage for each point of the iteration curve: base, SFT-1, GRPO-1 (its last), ..."""
    points = {
        (stage["iteration"], stage["table"]): stage
        for stage in main_stages(cycle)
        if stage["table"] != "distill"
    }
    return list(points.values())


def comparisons(cycle: Cycle) -> dict[str, list[CycleEntry]]:
    """Return {comparison: its controls}, evaluated or waiting, without their distillations."""
    controls: dict[str, list[CycleEntry]] = {}
    for stage in cycle["stages"]:
        if stage["comparison"] and stage["table"] != "distill":
            controls.setdefault(stage["comparison"], []).append(stage)
    return controls


def reference_of(control: CycleEntry, main: Sequence[CycleEntry]) -> CycleEntry | None:
    """Return the stage of the cycle that a control is measured against.

    For "single" that is the end of the cycle; else the stage of the same recipe table and
    iteration, and of the same level if there are several.
    """
    if control["comparison"] == "single":
        grpo = [stage for stage in main if stage["table"] == "grpo"]
        return grpo[-1] if grpo else None
    key = (control["table"], control["iteration"])
    same = [stage for stage in main if (stage["table"], stage["iteration"]) == key]
    words = set(control["name"].split("-"))
    same_level = [stage for stage in same if set(stage["name"].split("-")) <= words]
    return next(reversed(same_level or same), None)


def during_grpo(cycle: Cycle, stages: Sequence[StageSummary]) -> list[GrpoCurves]:
    """Return the curves of each GRPO stage of the cycle, in order; ``stages`` of the whole run."""
    curves = {stage["name"]: stage["curves"] for stage in stages}
    result: list[GrpoCurves] = []
    for stage in main_stages(cycle, "grpo"):
        all_curves = curves.get(stage["name"], {})
        chosen = {name: all_curves[name] for name in DURING_GRPO if name in all_curves}
        if chosen:
            result.append({"name": stage["name"], "title": stage["title"], "curves": chosen})
    return result


def distillations(run_dir: Path, cycle: Cycle) -> list[DistillationSummary]:
    """Return the summary.json of each distillation, those of the cycle itself first.

    Problems are added to those of ``cycle``.
    """
    stages = [stage for stage in cycle["stages"] if stage["table"] == "distill"]
    result = []
    for stage in sorted(stages, key=lambda stage: bool(stage["comparison"])):
        problems: list[str] = []
        raw = read_object(run_dir / stage["name"] / "summary.json", problems)
        if raw is not None:
            result.append(_distillation(stage, raw, problems))
        cycle["problems"] += [f"{stage['name']}: {problem}" for problem in problems]
    return result


def _stage(name: str, entry: Mapping[str, object], evaluation: Evaluation | None) -> CycleEntry:
    return {
        "name": name,
        "table": str(entry.get("table", "")),
        "iteration": int(number(entry.get("iteration")) or 0),
        "comparison": str(entry.get("comparison") or ""),
        "title": str(entry.get("title") or name),
        "status": str(entry.get("status", "unknown")),
        "seconds": number(entry.get("seconds")),
        "accuracy": {},
        "keywords": evaluation.summary["keywords"] if evaluation else {},
        "difference": {
            "before": None, "own_sft": None, "iteration_before": None, "reference": None
        },
    }  # fmt: skip


def _scopes(evaluations: _Evaluations) -> list[str]:
    """Return "all", and if there are two to four sources, these in the order of the questions."""
    sources: dict[str, None] = {}  # a set that keeps the order
    for evaluation in evaluations.values():
        if evaluation is not None:
            sources |= dict.fromkeys(evaluation.questions.source.values())
    names = [name for name in sources if name != ALL]
    return [ALL, *(names if 2 <= len(names) <= _MAX_SOURCES else ())]


def _scores(evaluation: Evaluation | None, scope: str) -> dict[Mode, dict[str, float]]:
    """Return {mode: {question id: score}} of the questions in scope."""
    if evaluation is None:
        return {}
    source = evaluation.questions.source
    return {
        mode: {i: score for i, score in scores.items() if scope in (ALL, source.get(i))}
        for mode, scores in evaluation.questions.scores.items()
    }


def _accuracy(evaluation: Evaluation | None, scope: str) -> dict[Mode, ScopeResult]:
    result: dict[Mode, ScopeResult] = {}
    by_mode = _scores(evaluation, scope)
    for mode in MODES:
        accuracy, interval, count = None, None, None
        scores = by_mode.get(mode)
        if scores:
            accuracy, interval = accuracy_of(mode, scores)
            count = len(scores)
        elif scope == ALL and evaluation is not None:  # the file has no row per question
            stated = evaluation.summary[mode]
            accuracy, interval = stated["accuracy"], stated["ci95"]
        result[mode] = {"accuracy": accuracy, "ci95": interval, "questions": count}
    return result


def _pairs(
    stages: Sequence[CycleEntry], evaluations: _Evaluations
) -> list[tuple[CycleEntry, Relation, CycleEntry]]:
    """Return (stage, relation, the stage it is compared with).

    The stage before is the last one that is evaluated. The other relations name one stage each,
    and no other takes its place while it is not evaluated.
    """
    main = [stage for stage in stages if not stage["comparison"]]
    evaluated = [stage for stage in main if evaluations[stage["name"]] is not None]
    last_grpo = {stage["iteration"]: stage for stage in main if stage["table"] == "grpo"}
    sft = {stage["iteration"]: stage for stage in main if stage["table"] == "sft"}
    pairs: list[tuple[CycleEntry, Relation, CycleEntry | None]] = []
    for earlier, stage in itertools.pairwise(evaluated):
        pairs.append((stage, "before", earlier))
    for iteration, stage in last_grpo.items():
        pairs.append((stage, "own_sft", sft.get(iteration)))
        pairs.append((stage, "iteration_before", last_grpo.get(iteration - 1)))
    controls = [stage for stage in stages if stage["comparison"]]
    pairs.extend((control, "reference", reference_of(control, main)) for control in controls)
    return [(stage, relation, other) for stage, relation, other in pairs if other is not None]


def _difference(
    stage: CycleEntry, other: CycleEntry, scopes: Sequence[str], evaluations: _Evaluations
) -> CycleDifference | None:
    ours, theirs = evaluations[stage["name"]], evaluations[other["name"]]
    by_scope = {
        scope: by_mode
        for scope in scopes
        if (by_mode := differences(_scores(ours, scope), _scores(theirs, scope)))
    }
    if not by_scope:
        return None
    return {"to": other["name"], "title": other["title"], "by_scope": by_scope}


def _distillation(
    stage: CycleEntry, raw: Mapping[str, object], problems: list[str]
) -> DistillationSummary:
    """Return a distillation's summary with every number checked; a damaged entry is left out."""

    def checked(key: str, check: Callable[[object], _T | None], empty: _T) -> _T:
        value = check(raw.get(key))
        if value is None:
            problems.append(f"summary.json: its {key!r} cannot be read, so it is left out.")
            return empty
        return value

    return {
        "name": stage["name"],
        "title": stage["title"],
        "funnel": checked("funnel", lambda rows: _rows(rows, _count_and_text), []),
        "dropped": checked("dropped", lambda rows: _rows(rows, _count_and_text), []),
        "words": checked("words", lambda rows: _rows(rows, _three_counts), []),
        "pass": checked("pass", lambda rates: _mapping(rates, _counts), {}),
        "keywords": checked("keywords", _counts, {}),
    }


def _rows(raw: object, check: Callable[[Sequence[object]], _T | None]) -> list[_T] | None:
    """Return the checked rows of a table; None if any cell of it is damaged."""
    if not isinstance(raw, list):
        return None
    rows = [check(row) if isinstance(row, list) else None for row in raw]
    valid = [row for row in rows if row is not None]
    return valid if len(valid) == len(rows) else None


def _mapping(raw: object, check: Callable[[object], _T | None]) -> dict[str, _T] | None:
    """Return the checked values of an object; None if any of them is damaged."""
    if not isinstance(raw, dict):
        return None
    values = {str(name): check(value) for name, value in raw.items()}
    valid = {name: value for name, value in values.items() if value is not None}
    return valid if len(valid) == len(values) else None


def _count_and_text(row: Sequence[object]) -> tuple[float, str] | None:
    if len(row) != 2:
        return None
    count, text = _count(row[0]), row[1]
    return (count, text) if count is not None and isinstance(text, str) else None


def _three_counts(row: Sequence[object]) -> tuple[float, float, float] | None:
    counts = [count for cell in row if (count := _count(cell)) is not None]
    return (counts[0], counts[1], counts[2]) if len(counts) == len(row) == 3 else None


def _counts(raw: object) -> dict[str, float] | None:
    return _mapping(raw, _count)


def _count(value: object) -> float | None:
    count = number(value)
    return count if count is not None and count >= 0 else None
