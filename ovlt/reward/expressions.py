"""Expressions, relations and sets that Math-Verify's parser reads, and whether two are equal."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import mpmath
import sympy
from latex2sympy2_extended import latex2sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig
from math_verify import verify
from sympy import Basic, Eq, Expr, Ge, Gt, Le, Lt, MatrixBase, Ne, preorder_traversal
from sympy.core.relational import Relational

from ovlt.reward.numeric import DIGITS, close, has_value, value_rows, variables

_MAX_NODES = 200
_MAX_NODES_TO_SOLVE = 40


def equal(given: str, truth: str) -> bool:
    """Return whether two expressions in LaTeX are equal. Raises ValueError if one is refused."""
    left, right = parse(given), parse(truth)
    with mpmath.workdps(DIGITS):
        return _equal(left, right)


def describe(relations: Sequence[str], other: str, *, is_or: bool) -> bool:
    """Return whether relations joined by "or" or "and" have the solutions of a set or relation.

    All in LaTeX. Raises ValueError if one of them is refused.
    """
    parts, right = [parse(text) for text in relations], parse(other)
    with mpmath.workdps(DIGITS):
        if not all(isinstance(part, Relational | sympy.And) and is_small(part) for part in parts):
            return False
        join = sympy.Union if is_or else sympy.Intersection
        left = join(*(part.as_set() for part in parts))
        if isinstance(right, Relational | sympy.And) and is_small(right):
            right = right.as_set()
        return isinstance(right, sympy.Set) and _verified(left, right)


@functools.lru_cache(512)
def parse(latex: str) -> Basic | MatrixBase:
    """Return the unevaluated expression. Raises ValueError if there is none."""
    config = ConversionConfig(lowercase_symbols=False)
    try:
        expression = latex2sympy(
            latex, is_real=True, normalization_config=None, conversion_config=config
        )
    except Exception:  # the parser raises plain Exception
        raise ValueError("syntax") from None
    if not isinstance(expression, Basic | MatrixBase):
        raise ValueError("syntax")
    if next(itertools.islice(preorder_traversal(expression), _MAX_NODES, None), None) is not None:
        raise ValueError("long expression")
    return expression


def _equal(a: Basic | MatrixBase, b: Basic | MatrixBase) -> bool:
    if isinstance(a, MatrixBase) or isinstance(b, MatrixBase):
        both = isinstance(a, MatrixBase) and isinstance(b, MatrixBase) and a.shape == b.shape
        return both and all(map(_equal, a.flat(), b.flat()))
    if isinstance(a, Expr) or isinstance(b, Expr):  # one value is no set and no relation
        return isinstance(a, Expr) and isinstance(b, Expr) and _same_value(a, b)
    if isinstance(a, Relational) and isinstance(b, Relational):
        return _same_relation(a, b) or _same_solutions(a, b) or _verified(a, b)
    if isinstance(a, Relational | sympy.And) and isinstance(b, Relational | sympy.And):
        return _same_solutions(a, b)
    return _equal_sets(a, b)


def _equal_sets(a: Basic, b: Basic) -> bool:
    if isinstance(a, sympy.Interval) and isinstance(b, sympy.Interval):
        ends = (a.left_open, a.right_open) == (b.left_open, b.right_open)
        return ends and _equal(a.start, b.start) and _equal(a.end, b.end)
    if isinstance(a, sympy.Tuple) and isinstance(b, sympy.Tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(a, sympy.FiniteSet) and isinstance(b, sympy.FiniteSet):
        return _same_elements(a.args, b.args)
    return _verified(a, b)


def _same_elements(a: Sequence[Basic], b: Sequence[Basic]) -> bool:
    rest = list(b)
    for item in a:
        match = next((other for other in rest if _equal(item, other)), None)
        if match is None:
            return False
        rest.remove(match)
    return not rest


def _verified(a: Basic, b: Basic) -> bool:
    """Return Math-Verify's verdict on small sets and relations whose numbers are harmless."""
    if not is_small(a) or not is_small(b):
        return False
    if isinstance(a, Relational) and isinstance(b, Relational) and a.free_symbols != b.free_symbols:
        return False
    return bool(verify(b, a, timeout_seconds=None, allow_set_relation_comp=True))


def _same_solutions(a: Basic, b: Basic) -> bool:
    """Return whether two small relations in one and the same variable have the same solutions."""
    if len(a.free_symbols) != 1 or a.free_symbols != b.free_symbols:
        return False
    if not is_small(a) or not is_small(b):
        return False
    try:
        sets = a.as_set(), b.as_set()
    except Exception:  # sympy raises many kinds on what it cannot solve
        return False
    return _equal(*sets)


def is_small(expression: Basic) -> bool:
    """Return whether sympy may simplify and solve an expression: few nodes, low powers."""
    nodes = list(preorder_traversal(expression))
    if len(nodes) > _MAX_NODES_TO_SOLVE:
        return False
    for node in nodes:
        if not isinstance(node, Expr):
            continue
        if node.is_Pow and _power_is_large(node):
            return False
        if not node.free_symbols and not has_value(node):
            return False
    return True


def _power_is_large(power: Basic) -> bool:
    exponent = power.args[1]
    return bool(exponent.is_number) and abs(float(exponent.evalf(5))) > 9


def _same_value(a: Basic, b: Basic) -> bool:
    compared = 0
    for real in (True, False):  # complex values only if there are too few real ones
        for left, right in value_rows((a, b), real=real):
            if not close(left, right):
                return False
            compared += 1
        if compared >= 2 or (compared and not variables(a, b)):
            return True
    return False


def _same_relation(a: Basic, b: Basic) -> bool:
    """Return whether two relations of one kind have proportional differences of their sides."""
    flipped = {Lt: Gt, Le: Ge}
    sides = []
    for relation in (a, b):
        kind = type(relation)
        sign = -1 if kind in flipped else 1
        sides.append((flipped.get(kind, kind), sign, relation.args))
    (kind, sign, (left, right)), (kind2, sign2, (left2, right2)) = sides
    if kind is not kind2 or kind not in (Eq, Ne, Gt, Ge):
        return False
    ratio = None
    compared = 0
    for values in value_rows((left, right, left2, right2), real=True):
        one, other = values[0] - values[1], values[2] - values[3]
        if one == 0 or other == 0:
            if one != other:
                return False
            continue
        quotient = one / other
        if ratio is not None and not close(ratio, quotient):
            return False
        ratio, compared = quotient, compared + 1
    return compared >= 2 and (kind in (Eq, Ne) or bool(ratio * sign * sign2 > 0))
