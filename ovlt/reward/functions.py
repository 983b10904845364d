"""What a reward is given and gives, and the rewards that come with ovlt."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ovlt.reward.grading import extract_answer, grade

if TYPE_CHECKING:
    from ovlt.types import Prompt


@dataclass(frozen=True)
class RewardInput:
    """One response with all that is known of its question. ``answer`` is the ground truth."""

    response: str
    answer: str
    question: str = ""
    source: str = ""
    image_paths: tuple[str, ...] = ()

    @classmethod
    def of(cls, response: str, prompt: Prompt) -> RewardInput:
        """A response to ``prompt``, with what the prompt says of its question."""
        return cls(response, prompt.answer, prompt.question, prompt.source, prompt.image_paths)


@dataclass(frozen=True)
class RewardOutput:
    """A finite ``score``, named ``parts`` of it for the log, and a ``reason`` for the reader."""

    score: float
    parts: dict[str, float] = field(default_factory=dict)
    reason: str = ""

    @property
    def is_right(self) -> bool:
        """The verdict on the answer: a score may give or take points for the form, so the part
        ``accuracy`` says it where there is one."""
        return self.parts.get("accuracy", self.score) >= 1.0


RewardFunction = Callable[[RewardInput], RewardOutput]


_THINK_ANSWER = re.compile(r"\s*<think>.*</think>.*<answer>.*</answer>\s*", re.DOTALL)


_RELEASED_FORMAT = re.compile(r"<think>.*</think>\s*<answer>.*</answer>", re.DOTALL)


_TAGS = ("<think>", "</think>", "<answer>", "</answer>")


def answer_reward(x: RewardInput) -> RewardOutput:
    """1 if the last ``<answer>`` is right, else 0: the binary reward of the OpenVLThinker paper.

    Part ``format`` is 1 when each of the four tags stands once and in order; it never enters the
    score (arXiv 2503.17352v1 uses no format reward).
    """
    well_formed = all(x.response.count(tag) == 1 for tag in _TAGS)
    well_formed = well_formed and _THINK_ANSWER.fullmatch(x.response) is not None
    given = extract_answer(x.response)
    right, reason = (False, "no answer tag") if given is None else grade(given, x.answer)
    return RewardOutput(
        float(right), {"accuracy": float(right), "format": float(well_formed)}, reason
    )


def released_reward(x: RewardInput) -> RewardOutput:
    """0, 0.5 or 1, as the released training code scores, with MathRuler's verdicts as they are.

    The first one-line ``<answer>`` is graded, or the whole response where there is none; a right
    answer loses 0.5 when only blanks stand between ``</think>`` and ``<answer>``. Parts, logged and
    not scored: ``accuracy`` without that loss; ``format``, the released pattern (no text between
    the tags).
    """
    given = extract_answer(x.response, parity=True)
    right, reason = grade(x.response if given is None else given, x.answer, parity=True)
    no_summary = re.search(r"</think>\s*<answer>", x.response) is not None
    score = float(right) - 0.5 * float(right and no_summary)
    well_formed = _RELEASED_FORMAT.fullmatch(x.response) is not None
    parts = {"accuracy": float(right), "format": float(well_formed)}
    return RewardOutput(score, parts, f"{reason}; no summary" if right and no_summary else reason)


def exact_reward(x: RewardInput) -> RewardOutput:
    """1 if the whole response is the answer, blanks apart: for captions with one right form."""
    right = x.response.split() == x.answer.split()
    return RewardOutput(float(right), {"accuracy": float(right)}, "same" if right else "differs")


def soft_overlong_penalty(num_tokens: int, max_tokens: int, cache_tokens: int) -> float:
    """DAPO's length penalty (arXiv 2503.14476, eq. 13), in [-1, 0], to be added to a score.

    0 up to ``max_tokens - cache_tokens`` response tokens, then linear down to -1 at ``max_tokens``,
    -1 beyond. ValueError unless ``0 < cache_tokens <= max_tokens``.
    """
    if not 0 < cache_tokens <= max_tokens:
        raise ValueError(
            f"cache_tokens must lie in 1..max_tokens={max_tokens}, not {cache_tokens}; "
            "it is the length of the ramp before the limit"
        )
    return -min(max((num_tokens - (max_tokens - cache_tokens)) / cache_tokens, 0.0), 1.0)
