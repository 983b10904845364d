"""What is made of a response: its parts, which of several is kept, what a filter leaves of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

from ovlt.distill.forms import fill
from ovlt.reward.grading import extract_answer

# At which the released filter splits a trace (OpenVLThinker, arXiv 2503.17352, section 4.2).
REFLECTIONS = ("But wait", "But the question", "Wait")
_REFLECTION = re.compile(r"\b(?:" + "|".join(REFLECTIONS) + r")\b")
_BOXED = re.compile(r"\\boxed\s*\{")


class NoTrace(ValueError):
    """Why a response cannot be learned from; short enough to count by."""


@dataclass(frozen=True)
class Trace:
    """A response in its parts."""

    think: str
    summary: str
    answer: str

    @property
    def words(self) -> int:
        """Of the reasoning, as the filters count them."""
        return len(self.think.split())


def parse(response: str, *, finished: bool = True) -> Trace:
    """Reasoning, summary and answer of a response.

    The reasoning ends at the last ``</think>``; its opening tag may be missing, since the chat
    templates of R1's family write it themselves. The answer stands in the last ``<answer>`` tags
    or, where there are none, in the last ``\\boxed{}``; the summary is what lies between.

    Raises:
        NoTrace: cut at the token limit, no end of the reasoning, no answer, or nothing reasoned.
    """
    if not finished:
        raise NoTrace("cut at the token limit")
    think, end, rest = response.rpartition("</think>")
    if not end:
        raise NoTrace("the reasoning does not end")
    think = think.partition("<think>")[2] if "<think>" in think else think
    answer = extract_answer(rest)
    summary = rest.partition("<answer>")[0]
    if answer is None:
        answer, summary = boxed(rest), rest
    if not answer:
        raise NoTrace("no answer after the reasoning")
    if not think.strip():
        raise NoTrace("nothing was reasoned")
    return Trace(think.strip(), summary.strip(), answer)


def gradable(response: str) -> str:
    """The response as a grader of ``<answer>`` tags reads it: where ``parse`` would take the answer
    from a ``\\boxed{}``, as of models that know no tags (QwQ), with that answer in tags behind."""
    _, end, rest = response.rpartition("</think>")
    if end and extract_answer(rest) is None and (answer := boxed(rest)) is not None:
        return f"{response}\n<answer>{answer}</answer>"
    return response


def boxed(text: str) -> str | None:
    """The content of the last ``\\boxed{...}`` with balanced braces, stripped; None without one."""
    for found in reversed(list(_BOXED.finditer(text))):
        depth, start = 1, found.end()
        for at in range(start, len(text)):
            depth += {"{": 1, "}": -1}.get(text[at], 0)
            if depth == 0:
                return text[start:at].strip()
    return None


def choose(words: Sequence[int], rule: Literal["shortest", "second_longest"]) -> int:
    """Which of several correct traces is kept, given their lengths in words.

    shortest: as the papers say. second_longest: as the released code does; the longest is dropped
    and the longest of the rest taken, or the only one. Equal lengths: the first sampled.
    """
    order = sorted(range(len(words)), key=lambda i: (words[i], i))
    if rule == "shortest" or len(order) == 1:
        return order[0]
    longest = max(words[i] for i in order[:-1])
    return next(i for i in order if words[i] == longest)


def keep(
    trace: Trace, rule: Literal["none", "max_words", "reflections"], max_words: int = 500
) -> Trace:
    """What a filter leaves of a trace.

    max_words: all of it, or nothing where it is longer. reflections: the reasoning before the first
    phrase that opens a reflection, and the answer; the papers split there and drop the segments
    that follow, and do not say where such a segment would end before the reasoning does.

    Raises:
        NoTrace: nothing is left.
    """
    if rule == "max_words" and trace.words > max_words:
        raise NoTrace(f"longer than {max_words} words")
    if rule == "reflections" and (found := _REFLECTION.search(trace.think)):
        before = trace.think[: found.start()].rstrip()
        if not before:
            raise NoTrace("nothing is left before the first reflection")
        return replace(trace, think=before)
    return trace


def assemble(trace: Trace, form: str) -> str:
    """The text that is learned. ``form`` has the places {think}, {summary} and {answer}; a line
    that holds nothing but an empty summary goes, with the blank line behind it."""
    if not trace.summary:
        form = re.sub(r"^\{summary\}\n\n?", "", form, flags=re.M)
    return fill(form, asdict(trace))
