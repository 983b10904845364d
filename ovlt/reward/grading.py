"""Decide whether an answer is right.

``grade(answer, truth)`` tries, in this order:

1. equal text and plain integers;
2. what the ground truth is: an option letter, yes or no, words, a time, a range, a quantity with
   its unit, a list, set or interval by its elements (small readers, one file each);
3. mathematics by Math-Verify (``ovlt.reward.mathematics``), within limits on length, powers and
   factorials.

Values are read before anything is compared: no blank, bracket or sign is dropped and no case is
folded before that. Conventions: a percentage equals both its number and its hundredth ("50%" is 50
and 0.5); a unit is equal or left out, and units of one kind are converted; there is no tolerance,
so "0.33" is not 1/3; "1, 2" and "\\{2, 1\\}" are unordered, "(1, 2)" and "[1, 2]" are ordered. The
limits bound the usual explosions; only a killable process bounds all of them
(``ovlt.reward.pool``).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

from ovlt.reward import choices
from ovlt.reward.compare import compare
from ovlt.reward.mathematics import Verdict
from ovlt.reward.spelling import undress, unify_characters, unify_latex
from ovlt.reward.symbolic import MAX_CHARS, ask_mathruler

_SMALL_INT = re.compile(r"[+-]?(?:\d{1,15}|\d{1,3}(?:,\d{3}){1,4})", re.ASCII)


def grade(answer: str, truth: str, *, parity: bool = False) -> Verdict:
    """Return whether ``answer`` equals the ground truth, and the reason in a few words.

    ``parity=True`` is case-insensitive equality or plain MathRuler, as in the released reward;
    only the length cap and the refusal of explosive expressions stay. Never raises: a non-string
    is wrong. Hostile text may keep sympy busy for seconds, so call this in a killable process.
    """
    if not isinstance(answer, str) or not isinstance(truth, str):
        return False, "not text"
    try:
        if parity:
            return _grade_parity(answer.strip(), truth.strip())
        return _grade(answer.strip(), truth.strip())
    except Exception as error:  # on hostile text, a fault of any grader below is a wrong answer
        return False, f"error: {type(error).__name__}"


def extract_answer(response: str, *, parity: bool = False) -> str | None:
    """Return the stripped text of the last closed ``<answer>...</answer>``; None without one.

    ``parity=True`` takes the first pair that lies on one line, as the released reward does.
    """
    if not isinstance(response, str):
        return None
    if parity:
        match = re.search(r"<answer>(.*?)</answer>", response)
        return match.group(1).strip() if match else None
    start = response.rfind("<answer>", 0, max(response.rfind("</answer>"), 0))
    if start < 0:
        return None
    start += len("<answer>")
    return response[start : response.find("</answer>", start)].strip()


def _grade_parity(given: str, truth: str) -> Verdict:
    if given.casefold() == truth.casefold():
        return True, "equal text"
    if _SMALL_INT.fullmatch(given) and _SMALL_INT.fullmatch(truth):
        return _as_int(given) == _as_int(truth), "integers"
    return ask_mathruler(given, truth)


def _grade(given: str, truth: str) -> Verdict:
    if truth.casefold() in ("", "nan"):
        return False, "no ground truth"
    if given == truth:
        return True, "equal text"
    if max(len(given), len(truth)) > MAX_CHARS:
        return False, "too long"
    if _SMALL_INT.fullmatch(given) and _SMALL_INT.fullmatch(truth):
        return _as_int(given) == _as_int(truth), "integers"
    given, truth = undress(unify_characters(given)), undress(unify_characters(truth))
    if not given or not truth:
        return False, "empty answer"
    *_, bare = _readings(truth)
    if option := choices.option_of(bare):
        label = choices.option_label(given)
        return _is_option(label, option), f"option {label}" if label else "no option letter"
    if choices.is_verdict(bare):
        return choices.says(given, bare), "yes or no"
    first = None
    for reading, expected in itertools.product(_readings(given), list(_readings(truth))):
        verdict = compare(_tidy(reading), _tidy(expected), depth=0)
        if verdict[0]:
            return verdict
        first = first or verdict
    return first or (False, "differs")


def _as_int(text: str) -> int:
    return int(text.replace(",", ""))


def _tidy(text: str) -> str:
    return re.sub(r"\s+", " ", unify_latex(text)).strip()


def _is_option(label: str | None, option: str) -> bool:
    """Return whether a stated letter is the true one; beyond L a letter may be a variable."""
    if label is None:
        return False
    return label == option or (label.upper() == option.upper() <= "L")


_SENTENCE = re.compile(
    r"(?P<lead>(?:[^\W\d_]|[\s,'()\-])*?\b(?:is|are|was|were|equals|be|becomes|has|have|total of|"
    r"answer|ans|result|solution|gives?|gets?|got|makes?|measures?|weighs?|costs?|contains?|shows?|finds?|found|obtains?|"
    r"needs?|takes?)\b(?:\s+(?:equal\s+to|equals|approximately|about))?\s*:?"
    r"|[^\W\d_]*答案[是为]?:?|[A-Za-z][A-Za-z ]{2,40}:)"
    r"\s*(?P<value>\S.*)",
    re.IGNORECASE | re.DOTALL,
)
_THEREFORE = re.compile(r"^(?:so|thus|therefore|hence|then|finally|ergo)\b\W*", re.IGNORECASE)
_DENIAL = re.compile(r"\b(?:not|never|no|wrong|incorrect|cannot)\b|n't\b", re.IGNORECASE)
_REASON = re.compile(r"[,;.]?\s+(?:because|since)\b.*", re.IGNORECASE | re.DOTALL)


def _readings(given: str) -> Iterator[str]:
    """Yield an answer, without the sentence around it: "There are 5" is also read as "5"."""
    yield given
    for _ in range(4):
        before = given
        given = _THEREFORE.sub("", given)
        if (match := _SENTENCE.fullmatch(given)) and not _DENIAL.search(match.group("lead")):
            given = undress(match.group("value"))
        given = undress(_REASON.sub("", given))
        if given == before or not given:
            return
        yield given
