r"""Pieces of text that several rules look for: ``\boxed``, numbers in words, the nearest option."""

from __future__ import annotations

from collections.abc import Sequence

_UNITS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
    "nineteen",
)  # fmt: skip
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_SCALES = {"billion": 10**9, "million": 10**6, "thousand": 1000}
_WORDS = (
    {word: i for i, word in enumerate(_UNITS)}
    | {word: 10 * i for i, word in enumerate(_TENS, 2)}
    | {"hundred": 100}
    | _SCALES
)


def without_thoughts(text: str) -> str:
    """Return what follows the last ``</think>``; the whole text if there is none."""
    return text.rpartition("</think>")[2]


def is_float(text: str) -> bool:
    """Whether Python reads the text as a float."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def boxed(text: str, start: str = "\\boxed{") -> list[str]:
    """Return the contents of every closed ``\\boxed{...}`` that is not inside another."""
    found: list[str] = []
    at = text.find(start)
    while at >= 0:
        begin, depth = at + len(start), 0
        for end in range(begin, len(text)):
            if text[end] == "{":
                depth += 1
            elif text[end] == "}":
                if depth == 0:
                    found.append(text[begin:end])
                    break
                depth -= 1
        else:
            return found
        at = text.find(start, end)
    return found


def distance(a: str, b: str) -> int:
    """Return the Levenshtein distance of two texts."""
    if len(a) < len(b):
        a, b = b, a
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            above = row[j]
            row[j] = min(above + 1, row[j - 1] + 1, diagonal + (x != y))
            diagonal = above
    return row[-1]


def nearest(text: str, options: Sequence[str]) -> str:
    """Return the first of the options with the smallest Levenshtein distance."""
    return min(options, key=lambda option: distance(text, option))


def number_in_words(text: str) -> int | float | None:
    """Return the number that a text spells, other words left out; None if it spells none.

    As word2number 1.1 reads: "twenty-one squares" is 21, "one hundred" is 100, "21 squares" none,
    and a scale word may stand only once and in falling order.
    """
    words = text.replace("-", " ").lower()
    if words.isdigit():
        return int(words)
    named = [word for word in words.split() if word in _WORDS or word == "point"]
    if not named or any(named.count(word) > 1 for word in (*_SCALES, "point")):
        return None
    at = named.index("point") if "point" in named else len(named)
    whole = _whole_number(named[:at])
    return None if whole is None else whole + _decimals(named[at + 1 :])


def _decimals(words: list[str]) -> int | float:
    """Return 0.25 for "two five"; 0 if one of them is no digit."""
    if not words or any(word not in _UNITS[:10] for word in words):
        return 0
    return float("0." + "".join(str(_WORDS[word]) for word in words))


def _whole_number(words: list[str]) -> int | None:
    """Return the number before the point, 0 for no words; None if it is malformed.

    What follows the last scale is added, and where nothing does, what follows the scale before it,
    so that "two million five thousand" is 2,006,005: the original's sum, and so the verdict's.
    """
    if len(words) < 2:
        return _WORDS[words[0]] if words else 0
    places = {words.index(word): value for word, value in _SCALES.items() if word in words}
    if list(places) != sorted(places):
        return None
    parts: list[int | None] = []
    begin = 0
    for place, value in places.items():
        count = _below_thousand(words[begin:place])
        parts.append(None if count is None else count * value)
        begin = place + 1
    followed = [place for place in places if place < len(words) - 1]
    if followed or not places:
        parts.append(_below_thousand(words[followed[-1] + 1 if followed else 0 :]))
    return None if None in parts else sum(part for part in parts if part is not None)


def _below_thousand(words: list[str]) -> int | None:
    """Two hundred and thirty one: a multiplier, a hundred, tens, and ones; None for no words."""
    numbers = [_WORDS[word] for word in words]
    if not numbers:
        return None
    if len(numbers) == 4:
        return numbers[0] * numbers[1] + numbers[2] + numbers[3]
    if len(numbers) == 3:
        return numbers[0] * numbers[1] + numbers[2]
    if len(numbers) == 2:
        return numbers[0] * numbers[1] if 100 in numbers else numbers[0] + numbers[1]
    return numbers[0]
