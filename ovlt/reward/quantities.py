"""Read and compare quantities: a number or an expression, and its unit, percent sign or currency.

A unit is equal or left out: "5 cm" is right for "5", "0.05 m" for "5 cm", "5 kg" is not. A
percentage equals both its number and its hundredth.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

from ovlt.reward.mathematics import Verdict
from ovlt.reward.mathematics import compare as compare_mathematics
from ovlt.reward.numbers import number
from ovlt.reward.units import PERCENT, Measure, parse_unit, split_unit


class Quantity(NamedTuple):
    """``value`` is None if ``body`` is no plain number."""

    body: str
    value: Fraction | None
    unit: Measure | None


_ABOUT = re.compile(
    r"(?:\\approx(?![A-Za-z])|\\sim(?![A-Za-z])|=|(?:about|approximately|approx\.?|around|roughly|"
    r"circa|a total of|exactly)(?![A-Za-z]))\s*",
    re.IGNORECASE,
)


def read_quantity(text: str) -> Quantity:
    """Return the body, value and unit of a text; the text itself and None where there is none."""
    text = _ABOUT.sub("", text.strip(), count=1) if _ABOUT.match(text.strip()) else text.strip()
    text = re.sub(r"^(?:negative|minus)\s+(?=[\d\\.])", "-", text, flags=re.IGNORECASE)
    if group := re.fullmatch(r"\\text\s*\{([^{}]*)\}", text):
        text = group.group(1).strip()
    if (value := number(text)) is not None:
        return Quantity(text, value, None)
    if compound := _compound(text):
        return compound
    body, unit = split_unit(text, lambda body: number(body) is not None)
    if unit and unit.powers == _DEGREE and _ANGLE.search(body):
        return Quantity(text, None, None)  # the degrees belong to the angle: sin 30°
    value = number(body) if unit else None
    return Quantity(body, value, unit)


_ANGLE = re.compile(r"(?<![a-z])(?:sin|cos|tan|cot|sec|csc)", re.IGNORECASE)
_PART = re.compile(
    r"\s*(?:,|(?<![A-Za-z])and(?![A-Za-z]))?\s*(?P<value>\d+(?:\.\d+)?(?:\s+\d+/\d+)?)\s*-?"
    r"(?P<unit>[A-Za-zµμ]+\.?|°|'|\"|小时|分钟|秒|米|厘米)"
)
_MINUTE_SIGNS = {"'": Fraction(1, 60), '"': Fraction(1, 3600)}
_DEGREE = (("degree", 1),)


def _compound(text: str) -> Quantity | None:
    """Return the sum of "3 hours 20 minutes", "5 ft 3 in", "30°15'"; None for other text."""
    at, total, powers, last = 0, Fraction(0), None, None
    count = 0
    while at < len(text):
        match = _PART.match(text, at)
        value = number(match.group("value")) if match else None
        if match is None or value is None or count > 4:
            return None
        sign = match.group("unit")
        if sign in _MINUTE_SIGNS and powers == _DEGREE:
            unit = Measure(_DEGREE, _MINUTE_SIGNS[sign])
        else:
            unit = parse_unit({"'": "foot", '"': "inch"}.get(sign, sign))
        if unit is None or (powers is not None and powers != unit.powers):
            return None
        if last is not None and unit.factor >= last:
            return None
        total, powers, last = total + value * unit.factor, unit.powers, unit.factor
        at, count = match.end(), count + 1
    if count == 1 and text[-1] in _MINUTE_SIGNS and last is not None:  # 5' are five feet
        return Quantity(text[:-1], total / last, Measure(powers or (), last))
    return Quantity(text, total, Measure(powers or ())) if count > 1 else None


def compare_quantities(given: Quantity, truth: Quantity) -> Verdict:
    """Return whether two quantities are equal; bodies that are no numbers are mathematics."""
    one, other = given.unit, truth.unit
    if one and other and one.powers != other.powers:
        return False, "another unit"
    if given.value is not None and truth.value is not None:
        return _same_values(given.value, truth.value, one, other)
    if one and other and one != other:
        return False, "another unit"
    if given.body == truth.body:
        return True, "equal text"
    return compare_mathematics(*(_as_latex(side) for side in (given, truth)))


def _same_values(
    left: Fraction, right: Fraction, one: Measure | None, other: Measure | None
) -> Verdict:
    """Compare two numbers whose units, if both are there, are of one kind."""
    if one and other and one != other:
        left, right = left * one.factor, right * other.factor
        # factors that hold π, as the degree's, are floats
        return abs(left - right) <= max(abs(left), abs(right)) * Fraction(1, 10**13), "units"
    equal = left == right
    if one != other and PERCENT in (one, other):
        percent, plain = (left, right) if one == PERCENT else (right, left)
        equal = equal or percent == plain * 100
    return equal, "numbers"


def _as_latex(quantity: Quantity) -> str:
    """Return a value that was read as an exact fraction, or the body as it is."""
    if quantity.value is None or abs(quantity.value.numerator) >= 10**30:
        return quantity.body
    return rf"\frac{{{quantity.value.numerator}}}{{{quantity.value.denominator}}}"


_PLAIN = r"[$€£]?\d[\d.,]*(?:\s*(?:%|°|\\?[A-Za-z]+\.?))?"
_RANGE = re.compile(
    rf"(?:from\s+|between\s+)?(?P<low>{_PLAIN})\s*(?:-+|(?<![A-Za-z])to(?![A-Za-z])|\\sim|~)\s*"
    rf"(?P<high>{_PLAIN}[^-+*/^=]*)|between\s+(?P<low2>{_PLAIN})\s+and\s+(?P<high2>{_PLAIN}.*)",
    re.IGNORECASE,
)


_DOTTED = re.compile(r"\d+(?:-\d+){2,}|\d+(?:\.\d+){2,}")


def compare_ranges(given: str, truth: str) -> Verdict | None:
    """Compare "2010-2011", or a date, end by end; None if neither side is a range."""
    if _DOTTED.fullmatch(given) or _DOTTED.fullmatch(truth):
        parts = [[part.lstrip("0") for part in re.split(r"[-.]", text)] for text in (given, truth)]
        return parts[0] == parts[1], "parts"
    ranges = [_range(text) for text in (given, truth)]
    if ranges == [None, None]:
        return None
    if ranges[0] is None or ranges[1] is None:
        return False, "range"
    ends = zip(ranges[0], ranges[1], strict=True)
    return all(compare_quantities(one, other)[0] for one, other in ends), "range"


def _range(text: str) -> tuple[Quantity, Quantity] | None:
    match = _RANGE.fullmatch(text)
    if match is None:
        return None
    low = read_quantity(match.group("low") or match.group("low2"))
    high = read_quantity(match.group("high") or match.group("high2"))
    if low.value is None or high.value is None:
        return None
    unit = low.unit or high.unit
    return low._replace(unit=unit), high._replace(unit=high.unit or unit)
