"""Reads cycle.json and what its stages left into the figures of the papers, as plain numbers.

Stages of the cycle itself have no ``comparison``; controls name theirs and are measured against a
reference among the former. What cannot be read becomes a sentence under ``problems``.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ovlt.report.collect import accuracy_of, differences, number, read_evaluation, read_object

NAME = "cycle.json"
ALL = "all"  # the scope of every question; the other scopes are names of sources
MODES = ("greedy", "sampled")
# metric of a GRPO stage, as shown end to end over the iterations
DURING_GRPO = (
    "reward/mean", "response/tokens_mean", "val/tokens_mean", "val/greedy", "val/sampled",
)  # fmt: skip
_STAGE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")  # it becomes a folder's name
_MOST_SOURCES = 4  # more are too many figures; the tables by source of the page hold them


def read_cycle(run_dir: Path) -> dict[str, Any] | None:
    """``{"seed", "scopes", "stages", "problems"}`` from cycle.json and each evaluation.json; None
    where there is no cycle.json.

    A stage holds ``accuracy``: {scope: {mode: {"accuracy", "ci95"}}}, and paired differences
    ``{"to", "by_scope": {scope: {mode: {"mean", "half_width"}}}}``, or None: to the stage
    ``before`` it; of the last GRPO stage of an iteration to its SFT (``own_sft``) and to the last
    of the ``iteration_before``; of a control to its ``reference``.
    """
    if not (run_dir / NAME).is_file():
        return None
    problems: list[str] = []
    about = read_object(run_dir / NAME, problems) or {}
    listed = about.get("stages")
    if not isinstance(listed, list):
        problems.append(f"{NAME} holds no list of stages, so the cycle is not shown.")
        listed = []
    stages: dict[str, dict[str, Any]] = {}
    for entry in listed:
        stage = _stage(run_dir, entry, problems)
        if stage is not None:
            stages[stage["name"]] = stage
    found = list(stages.values())
    scopes = _scopes(found)
    for stage in found:
        stage["accuracy"] = {scope: _accuracy(stage, scope) for scope in scopes}
    for stage, relation, other in _pairs(found):
        stage["difference"][relation] = _difference(stage, other, scopes)
    for stage in found:  # one row per question belongs in evaluation.json, not in a summary
        del stage["evaluation"]
    return {"seed": number(about.get("seed")), "scopes": scopes, "stages": found,
            "problems": problems}  # fmt: skip


def main_stages(cycle: dict[str, Any], table: str = "") -> list[dict[str, Any]]:
    """Stages of the cycle itself, in order; of one kind where ``table`` is given."""
    return [
        stage
        for stage in cycle["stages"]
        if not stage["comparison"] and table in ("", stage["table"])
    ]


def curve_stages(cycle: dict[str, Any]) -> list[dict[str, Any]]:
    """One stage for each point of the iteration curve: base, SFT-1, GRPO-1 (its last part), ..."""
    points = {
        (stage["iteration"], stage["table"]): stage
        for stage in main_stages(cycle)
        if stage["table"] != "distill"
    }
    return list(points.values())


def comparisons(cycle: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """{comparison: its evaluated or awaited controls}, traces alone left out."""
    found: dict[str, list[dict[str, Any]]] = {}
    for stage in cycle["stages"]:
        if stage["comparison"] and stage["table"] != "distill":
            found.setdefault(stage["comparison"], []).append(stage)
    return found


def reference_of(control: dict[str, Any], main: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """What a control is measured against: for "single" the end of the cycle; else the stage of the
    cycle of the same kind and iteration, of the same part where there are several."""
    if control["comparison"] == "single":
        same = [stage for stage in main if stage["table"] == "grpo"]
        return same[-1] if same else None
    kind = (control["table"], control["iteration"])
    same = [stage for stage in main if (stage["table"], stage["iteration"]) == kind]
    pieces = set(control["name"].split("-"))
    named = [stage for stage in same if set(stage["name"].split("-")) <= pieces]
    return next(reversed(named or same), None)


def during_grpo(cycle: dict[str, Any], stages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """``{"name", "title", "curves": {metric: {"steps", "values"}}}`` of each stage of GRPO, in
    order; ``stages`` as read_run has them."""
    curves = {stage["name"]: stage["curves"] for stage in stages}
    found = []
    for stage in main_stages(cycle, "grpo"):
        own = curves.get(stage["name"], {})
        kept = {name: own[name] for name in DURING_GRPO if name in own}
        if kept:
            found.append({"name": stage["name"], "title": stage["title"], "curves": kept})
    return found


def distillations(run_dir: Path, cycle: dict[str, Any]) -> list[dict[str, Any]]:
    """summary.json of each distillation, that of the cycle first; problems go to ``cycle``."""
    listed = [stage for stage in cycle["stages"] if stage["table"] == "distill"]
    found = []
    for stage in sorted(listed, key=lambda stage: bool(stage["comparison"])):
        problems: list[str] = []
        raw = read_object(run_dir / stage["name"] / "summary.json", problems)
        if raw is not None:
            found.append(
                {"name": stage["name"], "title": stage["title"], **_distilled(raw, problems)}
            )
        cycle["problems"] += [f"{stage['name']}: {problem}" for problem in problems]
    return found


def _stage(run_dir: Path, entry: Any, problems: list[str]) -> dict[str, Any] | None:
    name = entry.get("name") if isinstance(entry, dict) else None
    if not isinstance(name, str) or not _STAGE_NAME.fullmatch(name):
        problems.append(f"{NAME}: an entry without the name of a folder is left out.")
        return None
    found: list[str] = []
    evaluation = read_evaluation(run_dir / name / "evaluation.json", found)
    problems += [f"{name}: {problem}" for problem in found]
    return {
        "name": name,
        "table": str(entry.get("table", "")),
        "iteration": int(number(entry.get("iteration")) or 0),
        "comparison": str(entry.get("comparison") or ""),
        "title": str(entry.get("title") or name),
        "status": str(entry.get("status", "unknown")),
        "seconds": number(entry.get("seconds")),
        "evaluation": evaluation,
        "keywords": evaluation["keywords"] if evaluation else {},
        "difference": dict.fromkeys(("before", "own_sft", "iteration_before", "reference")),
    }


def _scopes(stages: Sequence[dict[str, Any]]) -> list[str]:
    """The scope "all", and where there are two to four sources, these in the questions' order."""
    sources: dict[str, None] = {}
    for stage in stages:
        if stage["evaluation"] is not None:
            names = stage["evaluation"]["questions"].get("source", {})
            sources |= dict.fromkeys(names.values())
    names = [name for name in sources if name != ALL]
    return [ALL, *(names if 2 <= len(names) <= _MOST_SOURCES else ())]


