"""Read written numbers exactly: digits, fractions, powers and words become a ``Fraction``.

``number`` is a small reader of arithmetic with bounded powers. Text with letters, roots or open
brackets is no number for it; such text is mathematics (``ovlt.reward.mathematics``). No two
different numbers are equal here, which is not so for floats.
"""

from __future__ import annotations

import re
from fractions import Fraction

_DECIMAL = re.compile(
    r"\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?"  # 1,234.5
    r"|\d{1,3}(?: \d{3})+(?![\d/])(?:\.\d+)?"  # 1 234.5
    r"|\d+(?:\.\d*)?|\.\d+"
)
_REPEATING = re.compile(r"(\d*)\.(\d*)(?:\\overline\s*\{(\d+)\}|\\dot\s*\{?(\d)\}?|\((\d+)\))")
_EXPONENT = re.compile(r"[eE]([+-]?\d{1,3})(?![\d.\w])")
_SCALES = {
    "dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9,
    "trillion": 10**12,
}  # fmt: skip
_SCALE = re.compile(rf"\s*\b({'|'.join(_SCALES)})s?\b", re.IGNORECASE)
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
            value *= _SCALES[scale.group(1).lower()]
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


_UNITS = {
    word: value
    for value, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
        "fifteen sixteen seventeen eighteen nineteen".split()
    )
}
_TENS = {
    word: 10 * value
    for value, word in enumerate(
        "twenty thirty forty fifty sixty seventy eighty ninety".split(), start=2
    )
}
_PARTS = {
    word: value
    for value, word in enumerate(
        "third fourth fifth sixth seventh eighth ninth tenth".split(), start=3
    )
} | {"half": 2, "halve": 2, "quarter": 4, "hundredth": 100, "thousandth": 1000}
_CHINESE_DIGITS = dict(zip("零〇一二三四五六七八九两", (0, 0, *range(1, 10), 2), strict=True))
_CHINESE_SCALES = {"十": 10, "百": 100, "千": 1000, "万": 10**4, "亿": 10**8, "萬": 10**4}


def number_of_words(text: str) -> Fraction | None:
    """Return the value of "twenty-one", "minus two thirds", "three and a half", "十五"; or None."""
    if text and all(char in _CHINESE_DIGITS or char in _CHINESE_SCALES for char in text):
        return _chinese(text)
    words = re.sub(r"(?<=[a-z])-(?=[a-z])", " ", text.casefold()).split()
    if not words or len(words) > 20:
        return None
    if words[0] in ("minus", "negative"):
        value = number_of_words(" ".join(words[1:]))
        return None if value is None or value < 0 else -value
    if "point" in words:
        at = words.index("point")
        whole, digits = _cardinal(words[:at]), [_UNITS.get(word, 10) for word in words[at + 1 :]]
        if whole is None or not digits or max(digits) > 9:
            return None
        return Fraction(f"{whole}.{''.join(map(str, digits))}")
    last = words[-1]
    part = _PARTS.get(last) or _PARTS.get(last.removesuffix("s"))
    if part is None:
        cardinal = _cardinal(words)
        return None if cardinal is None else Fraction(cardinal)
    whole = 0
    if "and" in words[1:-1] and (count := _cardinal(words[: words.index("and")])) is not None:
        whole, words = count, words[words.index("and") + 1 :]  # three and a half
    top = 1 if words[:-1] in ([], ["a"], ["an"]) and part in (2, 4) else _cardinal(words[:-1])
    if top is None or (len(words) == 1 and part not in (2, 4)):  # "third" is a place
        return None
    return whole + Fraction(top, part)


def _cardinal(words: list[str]) -> int | None:
    """Return the value of English words for a whole number; None if one of them is no such word."""
    if words[:1] in (["a"], ["an"]) and len(words) > 1:
        words = ["one", *words[1:]]
    total, group, room, scale_limit = 0, 0, 100, 10**15
    for at, word in enumerate(words):
        if word == "and" and 0 < at < len(words) - 1 and room == 100 and total + group > 0:
            continue
        if word in _UNITS and _UNITS[word] < room and (room == 100 or _UNITS[word] > 0):
            group, room = group + _UNITS[word], 0
        elif word in _TENS and room == 100:
            group, room = group + _TENS[word], 10
        elif word == "hundred" and 0 < group < 100:
            group, room = group * 100, 100
        elif word == "dozen" and 0 < group < 100:
            group, room = group * 12, 0
        elif _SCALES.get(word, 0) >= 1000 and group and _SCALES[word] < scale_limit:
            scale_limit = _SCALES[word]
            total, group, room = total + group * scale_limit, 0, 100
        else:
            return None
    return total + group if words else None


def _chinese(text: str) -> Fraction | None:
    """Return the value of Chinese numerals: 三, 十五, 二百零三, 三万五千."""
    if all(char in _CHINESE_DIGITS for char in text):  # digit by digit, as in 二〇二四
        return Fraction("".join(str(_CHINESE_DIGITS[char]) for char in text))
    total, section, digit = 0, 0, 0
    for char in text:
        if char in _CHINESE_DIGITS:
            digit = _CHINESE_DIGITS[char]
            continue
        scale = _CHINESE_SCALES[char]
        if scale >= 10**4:
            total, section, digit = (total + section + digit or 1) * scale, 0, 0
        else:
            section, digit = section + (digit or 1) * scale, 0
    return Fraction(total + section + digit)
