"""The shape of ``summary.json``: every figure of a run, as plain values that JSON can hold.

The readers (``collect``, ``cycle``) fill these records from files that may be damaged; a value that
cannot be read is None or left out. The page shows the same records.
"""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict

Mode = Literal["greedy", "sampled"]
MODES: tuple[Mode, ...] = ("greedy", "sampled")
Relation = Literal["before", "own_sft", "iteration_before", "reference"]


class ModeResult(TypedDict):
    """Accuracy in [0, 1] of one mode of answering, and its 95 % interval over questions."""

    accuracy: float | None
    ci95: list[float] | None
    temperature: NotRequired[float | None]
    n: NotRequired[float | None]  # answers per question


class FamilyResult(TypedDict):
    """Accuracy on the questions of one source or kind."""

    num: float | None
    greedy: float | None
    sampled: float | None


class EvaluationSummary(TypedDict):
    """An evaluation.json without its row per question."""

    split: str
    model: str
    num_questions: float | None
    greedy: ModeResult
    sampled: ModeResult
    response_tokens: dict[Mode, float | None]
    by_source: dict[str, FamilyResult]
    by_kind: dict[str, FamilyResult]
    keywords: dict[str, float]  # occurrences of each word per greedy answer


class Difference(TypedDict):
    """Mean paired difference of accuracies, and half the width of its 95 % interval."""

    mean: float
    half_width: float


class StageDifference(TypedDict):
    """Paired differences to the stage named ``to``, for each mode with the same questions."""

    to: str
    greedy: NotRequired[Difference]
    sampled: NotRequired[Difference]


class StageDifferences(TypedDict):
    previous: StageDifference | None
    baseline: StageDifference | None


class Curve(TypedDict):
    """One metric over steps; None is a value that is missing or not finite."""

    steps: list[float]
    values: list[float | None]


class StageSummary(TypedDict):
    """One stage folder of a run."""

    name: str  # of the folder
    stage: str  # kind of stage: sft, grpo, ...
    title: str
    created: str
    status: str
    command: str
    seconds: float | None
    steps: float | None
    order: float
    evaluation: EvaluationSummary | None
    curves: dict[str, Curve]
    seconds_by_phase: dict[str, Curve]
    non_finite: dict[str, list[float]]  # steps at which a metric was NaN or infinite
    problems: list[str]
    difference: StageDifferences


class ScopeResult(TypedDict):
    """Accuracy on the questions in one scope; ``questions`` counts them, if they are listed."""

    accuracy: float | None
    ci95: list[float] | None
    questions: int | None


class CycleDifference(TypedDict):
    """Paired differences to the stage named ``to``, by scope."""

    to: str
    title: str
    by_scope: dict[str, dict[Mode, Difference]]


class CycleEntry(TypedDict):
    """One entry of cycle.json with its results; ``comparison`` is empty except for controls."""

    name: str
    table: str  # of the recipe: sft, grpo, distill or evaluate
    iteration: int
    comparison: str
    title: str
    status: str
    seconds: float | None
    accuracy: dict[str, dict[Mode, ScopeResult]]  # by scope
    keywords: dict[str, float]
    difference: dict[Relation, CycleDifference | None]


class Cycle(TypedDict):
    """A cycle.json and the evaluations of its stages."""

    seed: float | None
    scopes: list[str]
    stages: list[CycleEntry]
    problems: list[str]


class GrpoCurves(TypedDict):
    """Curves of one GRPO stage of a cycle."""

    name: str
    title: str
    curves: dict[str, Curve]


# Functional syntax: ``pass`` is a keyword of Python.
DistillationSummary = TypedDict(
    "DistillationSummary",
    {
        "name": str,
        "title": str,
        "funnel": list[tuple[float, str]],  # questions left after each filter
        "dropped": list[tuple[float, str]],  # questions by the reason why they are left out
        "words": list[tuple[float, float, float]],  # traces with lengths in [low, high)
        "pass": dict[str, dict[str, float]],  # by source: questions, pass@1, pass@2, ...
        "keywords": dict[str, float],  # occurrences of each word per trace
    },
)


class CycleSummary(Cycle):
    during_grpo: list[GrpoCurves]
    distillation: list[DistillationSummary]


class RunSummary(TypedDict):
    """Everything in summary.json."""

    title: str
    run: dict[str, str | dict[str, str]]  # run.json, as text
    baseline: str | None  # name of the stage that the others are compared with
    stages: list[StageSummary]
    problems: list[str]
    cycle: NotRequired[CycleSummary]
