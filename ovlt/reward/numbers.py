"""Read written numbers exactly: digits, fractions, powers and words become a ``Fraction``.

``number`` is a small reader of arithmetic with bounded powers. Text with letters, roots or open
brackets is no number for it; such text is mathematics (``ovlt.reward.mathematics``). No two
different numbers are equal here, which is not so for floats.
"""

from __future__ import annotations

import re
from fractions import Fraction

from ovlt.reward.number_words import SCALES, number_of_words

_DECIMAL = re.compile(
    r"\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?"  # 1,234.5
    r"|\d{1,3}(?: \d{3})+(?![\d/])(?:\.\d+)?"  # 1 234.5
    r"|\d+(?:\.\d*)?|\.\d+"
)
_REPEATING = re.compile(r"(\d*)\.(\d*)(?:\\overline\s*\{(\d+)\}|\\dot\s*\{?(\d)\}?|\((\d+)\))")
_EXPONENT = re.compile(r"[eE]([+-]?\d{1,3})(?![\d.\w])")
_SCALE = re.compile(rf"\s*\b({'|'.join(SCALES)})s?\b", re.IGNORECASE)
_MAX_BITS = 4096  # of a numerator or denominator
_MAX_DEPTH = 20


class _NoNumber(Exception):
    """The text is something else than arithmetic on written numbers."""


class _Reader:
    """A recursive descent over one text; every method returns the value of what it consumed."""

    def __init__(self, text: str) -> None:
        self.text, self.at, self.depth = text, 0, 0
        self.brackets = 0  # open round ones, in which a comma separates two values

    def peek(self, token: str) -> bool:
        """Skip blanks, then consume ``token`` if it stands here."""
        while self.at < len(self.text) and self.text[self.at] == " ":
            self.at += 1
        if not self.text.startswith(token, self.at):
            return False
        self.at += len(token)
        return True

    def match(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        found = pattern.match(self.text, self.at)
        if found:
            self.at = found.end()
        return found

    def sum(self) -> Fraction:
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise _NoNumber
        value = self.product()
        while True:
            if self.peek("+"):
                value = _bounded(value + self.product())
            elif self.peek("-"):
                value = _bounded(value - self.product())
            else:
                self.depth -= 1
                return value

    def product(self) -> Fraction:
        value = self.signed()
        while True:
            if self.peek("*") or self.match(re.compile(r"x(?=\s*\d)")):
                value = _bounded(value * self.signed())
            elif self.peek("/"):
                value = _quotient(value, self.signed())
            elif self.text[self.at : self.at + 1] == "(":  # 3(4)
                value = _bounded(value * self.power())
            else:
                return value

    def signed(self) -> Fraction:
        if self.peek("-"):
            return -self.signed()
        if self.peek("+"):
            return self.signed()
        return self.power()

    def power(self) -> Fraction:
        base = self.atom()
        if not self.peek("^"):
            return base
        if self.peek("{"):
            exponent = self.sum()
            self.expect("}")
        else:
            exponent = self.signed()
        if exponent.denominator != 1 or (base == 0 and exponent <= 0):
            raise _NoNumber
        size = max(base.numerator.bit_length(), base.denominator.bit_length())
        if abs(exponent) > _MAX_BITS or size * abs(exponent) > _MAX_BITS:
            raise _NoNumber
        return base ** int(exponent)

    def atom(self) -> Fraction:
        if self.peek("("):
            self.brackets += 1
            value = self.sum()
            self.expect(")")
            self.brackets -= 1
            return value
        if self.peek("{"):
            value = self.sum()
            self.expect("}")
            return value
        if self.peek("\\frac"):
            return self.fraction()
        if repeating := self.match(_REPEATING):
            return _repeating(repeating)
        digits = self.match(_DECIMAL)
        if (
            digits is None
            or len(digits.group()) > 1000
            or (self.brackets and "," in digits.group())
        ):
            raise _NoNumber
        value = Fraction(re.sub(r"[ ,]", "", digits.group()).rstrip(".") or "0")
        if exponent := self.match(_EXPONENT):
            return value * Fraction(10) ** int(exponent.group(1))
        while scale := self.match(_SCALE):
            value *= SCALES[scale.group(1).lower()]
        return self.mixed(value) if digits.group().isdigit() else value

    def mixed(self, whole: Fraction) -> Fraction:
        """Add the fraction of "1 1/2" or of "1\\frac{1}{2}" to its whole number."""
        if match := self.match(re.compile(r"\s+(\d+)\s*/\s*(\d+)(?![\d.])")):
            return whole + _quotient(Fraction(match.group(1)), Fraction(match.group(2)))
        if self.match(re.compile(r"\s*\\frac")):
            return whole + self.fraction()
        return whole

    def fraction(self) -> Fraction:
        """Return the value of what follows ``\\frac``."""
        parts = []
        for _ in range(2):
            if self.peek("{"):
                parts.append(self.sum())
                self.expect("}")
            elif digit := self.match(re.compile(r"\d")):  # \frac12
                parts.append(Fraction(digit.group()))
            else:
                raise _NoNumber
        return _quotient(parts[0], parts[1])

    def expect(self, token: str) -> None:
        if not self.peek(token):
            raise _NoNumber


def _bounded(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > 2 * _MAX_BITS:
        raise _NoNumber
    return value


def _quotient(top: Fraction, bottom: Fraction) -> Fraction:
    if bottom == 0:
        raise _NoNumber
    return _bounded(top / bottom)


def _repeating(match: re.Match[str]) -> Fraction:
    whole, fixed = match.group(1) or "0", match.group(2)
    period = next(group for group in match.groups()[2:] if group)
    shift = 10 ** len(fixed)
    return Fraction(int(whole + fixed), shift) + Fraction(
        int(period), shift * (10 ** len(period) - 1)
    )


def number(text: str) -> Fraction | None:
    """Return the exact value of a written number or of arithmetic on some; else None."""
    text = text.strip()
    if not any(char.isdigit() for char in text):
        return number_of_words(text)
    if ordinal := re.fullmatch(r"(\d+)(?:st|nd|rd|th)", text):
        return Fraction(ordinal.group(1))
    reader = _Reader(text)
    try:
        value = reader.sum()
    except (_NoNumber, ValueError):
        return None
    return value if not text[reader.at :].strip() else None
