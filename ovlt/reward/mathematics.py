"""Compare expressions, equations, sets and matrices by Math-Verify.

Its parser (latex2sympy2-extended) reads both sides without evaluating them. Two values are equal if
they agree to thirty digits at several points of their variables: exact where Math-Verify's own
comparison rounds, and bounded where its ``simplify`` is not. Equations are equal if their sides'
differences are proportional. What is left (unions, a relation against a set, solving) is decided
by Math-Verify's ``verify``.
"""

from __future__ import annotations

import functools
import importlib
import logging
import re
import threading
import zlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ovlt.reward.latex import MAX_CHARS, danger_in, to_latex

if TYPE_CHECKING:
    from sympy import Basic

Verdict = tuple[bool, str]  # right or wrong, and the reason

_DIGITS = 50  # of the evaluation
_POINTS = 6
_MAX_LOG = 20_000.0  # of the absolute value of a power, an exponential or a factorial
_MAX_NODES = 200
_MAX_NODES_TO_SOLVE = 40


# It warns that its limits in time are off; the worker that runs it has its own.
logging.getLogger("math_verify").setLevel(logging.CRITICAL)


class _Unknown(Exception):
    """An expression has no value here: it is outside a domain, too large, or not understood."""


def warm_up() -> None:
    """Import Math-Verify and build its parser now, about a second."""
    for text in ("x^2+1", r"\frac{1}{2}", "[1,2]"):
        _parse(to_latex(text))
    importlib.import_module("math_verify")


def compare(given: str, truth: str) -> Verdict:
    """Return whether two expressions are equal, and "mathematics" or why they are refused."""
    try:
        left, right = _parse(to_latex(given)), _parse(to_latex(truth))
    except ValueError as error:
        return False, f"refused: {error}"
    import mpmath

    with mpmath.workdps(_DIGITS):
        return _equal(left, right), "mathematics"


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


def compare_relations(relations: Sequence[str], other: str, *, is_or: bool) -> Verdict:
    """Return whether "x < 1 or x > 2", taken apart, describes the set or relation ``other``."""
    import sympy
    from sympy.core.relational import Relational

    try:
        parts, right = [_parse(to_latex(text)) for text in relations], _parse(to_latex(other))
    except ValueError as error:
        return False, f"refused: {error}"
    if not all(isinstance(part, Relational | sympy.And) and _is_small(part) for part in parts):
        return False, "one value against several"
    join = sympy.Union if is_or else sympy.Intersection
    left = join(*(part.as_set() for part in parts))
    if isinstance(right, Relational | sympy.And) and _is_small(right):
        right = right.as_set()
    return isinstance(right, sympy.Set) and _verified(left, right), "mathematics"


@functools.lru_cache(512)
def _parse(latex: str) -> Basic:
    """Return the unevaluated expression. Raises ValueError if there is none."""
    # Imported here and not at the top of the file: most answers are decided without them.
    from latex2sympy2_extended import latex2sympy
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig
    from sympy import Basic, MatrixBase, preorder_traversal

    config = ConversionConfig(lowercase_symbols=False)
    try:
        expression = latex2sympy(
            latex, is_real=True, normalization_config=None, conversion_config=config
        )
    except Exception:  # the parser raises plain Exception
        raise ValueError("syntax") from None
    if not isinstance(expression, Basic | MatrixBase):
        raise ValueError("syntax")
    nodes = 0
    for _ in preorder_traversal(expression):
        nodes += 1
        if nodes > _MAX_NODES:
            raise ValueError("long expression")
    return expression


