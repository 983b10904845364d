"""Reads a run's stage folders into the figures that summary.json holds and the page shows.

A run may be killed, half done or damaged: what cannot be read becomes a sentence under
``problems``, and the rest is shown.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ovlt.benchmarks.stats import mean_ci95, paired_difference, wilson_ci95
from ovlt.report.summary import (
    MODES,
    Curve,
    Difference,
    EvaluationSummary,
    FamilyResult,
    Mode,
    ModeResult,
    RunSummary,
    StageDifference,
    StageSummary,
)

_LARGEST = 1e300  # beyond it the differences that a chart takes would overflow


@dataclass(frozen=True)
class Questions:
    """The rows per question of an evaluation, as far as they are complete and unambiguous."""

    scores: dict[Mode, dict[str, float]] = field(default_factory=dict)  # in [0, 1], by question id
    source: dict[str, str] = field(default_factory=dict)  # by question id


@dataclass(frozen=True)
class Evaluation:
    """An evaluation.json, checked. The summary leaves the questions to the file itself."""

    summary: EvaluationSummary
    questions: Questions


def read_run(run_dir: Path, baseline: str = "sft") -> RunSummary:
    """Return the figures of the stages under ``run_dir``.

    ``baseline`` names a stage folder, or a kind of stage (the first of that kind). Every other
    stage is compared with it, and with the stage before it, question by question. Raises
    ValueError if ``run_dir`` is not a folder or holds no stage.
    """
    if not run_dir.is_dir():
        raise ValueError(f"{run_dir} is not a folder: give the folder that holds a run's stages")
    problems: list[str] = []
    folders = [f for f in sorted(run_dir.iterdir()) if (f / "stage.json").is_file()]
    if not folders:
        hint = ""
        if (run_dir / "stage.json").is_file():
            hint = f"; it is a stage itself: give its parent, {run_dir.resolve().parent}"
        raise ValueError(f"{run_dir} holds no stage (a folder with a stage.json){hint}")
    stages: list[StageSummary] = []
    questions: dict[str, Questions] = {}  # of the evaluated stages, by name
    for folder in folders:
        stage, evaluation = _read_stage(folder)
        stages.append(stage)
        if evaluation is not None:
            questions[stage["name"]] = evaluation.questions
    stages.sort(key=lambda stage: (stage["order"], stage["created"], stage["name"]))
    base = _find_stage(stages, baseline)
    _compare(stages, base, questions)
    run = read_object(run_dir / "run.json", problems) or {}
    return {
        "title": str(run.get("title") or run.get("recipe") or run_dir.resolve().name),
        "run": {str(key): _as_text(value) for key, value in run.items()},
        "baseline": base,
        "stages": stages,
        "problems": problems,
    }


def number(value: object) -> float | None:
    """Return a finite float; None for everything else that a damaged file may hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        result = float(value)
    except OverflowError:
        return None
    return result if math.isfinite(result) and abs(result) < _LARGEST else None


def as_object(value: object) -> dict[str, object]:
    """Return ``value`` if it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def read_object(path: Path, problems: list[str]) -> dict[str, object] | None:
    """Return the JSON object in a file; None, with a problem added unless there is no file."""
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8", errors="replace"))
        if isinstance(value, dict):
            return value
        problems.append(f"{path.name} does not hold a JSON object, so it is left out.")
    except (OSError, ValueError, RecursionError) as error:
        problems.append(f"{path.name} cannot be read, so it is left out: {error}")
    return None


def _read_stage(folder: Path) -> tuple[StageSummary, Evaluation | None]:
    problems: list[str] = []
    record = read_object(folder / "stage.json", problems) or {}
    evaluation = read_evaluation(folder / "evaluation.json", problems)
    rows = _read_metrics(folder / "metrics.jsonl", problems)
    return {
        "name": folder.name,
        "stage": str(record.get("stage", folder.name)),
        "title": str(record.get("title") or folder.name),
        "created": str(record.get("created", "")),
        "status": str(record.get("status", "unknown")),
        "command": str(record.get("command", "")),
        "seconds": number(record.get("seconds")),
        "steps": number(record.get("steps")),
        "order": number(record.get("order")) or 0.0,
        "evaluation": evaluation.summary if evaluation else None,
        "curves": _curves(rows, "metrics"),
        "seconds_by_phase": _curves(rows, "seconds"),
        "non_finite": _non_finite(rows),
        "problems": problems,
        "difference": {"previous": None, "baseline": None},
    }, evaluation


def _json_lines(path: Path) -> Iterator[dict[str, object] | None]:
    """Yield the objects of a JSON-lines file, None for a damaged line; nothing if it is missing."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            yield row if isinstance(row, dict) else None


