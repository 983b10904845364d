"""Read numbers that are written in English or Chinese words."""

from __future__ import annotations

import re
from fractions import Fraction

SCALES = {
    "dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9,
    "trillion": 10**12,
}  # fmt: skip
ONES = {
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
        return _decimal(words, words.index("point"))
    part = _PARTS.get(words[-1]) or _PARTS.get(words[-1].removesuffix("s"))
    if part is not None:
        return _fraction(words, part)
    cardinal = _cardinal(words)
    return None if cardinal is None else Fraction(cardinal)


def _decimal(words: list[str], at: int) -> Fraction | None:
    """Return the value of "three point one four", whose "point" stands at ``at``."""
    whole, digits = _cardinal(words[:at]), [ONES.get(word, 10) for word in words[at + 1 :]]
    if whole is None or not digits or max(digits) > 9:
        return None
    return Fraction(f"{whole}.{''.join(map(str, digits))}")


def _fraction(words: list[str], part: int) -> Fraction | None:
    """Return the value of "two thirds" or "three and a half", whose last word names a part."""
    whole = 0
    if "and" in words[1:-1] and (count := _cardinal(words[: words.index("and")])) is not None:
        whole, words = count, words[words.index("and") + 1 :]
    if words[:-1] in ([], ["a"], ["an"]):  # a half; but "third" is a place
        top = 1 if part in (2, 4) or len(words) == 2 else None
    else:
        top = _cardinal(words[:-1])
    return None if top is None else whole + Fraction(top, part)


def _cardinal(words: list[str]) -> int | None:
    """Return the value of English words for a whole number; None if one of them is no such word."""
    if words[:1] in (["a"], ["an"]) and len(words) > 1:
        words = ["one", *words[1:]]
    total, limit, group = 0, 10**15, list[str]()
    for word in words:
        scale = SCALES.get(word, 0)
        if scale < 1000:
            group.append(word)
            continue
        count = _below_thousand(group)
        if not count or scale >= limit:
            return None
        total, limit, group = total + count * scale, scale, []
    rest = _below_thousand(group[1:] if total and group[:1] == ["and"] else group) if group else 0
    return None if rest is None or not words else total + rest


def _below_thousand(words: list[str]) -> int | None:
    """Return the value of "two hundred and five", "forty two", "three dozen"."""
    value, room = 0, 100  # what may be added is less than room
    for at, word in enumerate(words):
        if word in ONES and ONES[word] < room and (room == 100 or ONES[word] > 0):
            value, room = value + ONES[word], 0
        elif word in _TENS and room == 100:
            value, room = value + _TENS[word], 10
        elif word in ("hundred", "dozen") and 0 < value < 100:
            value, room = value * SCALES[word], 100 if word == "hundred" else 0
        elif word != "and" or room < 100 or value == 0 or at == len(words) - 1:
            return None
    return value if words else None


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
