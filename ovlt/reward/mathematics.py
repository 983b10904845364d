"""Compare expressions, equations, sets and matrices by Math-Verify.

Math-Verify's parser (latex2sympy2-extended) reads both sides without evaluating them
(``ovlt.reward.expressions``). Two values are equal if they agree to thirty digits at several points
of their variables: exact where Math-Verify's own comparison rounds, and bounded where its
``simplify`` is not. Equations are equal if their sides' differences are proportional. What is left
(unions, a relation against a set) is decided by Math-Verify's ``verify``.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Sequence

from ovlt.reward.latex import MAX_CHARS, danger_in, to_latex

Verdict = tuple[bool, str]  # right or wrong, and the reason

# It warns that its limits in time are off; the worker that runs it has its own.
logging.getLogger("math_verify").setLevel(logging.CRITICAL)


def warm_up() -> None:
    """Import Math-Verify and build its parser now, about a second."""
    for text in ("x^2+1", r"\frac{1}{2}", "[1,2]"):
        compare(text, text)


def compare(given: str, truth: str) -> Verdict:
    """Return whether two expressions are equal, and "mathematics" or why they are refused."""
    # Imported here and not at the top of the file: most answers are decided without sympy.
    from ovlt.reward import expressions

    try:
        return expressions.equal(to_latex(given), to_latex(truth)), "mathematics"
    except ValueError as error:
        return False, f"refused: {error}"


def compare_relations(relations: Sequence[str], other: str, *, is_or: bool) -> Verdict:
    """Return whether "x < 1 or x > 2", taken apart, describes the set or relation ``other``."""
    from ovlt.reward import expressions

    try:
        texts = [to_latex(text) for text in relations]
        return expressions.describe(texts, to_latex(other), is_or=is_or), "mathematics"
    except ValueError as error:
        return False, f"refused: {error}"


def ask_math_verify(given: str, truth: str) -> Verdict:
    """Return Math-Verify's own verdict, with its own extraction, within the limits of ``compare``.

    Its limits in time need the main thread; elsewhere there are none.
    """
    if given.strip() == truth.strip():
        return bool(truth.strip()), "equal text"
    if max(len(given), len(truth)) > 2 * MAX_CHARS:
        return False, "too long"
    if danger := danger_in(given) or danger_in(truth):
        return False, f"refused: {danger}"
    from math_verify import parse, verify

    is_main = threading.current_thread() is threading.main_thread()
    seconds = 2 if is_main else None
    sides = []
    for text in (truth, given):
        wrapped = text if re.search(r"\$|\\\(|\\\[|\\boxed", text) else f"${text}$"
        sides.append(parse(wrapped, parsing_timeout=seconds))
    return bool(verify(sides[0], sides[1], timeout_seconds=seconds)), "math_verify"
