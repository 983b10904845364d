"""Reads a run's stage folders into one dict of figures: what summary.json holds and the page shows.

A run may be killed, half done or damaged; whatever cannot be read becomes a sentence under
``problems`` and the rest is shown.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ovlt.evaluate.stats import mean_ci95, paired_difference, wilson_ci95


def read_run(run_dir: Path, baseline: str = "sft") -> dict[str, Any]:
    """``{"title", "run", "baseline", "stages", "problems"}`` of the stages under ``run_dir``.

    ``baseline`` names a stage folder, or a kind of stage (the first of that kind). Every other
    stage is compared with it, and with the stage before it, question by question. Raises
    ValueError where ``run_dir`` is no folder or holds no stage.
    """
    if not run_dir.is_dir():
        raise ValueError(f"{run_dir} is not a folder: give the folder that holds a run's stages")
    problems: list[str] = []
    stages = [
        _read_stage(folder)
        for folder in sorted(run_dir.iterdir())
        if (folder / "stage.json").is_file()
    ]
    if not stages:
        hint = ""
        if (run_dir / "stage.json").is_file():
            hint = f"; it is a stage itself: give its parent, {run_dir.resolve().parent}"
        raise ValueError(f"{run_dir} holds no stage (a folder with a stage.json){hint}")
    stages.sort(key=lambda stage: (stage["order"], stage["created"], stage["name"]))
    base = _pick(stages, baseline)
    previous = None
    for stage in stages:
        stage["difference"] = {
            "previous": _difference(stage, previous),
            "baseline": _difference(stage, base) if base is not stage else None,
        }
        if stage["evaluation"] is not None:
            previous = stage
    for stage in stages:  # one row per question belongs in evaluation.json, not in a summary
        if stage["evaluation"] is not None:
            del stage["evaluation"]["questions"]
    run = read_object(run_dir / "run.json", problems) or {}
    return {
        "title": str(run.get("title") or run.get("recipe") or run_dir.resolve().name),
        "run": {str(key): _plain(value) for key, value in run.items()},
        "baseline": base["name"] if base else None,
        "stages": stages,
        "problems": problems,
    }


def number(value: Any) -> float | None:
    """A finite float, or None for everything else that a damaged file may hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        result = float(value)
    except OverflowError:
        return None
    return result if math.isfinite(result) and abs(result) < 1e300 else None


def read_object(path: Path, problems: list[str]) -> dict[str, Any] | None:
    """The JSON object in a file; None, with a problem noted unless the file is merely absent."""
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


def _read_stage(folder: Path) -> dict[str, Any]:
    problems: list[str] = []
    about = read_object(folder / "stage.json", problems) or {}
    return {
        "name": folder.name,
        "stage": str(about.get("stage", folder.name)),
        "title": str(about.get("title") or folder.name),
        "created": str(about.get("created", "")),
        "status": str(about.get("status", "unknown")),
        "command": str(about.get("command", "")),
        "seconds": number(about.get("seconds")),
        "steps": number(about.get("steps")),
        "order": number(about.get("order")) or 0.0,
        "evaluation": read_evaluation(folder / "evaluation.json", problems),
        **_curves(folder / "metrics.jsonl", problems),
        "problems": problems,
    }


