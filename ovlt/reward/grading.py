"""Is this answer right? MathRuler decides, behind guards for what it cannot survive or gets wrong.

``grade(given, truth)`` asks, in this order:

1. equal text, plain integers, plain words: decided here, without importing sympy;
2. corrections of MathRuler's known wrong verdicts (skipped with ``parity=True``):
   option letters ("C.", "(C) 5", "Option C"), yes/no with a sentence behind it, exact numbers
   ("10^2", "5 million", "2/4"; no float rounding), units (equal or left out, never converted),
   ranges, clock times and words (equal as text or wrong), tuples, lists and sets by element;
3. MathRuler's ``grade_answer``, unless the text could keep sympy busy for ever.

Conventions: a percentage equals both its number and its hundredth ("50%" is 50 and 0.5); there is
no tolerance, so "0.33" is not 1/3; "1, 2" and "\\{2, 1\\}" are unordered, "(1, 2)" and "[1, 2]" are
ordered. The guards bound the usual explosions; only a killable process bounds all of them
(``ovlt.reward.RewardPool``).
"""

from __future__ import annotations

import logging
import re
import warnings

from ovlt.reward.quantities import UNIT_WORD, elements, number, rewrite, split_name, split_unit

MAX_CHARS = 512  # longer answers are compared as text only: sympy's time grows with the length

Verdict = tuple[bool, str]


def grade(response_answer: str, truth: str, *, parity: bool = False) -> Verdict:
    """Whether ``response_answer`` is the answer ``truth``, and in a few words why.

    ``parity=True`` gives plain MathRuler or case-insensitive equality, as the released reward does;
    only the length cap and the refusal of explosive expressions stay. Never raises: a non-string is
    wrong. May take seconds of sympy on hostile text, so call it in a killable process.
    """
    if not isinstance(response_answer, str) or not isinstance(truth, str):
        return False, "not text"
    try:
        if parity:
            return _grade_parity(response_answer.strip(), truth.strip())
        return _grade(response_answer, truth, depth=0)
    except Exception as error:  # hostile text: a fault of any grader below is a wrong answer
        return False, f"error: {type(error).__name__}"


def extract_answer(response: str, *, parity: bool = False) -> str | None:
    """The text of the last closed ``<answer>...</answer>``, stripped; None where there is none.

    ``parity=True`` takes the first pair that lies on one line, as the released reward does.
    """
    if not isinstance(response, str):
        return None
    if parity:
        found = re.search(r"<answer>(.*?)</answer>", response)
        return found.group(1).strip() if found else None
    start = response.rfind("<answer>", 0, max(response.rfind("</answer>"), 0))
    if start < 0:
        return None
    start += len("<answer>")
    return response[start : response.find("</answer>", start)].strip()


def warm_up() -> None:
    """Import MathRuler and sympy now (about 0.6 s), so that no timed answer pays for it."""
    from mathruler import grader  # noqa: F401

    # it warns on stderr of every malformed LaTeX command of an answer
    logging.getLogger("pylatexenc").setLevel(logging.CRITICAL)


# --- The two ways to a verdict -------------------------------------------------------------------

_SMALL_INT = re.compile(r"[+-]?(?:\d{1,15}|\d{1,3}(?:,\d{3}){1,4})")


def _grade_parity(given: str, truth: str) -> Verdict:
    if given.casefold() == truth.casefold():
        return True, "equal text"
    if _SMALL_INT.fullmatch(given) and _SMALL_INT.fullmatch(truth):
        return _as_int(given) == _as_int(truth), "integers"
    return _mathruler(given, truth)


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

    if option := _TRUE_OPTION.fullmatch(truth):
        label = _option_label(given)
        return label == option.group(1).upper(), f"option {label}" if label else "no option letter"
    if truth.casefold() in _OPPOSITE:
        return _polar(given, truth.casefold()), "yes or no"
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


# --- Text: wrappers, option letters, yes and no, words, times -------------------------------------

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
    """Without markdown, math delimiters, quotes and full stops round the whole of it."""
    for _ in range(6):
        before = text
        text = text.strip().rstrip(".").strip() if text.strip(" .") else text.strip()
        for wrapper in _WRAPPERS:
            if whole := wrapper.fullmatch(text):
                text = whole.group(1)
        if text == before:
            break
    return re.sub(r"\s+", " ", text)


_TRUE_OPTION = re.compile(r"[\[(]?([A-Za-z])[\])]?[.:]?")
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
    """The one option letter that an answer names first, upper case; None if none, or several."""
    found = _OPTION.fullmatch(given)
    if not found:
        return None
    which = 1 if found.group(1) else 2
    if _SECOND_OPTION.search(given[found.end(which) :].lstrip("])}.:*$ ")):
        return None
    return found.group(which).upper()


_OPPOSITE = {"yes": "no", "no": "yes", "true": "false", "false": "true"}


def _polar(given: str, truth: str) -> bool:
    """Whether an answer opens with the word ``truth`` and does not take it back at once."""
    found = re.fullmatch(
        r"(?:the answer is:? )?[*_]*(yes|no|true|false)[*_]*"
        r"(?:(?:\s*[.,;:!)\-\u2013\u2014]|\s+(?=(?:it|they|there|he|she|this|that|the)\b))(.*))?",
        given,
        re.IGNORECASE | re.DOTALL,
    )
    if not found or found.group(1).lower() != truth:
        return False
    rest = re.sub(r"^\W*(?:or|and)?\W*", "", (found.group(2) or "").casefold())
    return re.match(rf"{_OPPOSITE[truth]}\b\W*$", rest) is None