def _read_metrics(path: Path, problems: list[str]) -> dict[float, dict[str, object]]:
    """Return the rows of a metrics.jsonl by step, in order; a step run twice counts as run last."""
    rows: dict[float, dict[str, object]] = {}
    damaged = 0
    for row in _json_lines(path):
        step = number(row.get("step")) if row else None
        if row is None or step is None:
            damaged += 1
        else:
            rows[step] = row
    if damaged:
        problems.append(f"{path.name}: lines left out because they could not be read: {damaged}.")
    return dict(sorted(rows.items()))


def _curves(rows: Mapping[float, Mapping[str, object]], key: str) -> dict[str, Curve]:
    curves: dict[str, Curve] = {}
    for step, row in rows.items():
        for name, value in as_object(row.get(key)).items():
            curve = curves.setdefault(str(name), {"steps": [], "values": []})
            curve["steps"].append(step)
            curve["values"].append(number(value))
    return curves


def _non_finite(rows: Mapping[float, Mapping[str, object]]) -> dict[str, list[float]]:
    """Return, by metric, the steps at which it was NaN or infinite."""
    steps: dict[str, list[float]] = {}
    for step, row in rows.items():
        names = row.get("non_finite")
        for name in names if isinstance(names, list) else ():
            steps.setdefault(str(name), []).append(step)
    return steps


def read_evaluation(path: Path, problems: list[str]) -> Evaluation | None:
    """Return an evaluation.json, checked; None, with a problem added unless there is no file."""
    raw = read_object(path, problems)
    if raw is None:
        return None
    questions = _questions(raw.get("questions"))
    lengths = as_object(raw.get("response_tokens"))
    summary: EvaluationSummary = {
        "split": str(raw.get("split", "")),
        "model": str(raw.get("model", "")),
        "num_questions": number(raw.get("num_questions")),
        "greedy": _mode_result(raw.get("greedy"), "greedy", questions),
        "sampled": _mode_result(raw.get("sampled"), "sampled", questions),
        "response_tokens": {mode: number(lengths.get(mode)) for mode in MODES},
        "by_source": _families(raw.get("by_source")),
        "by_kind": _families(raw.get("by_kind")),
        "keywords": _counts(raw.get("keywords")),
    }
    return Evaluation(summary, questions)


def _mode_result(raw: object, mode: Mode, questions: Questions) -> ModeResult:
    """Return the accuracy that the file states, or that of its questions if it states none."""
    stated = as_object(raw)
    accuracy, interval = number(stated.get("accuracy")), _interval(stated.get("ci95"))
    scores = questions.scores.get(mode)
    if scores and (accuracy is None or interval is None):
        accuracy, interval = accuracy_of(mode, scores)
    result: ModeResult = {"accuracy": accuracy, "ci95": interval}
    if "temperature" in stated:
        result["temperature"] = number(stated["temperature"])
    if "n" in stated:
        result["n"] = number(stated["n"])
    return result


