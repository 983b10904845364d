r"""Verdicts without a judge, for benchmarks whose rules need one: only where an answer is plain.

An answer is read from ``<answer>``, the last ``\boxed{}``, a last line "Answer: ...", or a response
of a few words. A letter, an option's text, a number or yes/no decides; anything else stays open,
so the share that is decided is part of the result. These verdicts are nobody's official ones.
"""

from __future__ import annotations

import re

from ovlt.benchmarks.answers import boxed, is_float
from ovlt.benchmarks.columns import letter
from ovlt.benchmarks.items import PlainTruth

_SHORT = 60  # characters of a response that is itself an answer
_LINE = re.compile(r"(?:final |correct )?answer(?: is)?\s*[:=]?\s*(.+)", re.IGNORECASE)
_LETTER = re.compile(r"\(?([A-Z])\)?(?:[.:)]?$|[.:)]\s+.*)", re.DOTALL)
_DRESS = (
    "\\text{",
    "\\mathrm{",
    "\\left",
    "\\right",
    "^{\\circ}",
    "^\\circ",
    "\\,",
    "$",
    "**",
    "°",
)


def plain_verdict(truth: PlainTruth, response: str) -> bool | None:
    """Return whether the response is right; None where that is not plain."""
    text = _answer(response)
    if text is None:
        return None
    if truth.yes_no:
        word = re.match(r"\W*(yes|no)\b", text, re.IGNORECASE)
        return None if word is None else word.group(1).lower() == truth.answer.lower()
    if truth.options or truth.is_letter:
        given = _option(text, truth.options)
        return None if given is None else given == truth.answer
    given, wanted = _number(text), _number(truth.answer)
    if given is None or wanted is None:
        return None
    return abs(given - wanted) <= 1e-6 * max(1.0, abs(wanted))


def _answer(response: str) -> str | None:
    """Return the stated answer, None if there is no plain one."""
    if "</answer>" in response:
        return response.rpartition("<answer>")[2].partition("</answer>")[0].strip()
    if boxes := boxed(response):
        return boxes[-1].strip()
    last = response.strip().rpartition("\n")[2].strip()
    if match := _LINE.fullmatch(last.rstrip(".")):
        return match.group(1).strip()
    return response.strip() if 0 < len(response.strip()) <= _SHORT else None


def _bare(text: str) -> str:
    for mark in _DRESS:
        text = text.replace(mark, "")
    return text.strip(" .{}")


def _option(text: str, options: tuple[str, ...]) -> str | None:
    bare = _bare(text)
    same = [letter(i) for i, o in enumerate(options) if _bare(o).lower() == bare.lower()]
    if len(same) == 1:
        return same[0]
    match = _LETTER.fullmatch(bare)
    return match.group(1) if match and not same else None


def _number(text: str) -> float | None:
    bare = _bare(text).replace(",", "").removesuffix("%").strip()
    return float(bare) if is_float(bare) and bare.strip("+-").lower()[:1].isdigit() else None
