"""Ask MathRuler, and refuse the expressions on which its sympy or its ``eval`` could run away."""

from __future__ import annotations

import importlib
import logging
import re
import warnings

Verdict = tuple[bool, str]  # right or wrong, and the reason

MAX_CHARS = 512  # longer answers are compared as text only: sympy's time grows with the length
_MAX_EXPRESSION = 128  # characters of either side, normalised, that sympy may see
# Bounds on the size of the polynomials that sympy may have to expand:
_MAX_POWERS = 8
_MAX_ROOTS = 6
_MAX_DEPTH = 20  # open brackets
_MAX_NESTED_POWER = 9  # product of the exponents of one nest: ((x+1)^3+1)^3 has 9
_MAX_GROUP_POWERS = 12  # sum of such products over all bracketed groups
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


def ask_mathruler(given: str, truth: str) -> Verdict:
    """Return MathRuler's verdict, or a refusal of text on which sympy could run away."""
    if max(len(given), len(truth)) > MAX_CHARS:
        return False, "too long"
    warm_up()
    from mathruler import grader
    from mathruler.math_normalize import normalize_answer

    # What sympy would see. Equal normal forms are a verdict that needs no sympy.
    forms = grader._normalize(given), grader._normalize(truth)
    if forms[0] == forms[1] or normalize_answer(given) == normalize_answer(truth):
        return True, "mathruler"
    if danger := _danger(forms[0]) or _danger(forms[1]):
        return False, f"refused: {danger}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the eval of "3(4)" warns once per answer
        return bool(grader.grade_answer(given, truth)), "mathruler"


def warm_up() -> None:
    """Import MathRuler and sympy now (about 0.6 s), so that no answer's time limit pays for it.

    Imported here and not at the top of the file: most answers are decided without them.
    """
    importlib.import_module("mathruler.grader")

    # pylatexenc warns on stderr of every malformed LaTeX command in an answer
    logging.getLogger("pylatexenc").setLevel(logging.CRITICAL)


def _danger(expression: str) -> str | None:
    """Return why sympy could run away on a normalised expression; None if nothing says so."""
    for name, pattern in _REFUSED:
        if pattern.search(expression):
            return name
    if len(expression) > _MAX_EXPRESSION:
        return "long expression"
    if expression.count("^") > _MAX_POWERS or expression.count("sqrt") > _MAX_ROOTS:
        return "many powers"
    return _danger_of_powers(expression)


def _danger_of_powers(expression: str) -> str | None:
    """Return what is wrong with the brackets and exponents of an expression, in one pass."""
    open_groups = [1]  # the largest product of nested exponents inside each open bracket
    closed_group, sum_of_groups = 1, 0
    for at, char in enumerate(expression):
        if char in "([":
            open_groups.append(1)
            if len(open_groups) > _MAX_DEPTH:
                return "deep nesting"
        elif char in ")]":
            closed_group = open_groups.pop()
            if not open_groups:
                return "brackets"
            open_groups[-1] = max(open_groups[-1], closed_group)
        elif char == "^":
            power = _SMALL_POWER.match(expression, at)
            if power is None:
                return "exponent"
            is_group = at > 0 and expression[at - 1] in ")]"
            product = (closed_group if is_group else 1) * abs(int(power.group(1) or 1))
            open_groups[-1] = max(open_groups[-1], product)
            sum_of_groups += product if is_group else 0
    if len(open_groups) > 1:
        return "brackets"
    if open_groups[0] > _MAX_NESTED_POWER or sum_of_groups > _MAX_GROUP_POWERS:
        return "nested powers"
    return None
