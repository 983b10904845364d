"""Decide whether an answer is right.

MathRuler has the last word; the code here answers what MathRuler gets wrong or cannot survive.
``grade(answer, truth)`` tries, in this order:

1. equal text and plain integers, without importing sympy;
2. corrections of MathRuler's known wrong verdicts (skipped with ``parity=True``):
   option letters ("C.", "(C) 5", "Option C"), yes/no followed by a sentence, exact numbers
   ("10^2", "5 million", "2/4"; no float rounding), units (equal or left out, never converted),
   ranges, clock times and words (equal as text or wrong), tuples, lists and sets by element;
3. MathRuler's ``grade_answer``, unless sympy could run forever on the text
   (``ovlt.reward.symbolic``).

Conventions: a percentage equals both its number and its hundredth ("50%" is 50 and 0.5); there is
no tolerance, so "0.33" is not 1/3; "1, 2" and "\\{2, 1\\}" are unordered, "(1, 2)" and "[1, 2]" are
ordered. The guards bound the usual explosions; only a killable process bounds all of them
(``ovlt.reward.pool``).
"""

from __future__ import annotations

import re

from ovlt.reward.quantities import UNIT_WORD, elements, number, rewrite, split_name, split_unit
from ovlt.reward.symbolic import MAX_CHARS, Verdict, ask_mathruler

_SMALL_INT = re.compile(r"[+-]?(?:\d{1,15}|\d{1,3}(?:,\d{3}){1,4})")


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
        return _grade(answer, truth, depth=0)
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


def _grade(given: str, truth: str, depth: int) -> Verdict:
    given, truth = given.strip(), truth.strip()
    if truth.casefold() in ("", "nan"):
        return False, "no ground truth"
    if given.casefold() == truth.casefold():
        return True, "equal text"
    if max(len(given), len(truth)) > MAX_CHARS:
        return False, "too long"
    if _SMALL_INT.fullmatch(given) and _SMALL_INT.fullmatch(truth):
        return _as_int(given) == _as_int(truth), "integers"
    given, truth = _undress(given), _undress(truth)
    if not given:
        return False, "empty answer"
    if given.casefold() == truth.casefold():
        return True, "equal text"

    if option := _OPTION_TRUTH.fullmatch(truth):
        label = _option_label(given)
        return label == option.group(1).upper(), f"option {label}" if label else "no option letter"
    if truth.casefold() in _OPPOSITE:
        return _says(given, truth.casefold()), "yes or no"
    if verdict := _compare_words(given, truth):
        return verdict
    if verdict := _compare_clock(given, truth):
        return verdict

    given, truth = rewrite(given), rewrite(truth)
    given_name, given = split_name(given)
    truth_name, truth = split_name(truth)
    short = 0 < len(given_name) <= 2 and 0 < len(truth_name) <= 2
    if short and given_name != truth_name:  # "x = 5" is not "y = 5"
        return False, "another variable"
    if verdict := _compare_lists(given, truth, depth):
        return verdict
    return _compare_quantities(given, truth)


def _as_int(text: str) -> int:
    return int(text.replace(",", ""))


_WRAPPERS = [
    re.compile(pattern, re.DOTALL)
    for pattern in (
        r"\*\*([^*]+)\*\*",
        r"__([^_]+)__",
        r"\*([^*]+)\*",
        r"`+([^`]+)`+",
        r"\$+([^$]+)\$+",
        r"\\\((.+)\\\)",
        r"\\\[(.+)\\\]",
        r"\\(?:boxed|fbox|text|textbf|mathrm|mathbf)\s*\{([^{}]*(?:\{[^{}]*\}[^{}]*)*)\}",
        r"[\"\u201c]([^\"\u201c\u201d]+)[\"\u201d]",
        r"['\u2018]([^'\u2018\u2019]+)['\u2019]",
    )
]


def _undress(text: str) -> str:
    """Remove markdown, math delimiters, quotes and full stops that enclose the whole text."""
    for _ in range(6):  # wrappers may be nested; nobody nests six
        before = text
        text = text.strip().rstrip(".").strip() if text.strip(" .") else text.strip()
        for wrapper in _WRAPPERS:
            if whole := wrapper.fullmatch(text):
                text = whole.group(1)
        if text == before:
            break
    return re.sub(r"\s+", " ", text)


_OPTION_TRUTH = re.compile(r"[\[(]?([A-Za-z])[\])]?[.:]?")
_LEAD = (
    r"(?:so,? |thus,? |therefore,? )?(?:the )?(?:final |correct |best |right )*"
    r"(?:answer|option|choice)(?: is|:)*[ :]*(?:the )?(?:option |choice )?"
)
_LABEL = r"(?:\*\*|\$|\\text\{)?[\[(]?([A-Za-z])"
_OPTION = re.compile(
    # "C", "(C)", "C.", "C) 5", "C: 5", "Option C", "The answer is (C) 5"
    rf"{_LEAD}{_LABEL}(?:[\])}}.:*$]+.*)?|{_LABEL}(?:[\])}}.:*$]+.*)?",
    re.IGNORECASE | re.DOTALL,
)
_SECOND_OPTION = re.compile(
    r"[\[(][A-Z][\])]|(?:\bor|\band|[,;/&|])\s*[\[(]?[A-Z]\b(?!['\u2019])|(?<![A-Za-z0-9])[A-Z][.):]"
)


