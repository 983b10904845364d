"""Apply a style's rules in killable processes, asking the judge where a rule has to.

``reward/pool.py`` runs ``grade`` below: a rule may meet a response on which sympy would not end.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from ovlt.benchmarks.answers import without_thoughts
from ovlt.benchmarks.items import Ask, BenchmarkRow, BenchmarkTask, Ruling, StyleName, rule_on
from ovlt.benchmarks.judge import JudgeRequest
from ovlt.benchmarks.registry import BENCHMARKS, style_named
from ovlt.config import RewardConfig
from ovlt.reward.functions import RewardInput, RewardOutput
from ovlt.reward.pool import RewardPool

_TIMEOUT_S = 10.0  # of one response; rules take milliseconds, sympy may take seconds
_MAX_REPLY = 1800  # characters of JSON that a worker's reply may hold
_MAX_ASKED = 32  # judge calls of one response, beyond any rule's own bound

# Asks the judge; None where it could not.
Judging = Callable[[Sequence[JudgeRequest]], Sequence[str | None]]


@dataclass(frozen=True)
class ScoredText:
    """One response to score. ``id`` names the question."""

    id: str
    row: BenchmarkRow
    response: str


@dataclass(frozen=True)
class RuleSet:
    """Which rules score."""

    benchmark: BenchmarkTask
    style: StyleName
    settings: frozenset[str] = frozenset()
    strip_thoughts: bool = True


def open_pool(workers: int) -> RewardPool:
    """Start the processes that apply rules."""
    function = f"{Path(__file__).resolve()}:grade"
    return RewardPool(RewardConfig(function=function, workers=workers, timeout=_TIMEOUT_S))


def score(
    texts: Sequence[ScoredText], rules: RuleSet, pool: RewardPool, judging: Judging | None
) -> list[tuple[Ruling, list[str | None]]]:
    """Return the ruling on each response, and the judge's replies that led to it."""
    rulings: list[Ruling | None] = [None] * len(texts)
    replies: list[list[str | None]] = [[] for _ in texts]
    responses = [
        without_thoughts(text.response) if rules.strip_thoughts else text.response for text in texts
    ]
    left = list(range(len(texts)))
    while left:
        inputs = [_input(rules, texts[i].row, responses[i], replies[i]) for i in left]
        results = [_result(output) for output in pool.score(inputs)]
        asks: list[tuple[int, Ask]] = []
        for i, result in zip(left, results, strict=True):
            if isinstance(result, Ruling):
                rulings[i] = result
            else:
                asks.append((i, result))
        requests = [
            JudgeRequest(
                rules.benchmark.name, rules.style, tuple(sorted(rules.settings)), texts[i].id,
                texts[i].row, responses[i], ask, len(replies[i]),
            )
            for i, ask in asks
        ]  # fmt: skip
        none: list[str | None] = [None] * len(requests)
        answers = judging(requests) if judging and requests else none
        for (i, _), answer in zip(asks, answers, strict=True):
            replies[i].append(answer if len(replies[i]) < _MAX_ASKED else None)
        left = [i for i, _ in asks]
    return [
        (ruling, given)
        for ruling, given in zip(rulings, replies, strict=True)
        if ruling is not None
    ]


def _input(
    rules: RuleSet, row: BenchmarkRow, response: str, replies: Sequence[str | None]
) -> RewardInput:
    task = {
        "benchmark": rules.benchmark.name,
        "style": rules.style,
        "settings": sorted(rules.settings),
        "row": dict(row),
        "replies": list(replies),
    }
    return RewardInput(response, json.dumps(task, default=str))


def grade(x: RewardInput) -> RewardOutput:
    """Run one rule: what a worker does. ``x.answer`` holds the task as JSON."""
    task = json.loads(x.answer)
    rule = BENCHMARKS[task["benchmark"]].rules()[style_named(task["style"])]
    result = rule_on(rule, task["row"], x.response, task["replies"], task["settings"])
    if isinstance(result, Ask):
        text = _fitting({"ask": result.kind}, {"extraction": result.extraction})
        return RewardOutput(0.0, {}, text)
    fixed = {"right": result.right, "by": result.by, "reason": result.reason}
    cut = {"extracted": result.extracted, "normalised": result.normalised}
    return RewardOutput(float(result.right or False), {}, _fitting(fixed, cut))


def _fitting(fixed: dict[str, object], cut: dict[str, str | None]) -> str:
    """Return one line of JSON whose texts of ``cut`` are shortened until it fits a reply."""
    longest = _MAX_REPLY
    while True:
        shortened = {key: None if text is None else text[:longest] for key, text in cut.items()}
        line = json.dumps(fixed | shortened)
        if len(line) <= _MAX_REPLY:
            return line
        longest //= 2


def _result(output: RewardOutput) -> Ruling | Ask:
    try:
        fields = json.loads(output.reason)
    except ValueError:  # the pool's own reason: timeout, too long, worker died ...
        return Ruling(False, None, f"not scored: {output.reason[:200]}")
    if "ask" in fields:
        return Ask(fields["ask"], fields["extraction"])
    by = cast("Literal['rule', 'judge', 'draw', 'nobody']", fields["by"])
    return Ruling(fields["right"], fields["extracted"], fields["reason"], by, fields["normalised"])