def _json_lines(path: Path) -> Iterator[dict[str, Any] | None]:
    """The objects of a JSON-lines file, None for a damaged line; nothing if there is no file."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            yield row if isinstance(row, dict) else None


def _curves(path: Path, problems: list[str]) -> dict[str, Any]:
    """``curves`` and ``seconds``: {name: {"steps", "values"}}; ``non_finite``: {name: steps}."""
    rows: dict[float, dict[str, Any]] = {}
    damaged = 0
    for row in _json_lines(path):
        step = number(row.get("step")) if row else None
        if row is None or step is None:
            damaged += 1
        else:
            rows[step] = row  # a step that was run again counts as it was run last
    if damaged:
        problems.append(f"{path.name}: lines left out because they could not be read: {damaged}.")
    curves: dict[str, Any] = {}
    seconds: dict[str, Any] = {}
    non_finite: dict[str, list[float]] = {}
    for step in sorted(rows):
        for kind, target in (("metrics", curves), ("seconds", seconds)):
            values = rows[step].get(kind)
            for name, value in values.items() if isinstance(values, dict) else ():
                line = target.setdefault(str(name), {"steps": [], "values": []})
                line["steps"].append(step)
                line["values"].append(number(value))
        named = rows[step].get("non_finite")
        for name in named if isinstance(named, list) else ():
            non_finite.setdefault(str(name), []).append(step)
    return {"curves": curves, "seconds_by_phase": seconds, "non_finite": non_finite}


def read_evaluation(path: Path, problems: list[str]) -> dict[str, Any] | None:
    """An evaluation.json, checked; None, with a problem noted unless the file is merely absent."""
    raw = read_object(path, problems)
    if raw is None:
        return None
    questions = _questions(raw.get("questions"))
    modes: dict[str, Any] = {}
    for mode in ("greedy", "sampled"):
        given = raw.get(mode)
        given = given if isinstance(given, dict) else {}
        accuracy, interval = number(given.get("accuracy")), _pair(given.get("ci95"))
        per_question = questions.get(mode)
        if per_question and (accuracy is None or interval is None):
            accuracy, interval = accuracy_of(mode, per_question)
        modes[mode] = {"accuracy": accuracy, "ci95": interval}
        for extra in ("temperature", "n"):
            if extra in given:
                modes[mode][extra] = number(given[extra])
    lengths = raw.get("response_tokens")
    lengths = lengths if isinstance(lengths, dict) else {}
    return {
        "split": str(raw.get("split", "")),
        "model": str(raw.get("model", "")),
        "num_questions": number(raw.get("num_questions")),
        **modes,
        "response_tokens": {mode: number(lengths.get(mode)) for mode in ("greedy", "sampled")},
        "by_source": _families(raw.get("by_source")),
        "by_kind": _families(raw.get("by_kind")),
        "keywords": _numbers(raw.get("keywords")),
        "questions": questions,
    }


def _questions(raw: Any) -> dict[str, dict[str, Any]]:
    """{"greedy": {id: score}, "sampled": {id: score}, "source": {id: name}}, holding what is
    complete and unambiguous."""
    ids = raw.get("id") if isinstance(raw, dict) else None
    if not isinstance(ids, list) or len({str(i) for i in ids}) != len(ids):
        return {}
    out = {}
    for mode in ("greedy", "sampled"):
        scores = raw.get(mode)
        if isinstance(scores, list) and len(scores) == len(ids):
            known = [number(score) for score in scores]
            if all(score is not None and 0 <= score <= 1 for score in known):
                out[mode] = {str(i): score for i, score in zip(ids, known, strict=True)}
    sources = raw.get("source")
    if isinstance(sources, list) and len(sources) == len(ids):
        out["source"] = {str(i): str(name) for i, name in zip(ids, sources, strict=True)}
    return out


def accuracy_of(mode: str, scores: dict[str, float]) -> tuple[float, list[float]]:
    """Accuracy and its 95 % interval over questions; ``scores`` by question id, not empty."""
    values = list(scores.values())
    if mode == "greedy" and set(values) <= {0.0, 1.0}:
        low, high = wilson_ci95(int(sum(values)), len(values))
        return sum(values) / len(values), [low, high]
    mean, half = mean_ci95(values)
    return mean, [max(0.0, mean - half), min(1.0, mean + half)]


def _families(raw: Any) -> dict[str, dict[str, float | None]]:
    rows = raw.items() if isinstance(raw, dict) else ()
    return {
        str(name): {key: number(row.get(key)) for key in ("num", "greedy", "sampled")}
        for name, row in rows
        if isinstance(row, dict)
    }


def _numbers(raw: Any) -> dict[str, float]:
    """What of a table is a number, not negative."""
    rows = raw.items() if isinstance(raw, dict) else ()
    known = {str(name): number(value) for name, value in rows}
    return {name: value for name, value in known.items() if value is not None and value >= 0}


def _pair(value: Any) -> list[float] | None:
    if not isinstance(value, list) or len(value) != 2:
        return None
    low, high = number(value[0]), number(value[1])
    return None if low is None or high is None else [low, high]


def _pick(stages: list[dict[str, Any]], wanted: str) -> dict[str, Any] | None:
    for key in ("name", "stage"):
        for stage in stages:
            if stage[key] == wanted:
                return stage
    return None


def _difference(stage: dict[str, Any], other: dict[str, Any] | None) -> dict[str, Any] | None:
    """Paired differences to another stage; None where there is nothing to pair."""
    if other is None or stage["evaluation"] is None or other["evaluation"] is None:
        return None
    found = differences(stage["evaluation"]["questions"], other["evaluation"]["questions"])
    return {"to": other["name"], **found} if found else None


def differences(
    ours: dict[str, dict[str, Any]], theirs: dict[str, dict[str, Any]]
) -> dict[str, dict[str, float]]:
    """``{mode: {"mean", "half_width"}}``: paired, where both have the same questions."""
    result = {}
    for mode in ("greedy", "sampled"):
        a, b = ours.get(mode), theirs.get(mode)
        if a and b and a.keys() == b.keys():
            mean, half = paired_difference(list(a.values()), [b[i] for i in a])
            result[mode] = {"mean": mean, "half_width": half}
    return result


def _plain(value: Any) -> Any:
    """run.json as text, whatever it holds: {name: text} for an object, else text."""
    if isinstance(value, dict):
        return {str(k): v if isinstance(v, str) else json.dumps(v) for k, v in value.items()}
    return value if isinstance(value, str) else json.dumps(value)