def _questions(stage: dict[str, Any], scope: str) -> dict[str, dict[str, float]]:
    """{mode: {id: score}} of the questions in scope."""
    if stage["evaluation"] is None:
        return {}
    questions = stage["evaluation"]["questions"]
    source = questions.get("source", {})
    return {
        mode: {
            i: score for i, score in questions[mode].items() if scope in (ALL, source.get(i))
        }
        for mode in MODES
        if mode in questions
    }  # fmt: skip


def _accuracy(stage: dict[str, Any], scope: str) -> dict[str, Any]:
    found = {}
    questions = _questions(stage, scope)
    for mode in MODES:
        accuracy, interval, count = None, None, None
        if questions.get(mode):
            accuracy, interval = accuracy_of(mode, questions[mode])
            count = len(questions[mode])
        elif scope == ALL and stage["evaluation"] is not None:  # without a row per question
            accuracy, interval = (stage["evaluation"][mode][key] for key in ("accuracy", "ci95"))
        found[mode] = {"accuracy": accuracy, "ci95": interval, "questions": count}
    return found


def _pairs(
    stages: Sequence[dict[str, Any]],
) -> list[tuple[dict[str, Any], str, dict[str, Any]]]:
    """(stage, relation, the stage it is compared with). The stage before is the last one evaluated;
    the others are never replaced by a stand-in, evaluated or not."""
    main = [stage for stage in stages if not stage["comparison"]]
    done = [stage for stage in main if stage["evaluation"] is not None]
    wanted = [(stage, "before", earlier) for earlier, stage in itertools.pairwise(done)]
    last = {stage["iteration"]: stage for stage in main if stage["table"] == "grpo"}
    own_sft = {stage["iteration"]: stage for stage in main if stage["table"] == "sft"}
    for iteration, stage in last.items():
        wanted.append((stage, "own_sft", own_sft.get(iteration)))
        wanted.append((stage, "iteration_before", last.get(iteration - 1)))
    wanted += [
        (stage, "reference", reference_of(stage, main)) for stage in stages if stage["comparison"]
    ]
    return [(stage, relation, other) for stage, relation, other in wanted if other is not None]


def _difference(
    stage: dict[str, Any], other: dict[str, Any], scopes: Sequence[str]
) -> dict[str, Any] | None:
    by_scope = {
        scope: found
        for scope in scopes
        if (found := differences(_questions(stage, scope), _questions(other, scope)))
    }
    if not by_scope:
        return None
    return {"to": other["name"], "title": other["title"], "by_scope": by_scope}


def _distilled(raw: dict[str, Any], problems: list[str]) -> dict[str, Any]:
    """A distillation's summary with every number checked; a damaged part is left out, and said."""
    found: dict[str, Any] = {
        "funnel": _rows(raw.get("funnel"), (_count, _text)),
        "dropped": _rows(raw.get("dropped"), (_count, _text)),
        "words": _rows(raw.get("words"), (_count, _count, _count)),
        "pass": _mapping(raw.get("pass"), lambda rates: _mapping(rates, _count)),
        "keywords": _mapping(raw.get("keywords"), _count),
    }
    for key, value in found.items():
        if value is None:
            problems.append(f"summary.json: its {key!r} cannot be read, so it is left out.")
            found[key] = {} if key in ("pass", "keywords") else []
    return found


def _rows(raw: Any, kinds: Sequence[Any]) -> list[list[Any]] | None:
    if not isinstance(raw, list):
        return None
    rows = [
        [kind(cell) for kind, cell in zip(kinds, row, strict=True)]
        for row in raw
        if isinstance(row, list) and len(row) == len(kinds)
    ]
    return rows if len(rows) == len(raw) and all(None not in row for row in rows) else None


def _mapping(raw: Any, kind: Any) -> dict[str, Any] | None:
    if not isinstance(raw, dict):
        return None
    checked = {str(name): kind(value) for name, value in raw.items()}
    return None if None in checked.values() else checked


def _count(value: Any) -> float | None:
    found = number(value)
    return found if found is not None and found >= 0 else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