def _questions(raw: object) -> Questions:
    """Return the columns of ``raw`` that have one valid value for each distinct question id."""
    columns = as_object(raw)
    raw_ids = columns.get("id")
    ids = [str(i) for i in raw_ids] if isinstance(raw_ids, list) else []
    if not isinstance(raw_ids, list) or len(set(ids)) != len(ids):
        return Questions()
    questions = Questions()
    for mode in MODES:
        column = columns.get(mode)
        if isinstance(column, list) and len(column) == len(ids):
            scores = {i: number(score) for i, score in zip(ids, column, strict=True)}
            valid = {i: s for i, s in scores.items() if s is not None and 0 <= s <= 1}
            if len(valid) == len(scores):
                questions.scores[mode] = valid
    sources = columns.get("source")
    if isinstance(sources, list) and len(sources) == len(ids):
        questions.source.update(zip(ids, map(str, sources), strict=True))
    return questions


def accuracy_of(mode: Mode, scores: Mapping[str, float]) -> tuple[float, list[float]]:
    """Return accuracy and its 95 % interval over questions; ``scores`` by id, not empty."""
    values = list(scores.values())
    if mode == "greedy" and set(values) <= {0.0, 1.0}:
        low, high = wilson_ci95(int(sum(values)), len(values))
        return sum(values) / len(values), [low, high]
    mean, half = mean_ci95(values)
    return mean, [max(0.0, mean - half), min(1.0, mean + half)]


def _families(raw: object) -> dict[str, FamilyResult]:
    return {
        str(name): {
            "num": number(row.get("num")),
            "greedy": number(row.get("greedy")),
            "sampled": number(row.get("sampled")),
        }
        for name, row in as_object(raw).items()
        if isinstance(row, dict)
    }


def _counts(raw: object) -> dict[str, float]:
    """Return the entries of a JSON object that are numbers of at least 0."""
    values = {str(name): number(value) for name, value in as_object(raw).items()}
    return {name: value for name, value in values.items() if value is not None and value >= 0}


def _interval(value: object) -> list[float] | None:
    if not isinstance(value, list) or len(value) != 2:
        return None
    low, high = number(value[0]), number(value[1])
    return None if low is None or high is None else [low, high]


def _find_stage(stages: list[StageSummary], baseline: str) -> str | None:
    """Return the name of the stage of that name, else of the first stage of that kind."""
    names = [stage["name"] for stage in stages if stage["name"] == baseline]
    names += [stage["name"] for stage in stages if stage["stage"] == baseline]
    return next(iter(names), None)


def _compare(
    stages: list[StageSummary], baseline: str | None, questions: Mapping[str, Questions]
) -> None:
    """Fill in the differences of each stage to the last one evaluated before, and the baseline."""
    previous = None
    for stage in stages:
        name = stage["name"]
        stage["difference"]["previous"] = _difference(name, previous, questions)
        if baseline != name:
            stage["difference"]["baseline"] = _difference(name, baseline, questions)
        if name in questions:
            previous = name


def _difference(
    name: str, other: str | None, questions: Mapping[str, Questions]
) -> StageDifference | None:
    """Return the paired differences to another stage; None if they share no questions."""
    if other is None or name not in questions or other not in questions:
        return None
    by_mode = differences(questions[name].scores, questions[other].scores)
    if not by_mode:
        return None
    difference: StageDifference = {"to": other}
    for mode, value in by_mode.items():
        difference[mode] = value
    return difference


def differences(
    scores: Mapping[Mode, Mapping[str, float]], others: Mapping[Mode, Mapping[str, float]]
) -> dict[Mode, Difference]:
    """Return paired differences ``scores - others`` for each mode with the same question ids."""
    result: dict[Mode, Difference] = {}
    for mode in MODES:
        a, b = scores.get(mode), others.get(mode)
        if a and b and a.keys() == b.keys():
            mean, half = paired_difference(list(a.values()), [b[i] for i in a])
            result[mode] = {"mean": mean, "half_width": half}
    return result


def _as_text(value: object) -> str | dict[str, str]:
    """Return a value of run.json as text, whatever it is; {name: text} for an object."""
    if isinstance(value, dict):
        return {str(k): v if isinstance(v, str) else json.dumps(v) for k, v in value.items()}
    return value if isinstance(value, str) else json.dumps(value)
