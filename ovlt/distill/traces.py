"""A response in its parts; which of several is kept, what a filter leaves, what text is learned."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

from ovlt.reward.grading import extract_answer

# The released filter splits a trace at these phrases (OpenVLThinker, arXiv 2503.17352, sec. 4.2).
REFLECTIONS = ("But wait", "But the question", "Wait")
_REFLECTION = re.compile(r"\b(?:" + "|".join(REFLECTIONS) + r")\b")
_BOXED = re.compile(r"\\boxed\s*\{")


class NoTrace(ValueError):
    """A response cannot be learned from; the message is the reason, short enough to count by."""


@dataclass(frozen=True)
class Trace:
    """A response in its parts."""

    think: str
    summary: str
    answer: str

    @property
    def words(self) -> int:
        """Number of words in the reasoning, as the filters count them."""
        return len(self.think.split())


def parse(response: str, *, finished: bool = True) -> Trace:
    """Return the reasoning, summary and answer of a response.

    The reasoning ends at the last ``</think>``; its opening tag may be missing, since the chat
    templates of R1's family write it themselves. The answer is in the last ``<answer>`` tags or, if
    there are none, in the last ``\\boxed{}``; the summary is the text between.

    Raises:
        NoTrace: cut at the token limit, no end of the reasoning, no answer, or empty reasoning.
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
    """Return the response for a grader that reads ``<answer>`` tags.

    If ``parse`` takes the answer from a ``\\boxed{}`` (models without tags, as QwQ), that answer is
    added in tags at the end.
    """
    _, end, rest = response.rpartition("</think>")
    if end and extract_answer(rest) is None and (answer := boxed(rest)) is not None:
        return f"{response}\n<answer>{answer}</answer>"
    return response


def boxed(text: str) -> str | None:
    """Return the content of the last ``\\boxed{...}`` with balanced braces, stripped, or None."""
    for match in reversed(list(_BOXED.finditer(text))):
        depth, start = 1, match.end()
        for at in range(start, len(text)):
            depth += {"{": 1, "}": -1}.get(text[at], 0)
            if depth == 0:
                return text[start:at].strip()
    return None


def choose(words: Sequence[int], rule: Literal["shortest", "second_longest"]) -> int:
    """Return the index of the trace that is kept of several correct ones, given their words.

    "shortest" is the rule of the papers. "second_longest" is that of the released code: it drops
    the longest and takes the longest of the rest, or the only one. Of equal lengths the first
    sampled counts.
    """
    order = sorted(range(len(words)), key=lambda i: (words[i], i))
    if rule == "shortest" or len(order) == 1:
        return order[0]
    longest = max(words[i] for i in order[:-1])
    return next(i for i in order if words[i] == longest)


def keep(
    trace: Trace, rule: Literal["none", "max_words", "reflections"], max_words: int = 500
) -> Trace:
    """Return what a filter leaves of a trace.

    "max_words" leaves the trace as it is or, if it is longer, nothing. "reflections" leaves the
    reasoning before the first phrase that opens a reflection, and the answer: the papers split
    there and drop the segments that follow, and do not say where such a segment ends.

    Raises:
        NoTrace: nothing is left.
    """
    if rule == "max_words" and trace.words > max_words:
        raise NoTrace(f"longer than {max_words} words")
    if rule == "reflections" and (match := _REFLECTION.search(trace.think)):
        before = trace.think[: match.start()].rstrip()
        if not before:
            raise NoTrace("nothing is left before the first reflection")
        return replace(trace, think=before)
    return trace


def assemble(trace: Trace, form: str) -> str:
    """Return the text that is learned: ``form`` with {think}, {summary} and {answer} filled in.

    A line that would hold nothing but an empty summary is left out, with the blank line after it.
    """
    if not trace.summary:
        form = re.sub(r"^\{summary\}\n\n?", "", form, flags=re.M)
    return fill(form, asdict(trace))


def fill(form: str, parts: Mapping[str, str]) -> str:
    """Return ``form`` with each {name} of ``parts`` replaced by its text.

    This is one pass: a caption that spells {question} stays as it is, and so do other braces.
    """
    names = "|".join(map(re.escape, parts))
    return re.sub(r"\{(" + names + r")\}", lambda match: parts[match[1]], form)