def _option_label(given: str) -> str | None:
    """Return the option letter of an answer in upper case; None for no letter or several."""
    match = _OPTION.fullmatch(given)
    if not match:
        return None
    which = 1 if match.group(1) else 2
    if _SECOND_OPTION.search(given[match.end(which) :].lstrip("])}.:*$ ")):
        return None
    return match.group(which).upper()


_OPPOSITE = {"yes": "no", "no": "yes", "true": "false", "false": "true"}


def _says(given: str, truth: str) -> bool:
    """Return whether an answer begins with the word ``truth`` and does not retract it at once."""
    match = re.fullmatch(
        r"(?:the answer is:? )?[*_]*(yes|no|true|false)[*_]*"
        r"(?:(?:\s*[.,;:!)\-\u2013\u2014]|\s+(?=(?:it|they|there|he|she|this|that|the)\b))(.*))?",
        given,
        re.IGNORECASE | re.DOTALL,
    )
    if not match or match.group(1).lower() != truth:
        return False
    rest = re.sub(r"^\W*(?:or|and)?\W*", "", (match.group(2) or "").casefold())
    return re.match(rf"{_OPPOSITE[truth]}\b\W*$", rest) is None


_WORD = re.compile(r"[^\W\d_]+(?:[ '\u2019\-][^\W\d_]+)*")
_NUMBER_WORDS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
    *("nineteen", "twenty"),
)


def _compare_words(given: str, truth: str) -> Verdict | None:
    """Compare words as text: MathRuler strips units out of them and lets their letters commute.

    None unless one side is made of words.
    """
    both = given.casefold(), truth.casefold()
    wordy = [_WORD.fullmatch(text) is not None for text in both]
    if all(wordy):
        return both[0] == both[1], "words"
    for word, other, is_word in zip(both, reversed(both), wordy, strict=True):
        if is_word and word in _NUMBER_WORDS:
            return number(other) == _NUMBER_WORDS.index(word), "number word"
        # three letters that neither sympy nor MathRuler could read as algebra
        if is_word and len(set(word) - {" "}) > 2 and word not in ("infinity", "sqrt"):
            return False, "words"
    return None


_CLOCK = re.compile(r"0?(\d{1,2}:\d{2}(?::\d{2})?)\s*(?:([ap])\.?\s?m\.?)?", re.IGNORECASE)


def _compare_clock(given: str, truth: str) -> Verdict | None:
    """Compare two clock times; None unless both sides are one."""
    times = _CLOCK.fullmatch(given), _CLOCK.fullmatch(truth)
    if times[0] is None or times[1] is None:
        return None
    parts = [(time.group(1).lstrip("0"), (time.group(2) or "").lower()) for time in times if time]
    return parts[0] == parts[1], "clock time"


_RANGE = re.compile(r"\d[\d.,]*[%°]?(?:\s*-\s*\d[\d.,]*[%°]?)+")
_MAX_UNORDERED = 8  # every pair may cost a sympy call


def _compare_lists(given: str, truth: str, depth: int) -> Verdict | None:
    """Compare lists element by element; None if neither side is a list."""
    given_list, truth_list = elements(given), elements(truth)
    if depth >= 2 or (given_list is None and truth_list is None):
        return None
    if given_list is None or truth_list is None:
        return False, "one value against several"
    (given_brackets, given_items), (truth_brackets, truth_items) = given_list, truth_list
    free = ("", "{}")
    unordered = given_brackets in free and truth_brackets in free
    if not unordered and given_brackets != truth_brackets:
        return False, "other brackets"
    if len(given_items) != len(truth_items):
        return False, "other number of values"
    if unordered and len(truth_items) <= _MAX_UNORDERED:
        unmatched = list(given_items)
        for expected in truth_items:
            equal = (item for item in unmatched if _grade(item, expected, depth + 1)[0])
            match = next(equal, None)
            if match is None:
                return False, "a value is missing"
            unmatched.remove(match)
        return True, "same values"
    pairs = zip(given_items, truth_items, strict=True)
    return all(_grade(item, expected, depth + 1)[0] for item, expected in pairs), "values in order"


def _compare_quantities(given: str, truth: str) -> Verdict:
    given, given_unit = split_unit(given)
    truth, truth_unit = split_unit(truth)
    if given_unit and truth_unit and given_unit != truth_unit:
        return False, "another unit"
    if given.replace(" ", "").casefold() == truth.replace(" ", "").casefold():
        return True, "equal text"
    if _RANGE.fullmatch(given) or _RANGE.fullmatch(truth):
        return False, "range"
    value, expected = number(given), number(truth)
    if value is not None and expected is not None:
        equal = value == expected
        if given_unit != truth_unit and "%" in (given_unit, truth_unit):
            percent, plain = (value, expected) if given_unit == "%" else (expected, value)
            equal = equal or percent == plain * 100
        return equal, "numbers"
    if UNIT_WORD.search(given) or UNIT_WORD.search(truth):
        return False, "unit words"
    return ask_mathruler(given, truth)