_WORD = re.compile(r"[^\W\d_]+(?:[ '\u2019\-][^\W\d_]+)*")
_NUMBER_WORDS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
    *("nineteen", "twenty"),
)


def _compare_words(given: str, truth: str) -> Verdict | None:
    """Words are equal or wrong: MathRuler strips units out of them and lets letters commute."""
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
    times = _CLOCK.fullmatch(given), _CLOCK.fullmatch(truth)
    if times[0] is None or times[1] is None:
        return None
    parts = [(time.group(1).lstrip("0"), (time.group(2) or "").lower()) for time in times if time]
    return parts[0] == parts[1], "clock time"


# --- Lists and quantities ------------------------------------------------------------------------

_RANGE = re.compile(r"\d[\d.,]*[%°]?(?:\s*-\s*\d[\d.,]*[%°]?)+")
_MAX_UNORDERED = 8  # every pair may cost a sympy call


def _compare_lists(given: str, truth: str, depth: int) -> Verdict | None:
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
        left = list(given_items)
        for wanted in truth_items:
            match = next((item for item in left if _grade(item, wanted, depth + 1)[0]), None)
            if match is None:
                return False, "a value is missing"
            left.remove(match)
        return True, "same values"
    pairs = zip(given_items, truth_items, strict=True)
    return all(_grade(item, wanted, depth + 1)[0] for item, wanted in pairs), "values in order"


def _compare_quantities(given: str, truth: str) -> Verdict:
    given, given_unit = split_unit(given)
    truth, truth_unit = split_unit(truth)
    if given_unit and truth_unit and given_unit != truth_unit:
        return False, "another unit"
    if given.replace(" ", "").casefold() == truth.replace(" ", "").casefold():
        return True, "equal text"
    if _RANGE.fullmatch(given) or _RANGE.fullmatch(truth):
        return False, "range"
    value, wanted = number(given), number(truth)
    if value is not None and wanted is not None:
        equal = value == wanted
        if given_unit != truth_unit and "%" in (given_unit, truth_unit):
            percent, plain = (value, wanted) if given_unit == "%" else (wanted, value)
            equal = equal or percent == plain * 100
        return equal, "numbers"
    if UNIT_WORD.search(given) or UNIT_WORD.search(truth):
        return False, "unit words"
    return _mathruler(given, truth)


# --- MathRuler, and what must not reach sympy ----------------------------------------------------

_MAX_EXPRESSION = 128  # characters that sympy may see of either side
_MAX_POWERS, _MAX_NESTED_POWER, _MAX_GROUP_POWERS, _MAX_ROOTS, _MAX_DEPTH = 8, 9, 12, 6, 20
_REFUSED = [
    (name, re.compile(pattern))
    for name, pattern in (
        ("power", r"\*\*"),
        ("factorial", r"!"),
        # MathRuler evals "(truth)-(given)": "x)&(0" would be right for x+1
        ("syntax", r"[#&|~@;:<>=\\'\"`]"),
        ("large exponent", r"[\d.]e[+-]?\d{3}|\d_"),
        ("long number", r"[\d.]{31}"),
        ("long name", r"[^\W\d_]{31}"),
        # sympy and Python functions that MathRuler's two-letter rule lets through
        ("function", r"(?<![a-z])(?:all|eye|g?ff|fft|fu|hn\d|id|jn|li|ntt|rf|yn)(?![a-z])"),
    )
]
_SMALL_POWER = re.compile(
    r"\^(?:(-?\d)(?![\d.e^_])|-?\d?\.\d{1,2}(?![\d.e^_])|-?[^\W\d_](?![\w.(\[^]))"
)


def _blow_up(expression: str) -> str | None:
    """Why sympy could run away on a normalised expression; None when nothing says so."""
    for name, pattern in _REFUSED:
        if pattern.search(expression):
            return name
    if len(expression) > _MAX_EXPRESSION:
        return "long expression"
    if expression.count("^") > _MAX_POWERS or expression.count("sqrt") > _MAX_ROOTS:
        return "many powers"
    groups = [1]  # the largest product of nested exponents inside each open bracket
    closed, of_groups = 1, 0
    for at, char in enumerate(expression):
        if char in "([":
            groups.append(1)
            if len(groups) > _MAX_DEPTH:
                return "deep nesting"
        elif char in ")]":
            closed = groups.pop()
            if not groups:
                return "brackets"
            groups[-1] = max(groups[-1], closed)
        elif char == "^":
            power = _SMALL_POWER.match(expression, at)
            if power is None:
                return "exponent"
            is_group = at > 0 and expression[at - 1] in ")]"
            grown = (closed if is_group else 1) * abs(int(power.group(1) or 1))
            groups[-1] = max(groups[-1], grown)
            of_groups += grown if is_group else 0
    if len(groups) > 1:
        return "brackets"
    too_high = groups[0] > _MAX_NESTED_POWER or of_groups > _MAX_GROUP_POWERS
    return "nested powers" if too_high else None


def _mathruler(given: str, truth: str) -> Verdict:
    if max(len(given), len(truth)) > MAX_CHARS:
        return False, "too long"
    warm_up()
    from mathruler import grader
    from mathruler.math_normalize import normalize_answer

    # What sympy would be given; equality of the normal forms is a verdict before any danger.
    forms = grader._normalize(given), grader._normalize(truth)
    if forms[0] == forms[1] or normalize_answer(given) == normalize_answer(truth):
        return True, "mathruler"
    if danger := _blow_up(forms[0]) or _blow_up(forms[1]):
        return False, f"refused: {danger}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # eval of "3(4)" warns once per answer
        return bool(grader.grade_answer(given, truth)), "mathruler"