def _equal(a: Basic, b: Basic) -> bool:
    import sympy
    from sympy.core.relational import Relational

    if isinstance(a, sympy.MatrixBase) or isinstance(b, sympy.MatrixBase):
        return (
            isinstance(a, sympy.MatrixBase)
            and isinstance(b, sympy.MatrixBase)
            and a.shape == b.shape
            and all(map(_equal, a.flat(), b.flat()))
        )
    if isinstance(a, sympy.Expr) and isinstance(b, sympy.Expr):
        return _same_value(a, b)
    if isinstance(a, Relational) and isinstance(b, Relational):
        return _same_relation(a, b) or _same_solutions(a, b) or _verified(a, b)
    if isinstance(a, Relational | sympy.And) and isinstance(b, Relational | sympy.And):
        return _same_solutions(a, b)
    if isinstance(a, sympy.Interval) and isinstance(b, sympy.Interval):
        ends = (a.left_open, a.right_open) == (b.left_open, b.right_open)
        return ends and _equal(a.start, b.start) and _equal(a.end, b.end)
    if isinstance(a, sympy.Tuple) and isinstance(b, sympy.Tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(a, sympy.FiniteSet) and isinstance(b, sympy.FiniteSet):
        return _same_elements(a.args, b.args)
    if isinstance(a, sympy.Expr) or isinstance(b, sympy.Expr):
        return False  # one value against a set or a relation
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
    from math_verify import verify
    from sympy import Rel

    if not _is_small(a) or not _is_small(b):
        return False
    if isinstance(a, Rel) and isinstance(b, Rel) and a.free_symbols != b.free_symbols:
        return False
    return bool(verify(b, a, timeout_seconds=None, allow_set_relation_comp=True))


def _same_solutions(a: Basic, b: Basic) -> bool:
    """Return whether two small relations in one and the same variable have the same solutions."""
    if len(a.free_symbols) != 1 or a.free_symbols != b.free_symbols:
        return False
    if not _is_small(a) or not _is_small(b):
        return False
    try:
        sets = a.as_set(), b.as_set()
    except Exception:  # sympy raises many kinds on what it cannot solve
        return False
    return _equal(*sets)


def _is_small(expression: Basic) -> bool:
    """Return whether sympy may simplify and solve an expression: few nodes, low powers."""
    from sympy import Expr, preorder_traversal

    nodes = list(preorder_traversal(expression))
    if len(nodes) > _MAX_NODES_TO_SOLVE:
        return False
    for node in nodes:
        if not isinstance(node, Expr):
            continue
        if node.is_Pow and _power_is_large(node):
            return False
        if not node.free_symbols:
            try:
                _evaluate(node, {})
            except (_Unknown, ValueError, ZeroDivisionError, OverflowError, TypeError):
                return False
    return True


def _power_is_large(power: Basic) -> bool:
    exponent = power.args[1]
    return bool(exponent.is_number) and abs(float(exponent.evalf(5))) > 9


def _same_value(a: Basic, b: Basic) -> bool:
    compared = 0
    for real in (True, False):  # complex values only if there are too few real ones
        for left, right in _values((a, b), real=real):
            if not _close(left, right):
                return False
            compared += 1
        if compared >= 2 or (compared and not _variables(a, b)):
            return True
    return False


def _same_relation(a: Basic, b: Basic) -> bool:
    """Return whether two relations of one kind have proportional differences of their sides."""
    from sympy import Eq, Ge, Gt, Le, Lt, Ne

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
    for values in _values((left, right, left2, right2), real=True):
        one, other = values[0] - values[1], values[2] - values[3]
        if one == 0 or other == 0:
            if one != other:
                return False
            continue
        quotient = one / other
        if ratio is not None and not _close(ratio, quotient):
            return False
        ratio, compared = quotient, compared + 1
    return compared >= 2 and (kind in (Eq, Ne) or bool(ratio * sign * sign2 > 0))


def _close(a: object, b: object) -> bool:
    import mpmath

    if a == b:  # both infinite, too
        return True
    if mpmath.isinf(a) or mpmath.isinf(b):
        return False
    difference = abs(a - b)
    scale = max(abs(a), abs(b))
    return bool(difference <= scale * mpmath.mpf(10) ** -30 or scale < mpmath.mpf(10) ** -42)


def _variables(*expressions: Basic) -> list[Basic]:
    symbols = {symbol for expression in expressions for symbol in expression.free_symbols}
    return sorted(symbols - _imaginary(symbols), key=str)


def _imaginary(symbols: set[Basic]) -> set[Basic]:
    """Return the symbol i, or j alone, which are the imaginary unit unless they count."""
    names = {str(symbol): symbol for symbol in symbols}
    if set(names) in ({"j"}, {"i", "j"}):
        return set(symbols)
    return {names["i"]} if "i" in names and not {"j", "k", "n"} & set(names) else set()


def _values(expressions: Sequence[Basic], *, real: bool) -> list[list[object]]:
    """Return the values of all expressions at points where each of them has one."""
    import mpmath

    symbols = {symbol for expression in expressions for symbol in expression.free_symbols}
    unit = _imaginary(symbols)
    variables = _variables(*expressions)
    rows = []
    for point in range(_POINTS if variables else 1):
        at = {symbol: _coordinate(str(symbol), point) for symbol in variables}
        at |= dict.fromkeys(unit, mpmath.mpc(0, 1))
        try:
            row = [_evaluate(expression, at) for expression in expressions]
        except (_Unknown, ValueError, ZeroDivisionError, OverflowError, TypeError):
            continue
        if variables and real and any(abs(mpmath.im(value)) > 1e-40 for value in row):
            continue
        rows.append(row)
    return rows


def _coordinate(name: str, point: int) -> object:
    """Return a number that looks random: positive at even points, negative at some odd ones."""
    import mpmath

    noise = zlib.crc32(f"{name}/{point}".encode()) / 2**32
    sign = -1 if point % 2 and noise > 0.3 else 1
    return sign * (mpmath.mpf(3 * point + 1) / 7 + mpmath.mpf(noise) * mpmath.sqrt(2))


def _evaluate(node: Basic, at: dict[Basic, object]) -> object:
    """Return the value of an unevaluated expression. Raises ``_Unknown`` and arithmetic errors."""
    import mpmath
    import sympy

    if node in at:
        return at[node]
    if node.is_Rational:
        return mpmath.mpf(node.p) / node.q
    if node.is_Float:
        return mpmath.mpf(str(node))
    if isinstance(node, sympy.NumberSymbol):
        return {"pi": +mpmath.pi, "E": +mpmath.e}[str(node)]
    if node is sympy.I:
        return mpmath.mpc(0, 1)
    if node is sympy.oo or node is -sympy.oo:
        return mpmath.inf if node is sympy.oo else -mpmath.inf
    if isinstance(node, sympy.core.function.AppliedUndef):
        # f(x) is an unknown: one value for each name and argument
        key = "/".join([node.func.__name__, *(str(_evaluate(arg, at)) for arg in node.args)])
        return _coordinate(key, 0)
    values = [_evaluate(arg, at) for arg in node.args]
    if isinstance(node, sympy.Add):
        return mpmath.fsum(values)
    if isinstance(node, sympy.Mul):
        return mpmath.fprod(values)
    if isinstance(node, sympy.Pow):
        return _power(values[0], values[1])
    function = _functions().get(type(node))
    if function is None:
        raise _Unknown
    return function(*values)


def _power(base: object, exponent: object) -> object:
    import mpmath

    if base == 0:
        if mpmath.re(exponent) <= 0:
            raise _Unknown
        return mpmath.mpf(0)
    if abs(exponent) * abs(mpmath.log(base)) > _MAX_LOG:
        raise _Unknown
    odd_root = _odd_root(base, exponent)
    return mpmath.power(base, exponent) if odd_root is None else odd_root


def _odd_root(base: object, exponent: object) -> object | None:
    """Return the real third (or fifth ...) root of a negative number, as a reader means it."""
    import mpmath

    if mpmath.im(base) != 0 or mpmath.im(exponent) != 0 or base > 0 or exponent == 0:
        return None
    inverse = 1 / exponent
    nearest = mpmath.nint(inverse)
    if nearest % 2 == 0 or abs(nearest) == 1 or abs(inverse - nearest) > 1e-40:
        return None
    return -mpmath.power(-mpmath.re(base), exponent)


@functools.cache
def _functions() -> dict[type, Callable[..., object]]:
    import mpmath
    import sympy

    def bounded(function: Callable[..., object], limit: float) -> Callable[..., object]:
        def call(*values: object) -> object:
            if any(abs(value) > limit for value in values):
                raise _Unknown
            return function(*values)

        return call

    def log(value: object, base: object = None) -> object:
        return mpmath.log(value) if base is None else mpmath.log(value) / mpmath.log(base)

    names = "sin cos tan cot sec csc asin acos atan sinh cosh tanh coth asinh acosh atanh".split()
    table = {getattr(sympy, name): bounded(getattr(mpmath, name), _MAX_LOG) for name in names}
    return table | {
        sympy.UnevaluatedExpr: lambda value: value,
        sympy.Abs: abs,
        sympy.log: log,
        sympy.exp: bounded(mpmath.exp, _MAX_LOG),
        sympy.factorial: bounded(mpmath.factorial, 1000),
        sympy.binomial: bounded(mpmath.binomial, 1000),
        sympy.floor: mpmath.floor,
        sympy.ceiling: mpmath.ceil,
        sympy.Max: lambda *values: max(values),
        sympy.Min: lambda *values: min(values),
    }
