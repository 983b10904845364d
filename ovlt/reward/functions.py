"""Input and output of a reward, and the rewards that come with ovlt."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, TypeVar

from ovlt.reward.grading import extract_answer, grade
from ovlt.reward.mathematics import Verdict, ask_math_verify

if TYPE_CHECKING:
    from ovlt.types import Prompt


@dataclass(frozen=True)
class RewardInput:
    """One response and its question. ``answer`` is the ground truth.

    ``response`` begins with the tag that the chat template opens the turn with (``<think>``), if it
    does so in the prompt.
    ``image_paths`` are files that can be read; ``extra`` holds the further columns of the row.
    """

    response: str
    answer: str
    question: str = ""
    source: str = ""
    image_paths: tuple[str, ...] = ()
    extra: Mapping[str, object] = field(default_factory=dict[str, object])

    @classmethod
    def of(cls, response: str, prompt: Prompt) -> RewardInput:
        """Return the input for a response to ``prompt``."""
        return cls(
            response,
            prompt.answer,
            prompt.question,
            prompt.source,
            prompt.image_paths,
            prompt.extra,
        )


@dataclass(frozen=True)
class RewardOutput:
    """A finite ``score``, named ``parts`` for the log (finite), and a ``reason`` for people.

    ``failed`` says that no verdict was reached, for example because a judge's endpoint is down: a
    failure is counted as an error and not as a wrong answer.
    """

    score: float
    parts: dict[str, float] = field(default_factory=dict[str, float])
    reason: str = ""
    failed: bool = False

    @property
    def is_right(self) -> bool:
        """Whether the answer is right: the part ``accuracy`` is 1, or without it the score.

        A score alone does not tell, because it may add or subtract points for the form.
        """
        return self.parts.get("accuracy", self.score) >= 1.0


# One response to its output; with ``async def`` many of them at once; with ``@batch`` a list.
RewardFunction = Callable[[RewardInput], RewardOutput]
AsyncRewardFunction = Callable[[RewardInput], Awaitable[RewardOutput]]
BatchRewardFunction = Callable[[list[RewardInput]], list[RewardOutput]]
AnyRewardFunction = RewardFunction | AsyncRewardFunction | BatchRewardFunction
Form = Literal["single", "batch", "async"]

_Batch = TypeVar("_Batch", bound=Callable[..., object])


def batch(function: _Batch) -> _Batch:
    """Mark a reward that takes a list of inputs and returns a list of outputs, in order."""
    vars(function)["ovlt_form"] = "batch"
    return function


def form_of(function: Callable[..., object]) -> Form:
    """Return how a reward wants to be called."""
    if getattr(function, "ovlt_form", None) == "batch":
        return "batch"
    method = vars(type(function)).get("__call__")  # of an object that can be called
    is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(method)
    return "async" if is_async else "single"


_THINK_ANSWER = re.compile(r"\s*<think>.*</think>.*<answer>.*</answer>\s*", re.DOTALL)
_RELEASED_FORMAT = re.compile(r"<think>.*</think>\s*<answer>.*</answer>", re.DOTALL)
_TAGS = ("<think>", "</think>", "<answer>", "</answer>")


def answer_reward(x: RewardInput) -> RewardOutput:
    """Return 1 if the last ``<answer>`` is right, else 0: the reward of the OpenVLThinker paper.

    The part ``format`` is 1 if each of the four tags occurs once and in order. It never changes
    the score (arXiv 2503.17352v1 uses no format reward).
    """
    well_formed = all(x.response.count(tag) == 1 for tag in _TAGS)
    well_formed = well_formed and _THINK_ANSWER.fullmatch(x.response) is not None
    right, reason = _verdict(x, grade)
    parts = {"accuracy": float(right), "format": float(well_formed)}
    return RewardOutput(float(right), parts, reason, failed=reason.startswith("error: "))


def mathruler_reward(x: RewardInput) -> RewardOutput:
    """Return 1 if MathRuler calls the last ``<answer>`` right, else 0."""
    right, reason = _verdict(x, functools.partial(grade, parity=True))
    return RewardOutput(float(right), {"accuracy": float(right)}, reason)


def math_verify_reward(x: RewardInput) -> RewardOutput:
    """Return 1 if Math-Verify alone calls the last ``<answer>`` right, else 0."""
    right, reason = _verdict(x, ask_math_verify)
    return RewardOutput(float(right), {"accuracy": float(right)}, reason)


def judges_reward(x: RewardInput) -> RewardOutput:
    """Return what ``answer`` returns, with the verdicts of the other two judges as parts.

    The report lists the answers about which ``answer``, MathRuler and Math-Verify disagree.
    """
    output = answer_reward(x)
    others = {
        "mathruler": mathruler_reward(x).score,
        "math_verify": math_verify_reward(x).score,
    }
    return replace(output, parts=output.parts | others)


def _verdict(x: RewardInput, judge: Callable[[str, str], Verdict]) -> Verdict:
    given = extract_answer(x.response)
    return (False, "no answer tag") if given is None else judge(given, x.answer)


def released_reward(x: RewardInput) -> RewardOutput:
    """Return 0, 0.5 or 1 as OpenVLThinker's released code does, with MathRuler's plain verdicts.

    Grades the first one-line ``<answer>``, or the whole response if there is none. A right answer
    loses 0.5 if there is only white space between ``</think>`` and ``<answer>``. Two parts are
    logged and not scored: ``accuracy``, without that loss, and ``format``, whether the response
    matches the released pattern (no text between the tags).
    """
    given = extract_answer(x.response, parity=True)
    right, reason = grade(x.response if given is None else given, x.answer, parity=True)
    no_summary = re.search(r"</think>\s*<answer>", x.response) is not None
    score = float(right) - 0.5 * float(right and no_summary)
    well_formed = _RELEASED_FORMAT.fullmatch(x.response) is not None
    parts = {"accuracy": float(right), "format": float(well_formed)}
    return RewardOutput(score, parts, f"{reason}; no summary" if right and no_summary else reason)


def exact_reward(x: RewardInput) -> RewardOutput:
    """Return 1 if the whole response is the answer up to white space: for captions of one form."""
    right = x.response.split() == x.answer.split()
    return RewardOutput(float(right), {"accuracy": float(right)}, "same" if right else "differs")


def soft_overlong_penalty(num_tokens: int, max_tokens: int, cache_tokens: int) -> float:
    """Return DAPO's length penalty (arXiv 2503.14476, eq. 13), in [-1, 0], to add to a score.

    It is 0 up to ``max_tokens - cache_tokens`` response tokens, falls linearly to -1 at
    ``max_tokens``, and stays -1 beyond. ValueError unless ``0 < cache_tokens <= max_tokens``.
    """
    if not 0 < cache_tokens <= max_tokens:
        raise ValueError(
            f"cache_tokens must be in 1..max_tokens={max_tokens}, not {cache_tokens}; "
            "it is the length of the ramp before the limit (reward.overlong_tokens)"
        )
    return -min(max((num_tokens - (max_tokens - cache_tokens)) / cache_tokens, 0.0), 1.0)
