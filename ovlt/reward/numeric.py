"""Values of unevaluated sympy expressions at points, by mpmath and within limits."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import mpmath
import sympy

if TYPE_CHECKING:
    from sympy import Basic

Value = Any  # mpf or mpc: mpmath is not typed
DIGITS = 50  # of the evaluation
_POINTS = 6
_MAX_LOG = 20_000.0  # of the absolute value of a power, an exponential or a factorial


class _Unknown(Exception):
    """An expression has no value here: it is outside a domain, too large, or not understood."""


_NO_VALUE = (_Unknown, ValueError, ZeroDivisionError, OverflowError, TypeError)


def close(a: Value, b: Value) -> bool:
    """Return whether two values agree to thirty digits."""
    if a == b:  # both infinite, too
        return True
    if mpmath.isinf(a) or mpmath.isinf(b):
        return False
    difference = abs(a - b)
    scale = max(abs(a), abs(b))
    return bool(difference <= scale * mpmath.mpf(10) ** -30 or scale < mpmath.mpf(10) ** -42)


def variables(*expressions: Basic) -> list[Basic]:
    """Return the symbols that stand for numbers, sorted by name."""
    symbols = {symbol for expression in expressions for symbol in expression.free_symbols}
    return sorted(symbols - _imaginary(symbols), key=str)


def _imaginary(symbols: set[Basic]) -> set[Basic]:
    """Return the symbol i, or j alone, which are the imaginary unit unless they count."""
    names = {str(symbol): symbol for symbol in symbols}
    if set(names) in ({"j"}, {"i", "j"}):
        return set(symbols)
    return {names["i"]} if "i" in names and not {"j", "k", "n"} & set(names) else set()


def has_value(expression: Basic) -> bool:
    """Return whether an expression without variables has a value within the limits."""
    try:
        _evaluate(expression, {}, real=False)
    except _NO_VALUE:
        return False
    return True


def value_rows(expressions: Sequence[Basic], *, real: bool) -> list[list[Value]]:
    """Return the values of all expressions at points where each of them has one.

    With ``real``, points at which any part of an expression is complex are left out.
    """
    symbols = {symbol for expression in expressions for symbol in expression.free_symbols}
    unit = _imaginary(symbols)
    free = variables(*expressions)
    rows: list[list[Value]] = []
    for point in range(_POINTS if free else 1):
        at = {symbol: _coordinate(str(symbol), point) for symbol in free}
        at |= dict.fromkeys(unit, mpmath.mpc(0, 1))
        try:
            row = [
                _evaluate(expression, at, real=real and bool(free)) for expression in expressions
            ]
        except _NO_VALUE:
            continue
        rows.append(row)
    return rows


def _coordinate(name: str, point: int) -> Value:
    """Return a number that looks random: positive at even points, negative at some odd ones."""
    noise = zlib.crc32(f"{name}/{point}".encode()) / 2**32
    sign = -1 if point % 2 and noise > 0.3 else 1
    return sign * (mpmath.mpf(3 * point + 1) / 7 + mpmath.mpf(noise) * mpmath.sqrt(2))


def _evaluate(node: Basic, at: dict[Basic, Value], *, real: bool) -> Value:
    """Return the value of an unevaluated expression. Raises ``_Unknown`` and arithmetic errors."""
    value = _value(node, at, real=real)
    if real and mpmath.im(value) != 0:
        raise _Unknown
    return value


def _value(node: Basic, at: dict[Basic, Value], *, real: bool) -> Value:
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
        key = "/".join(
            [node.func.__name__, *(str(_evaluate(arg, at, real=real)) for arg in node.args)]
        )
        return _coordinate(key, 0)
    values = [_evaluate(arg, at, real=real) for arg in node.args]
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


def _power(base: Value, exponent: Value) -> Value:
    if base == 0:
        if mpmath.re(exponent) <= 0:
            raise _Unknown
        return mpmath.mpf(0)
    if abs(exponent) * abs(mpmath.log(base)) > _MAX_LOG:
        raise _Unknown
    odd_root = _odd_root(base, exponent)
    return mpmath.power(base, exponent) if odd_root is None else odd_root


def _odd_root(base: Value, exponent: Value) -> Value | None:
    """Return the real third (or fifth ...) root of a negative number, as a reader means it."""
    if mpmath.im(base) != 0 or mpmath.im(exponent) != 0 or base > 0 or exponent == 0:
        return None
    inverse = 1 / exponent
    nearest = mpmath.nint(inverse)
    if nearest % 2 == 0 or abs(nearest) == 1 or abs(inverse - nearest) > 1e-40:
        return None
    return -mpmath.power(-mpmath.re(base), exponent)


@functools.cache
def _functions() -> dict[type, Callable[..., Value]]:
    def bounded(function: Callable[..., Value], limit: float) -> Callable[..., Value]:
        def call(*values: Value) -> Value:
            if any(abs(value) > limit for value in values):
                raise _Unknown
            return function(*values)

        return call

    def log(value: Value, base: Value = None) -> Value:
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
