"""Style ``vlmevalkit``: the option matcher, the yes/no rule and number equality of that harness.

Facts: open-compass/VLMEvalKit at e8e78f0, vlmeval/utils/matching_util.py and dataset/utils. Its
quirks are kept, because a number is only comparable with them.
"""

from __future__ import annotations

import re
from collections.abc import Generator

from ovlt.benchmarks.columns import letter
from ovlt.benchmarks.items import Ask, RuleRun, Ruling
from ovlt.benchmarks.latex_value import latex_value

_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_BLANKS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_VERBOSE = re.compile(r"(?:correct\s+)?answer\s+is\s+\**([ABCD])\**", re.IGNORECASE)
FAILED_CALL = "Failed to obtain answer via API"
TRIES = 5
_OPTION_TRIES = 3


def match_letter(text: str, letters: list[str]) -> str:
    """Return the option letter that a text names, "Z" for a refusal, "" if neither is plain."""
    if FAILED_CALL in text:
        return ""
    if any(refusal in text for refusal in _REFUSALS):
        return "Z"
    words = text.translate(_BLANKS).split()
    present = [name for name in letters if name in words]
    if len(present) == 1:
        # The place of its first occurrence has to be among the last four words.
        if words.index(present[0]) > len(words) - 5:
            return present[0]
    elif not present and "Z" in words:
        return "Z"
    verbose = _VERBOSE.search(text)
    if verbose and verbose.group(1).upper() in letters:
        return verbose.group(1).upper()
    return ""


def match_option(text: str, options: list[str]) -> str:
    """Return the letter of the option that a text names or contains, "Z", or ""."""
    letters = [letter(i) for i in range(len(options))]
    if named := match_letter(text, letters):
        return named
    lowered, texts = text.lower(), [option.lower() for option in options]
    if len(lowered) > 2 * sum(map(len, texts)):
        return ""
    present = [name for name, option in zip(letters, texts, strict=True) if option in lowered]
    return present[0] if len(present) == 1 else ""


_MARKS = (";", "/", "[", "]", '"', "{", "}", "(", ")", "=", "+", "\\", "_", "-", ">", "<", "@", "`",
          ",", "?", "!")  # fmt: skip
_LONE_STOP = re.compile(r"(?<!\d)\.(?!\d)")
_STOPS_REMOVED = 32  # re.UNICODE, given where a count is meant


def yes_no(text: str) -> str:
    """Return Yes, No or Unknown: exactly one of the two words, after punctuation is removed."""
    lowered = text.lower()
    cleaned = lowered
    has_comma_number = re.search(r"\d,\d", lowered) is not None
    for mark in _MARKS:
        beside_blank = f"{mark} " in lowered or f" {mark}" in lowered
        cleaned = cleaned.replace(mark, "" if beside_blank or has_comma_number else " ")
    words = _LONE_STOP.sub("", cleaned, count=_STOPS_REMOVED).split()
    if "yes" in words and "no" not in words:
        return "Yes"
    if "no" in words and "yes" not in words:
        return "No"
    return "Unknown"


def equal_values(given: str, truth: str) -> bool:
    """Equal as text ignoring case, or as numbers within 1e-6."""
    a, b = given.lower().strip(), truth.lower().strip()
    if a == b:
        return True
    x, y = latex_value(a, as_python=False), latex_value(b, as_python=False)
    return x is not None and y is not None and abs(x - y) < 1e-6


def extraction(kind: str) -> Generator[Ask, str | None, str | None]:
    """Ask for an extraction until a usable reply comes; return it, None if there is no judge."""
    for _ in range(TRIES):
        reply = yield Ask(kind)
        if reply is None:
            return None
        if FAILED_CALL not in reply:
            return reply
    return ""


def choose_option(
    response: str, options: list[str], answer: str, *, alone: bool = False
) -> RuleRun:
    """Match an option, else let the judge name one in three tries.

    The harness then draws at random; here the item stays open, and counts as wrong. ``alone``: the
    harness also scores without a judge, and then takes Z.
    """
    if named := match_option(response, options):
        return Ruling(named == answer, named, "option matcher")
    for _ in range(_OPTION_TRIES):
        reply = yield Ask("option")
        if reply is None:
            right, named = (False, "Z") if alone else (None, None)
            return Ruling(right, named, "option matcher undecided, no judge", "nobody")
        if named := match_option(reply, options):
            return Ruling(named == answer, named, "judge, option matcher", "judge")
    return Ruling(None, None, "the judge named no option", "nobody")
