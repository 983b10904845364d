"""Take an answer apart: its name, its elements, its ends."""

from __future__ import annotations

import re
from typing import NamedTuple

_SEPARATOR = re.compile(
    r"(?P<open>\\\{|[(\[{])|(?P<close>\\\}|[)\]}])"
    r"|(?P<semicolon>;)|(?P<comma>,)"
    r"|(?P<word>\s*,?\s*(?:\\text\s*\{\s*(?:and|or)\s*\}|\\(?:and|or|lor|land|vee)(?![A-Za-z])"
    r"|(?<![A-Za-z])(?:and|or)(?![A-Za-z])|&|[和或与]))\s*",
    re.IGNORECASE,
)
_BRACKETS = {r"\{": "{", r"\}": "}"}


class Elements(NamedTuple):
    """The brackets of a list, two characters or "", and its elements."""

    brackets: str
    items: list[str]

    @property
    def ordered(self) -> bool:
        return self.brackets not in ("", "{}")


def elements(text: str) -> Elements | None:
    """Return the brackets and elements of "(a, b)", "[a, b)", "\\{a, b\\}", "a, b", "a and b".

    None for text that is not a list. Outside brackets "1,234" is one number.
    """
    if r"\begin" in text:  # a matrix
        return None
    brackets, inner = _outer_brackets(text)
    pieces: list[str] = []
    level = start = 0
    for match in _SEPARATOR.finditer(inner):
        kind = match.lastgroup
        level += (kind == "open") - (kind == "close")
        if level or kind in ("open", "close"):
            continue
        if kind == "comma" and not brackets and _is_thousands(inner, match.start()):
            continue
        piece = inner[start : match.start()]
        start = match.end()
        if piece.strip() or kind == "semicolon" or kind == "comma":
            pieces.append(piece.strip())
    pieces.append(inner[start:].strip())
    if len(pieces) > 2 and not pieces[-1]:
        pieces.pop()  # "1, 2, "
    if len(pieces) > 1 and (all(pieces) or brackets):
        return Elements(brackets, pieces)
    if brackets == "{}" and text.startswith("\\"):  # one element, or none
        return Elements(brackets, [piece for piece in pieces if piece])
    return None


def _is_thousands(text: str, at: int) -> bool:
    return bool(
        re.match(r",\d{3}(?!\d)", text[at:])
        and re.search(r"(?<![\d.])\d{1,3}(?:,\d{3})*$", text[:at])
    )


def _outer_brackets(text: str) -> tuple[str, str]:
    """Return the brackets around the whole text, "" without any, and what is inside."""
    level, first, inside = 0, "", 0
    for match in _SEPARATOR.finditer(text):
        kind, token = match.lastgroup, match.group()
        if kind not in ("open", "close"):
            if level == 0:
                return "", text
            continue
        token = token.strip()
        if kind == "open":
            if level == 0:
                if match.start() > 0:
                    return "", text
                first, inside = _BRACKETS.get(token, token), match.end()
            level += 1
        else:
            level -= 1
            if level == 0:
                if match.end() < len(text) or not first:
                    return "", text
                return first + _BRACKETS.get(token, token), text[inside : match.start()]
            if level < 0:
                return "", text
    return "", text


_POINT = re.compile(r"[A-Z](?:'|_\{?\w+\}?)?\s*(?=\(.*,.*\)$)")
_NAME = (
    r"\\?(?:sin|cos|tan|cot|sec|csc|log|ln)\s*\\?[^\W\d_]+|"
    r"(?:m\s*)?\\(?:angle|triangle|overline|vec|hat|bar|overrightarrow|text|arc|widehat)"
    r"(?![A-Za-z])\s*(?:\{[^{}]{1,40}\}|[A-Za-z0-9]{1,5})"
    r"|\|[A-Za-z\\{} ]{1,20}\|"
    r"|\\?[^\W\d_](?:[^\W\d_]|['\u2019 ]|\d(?![\d.]))*(?:_(?:\{[^{}]{1,20}\}|\w))?"
    r"'*(?:\^\{?-1\}?)?(?:\s*\([^()=]{1,20}\))?"
)
_NAMED = re.compile(
    rf"(?P<name>{_NAME})\s*(?::?(?<![<>!])=|\\approx(?![A-Za-z])|\\in(?![A-Za-z])|:=)\s*(?P<rest>.+)",
    re.DOTALL,
)
_EQUALS = re.compile(r"(?<![<>!:])=")


class Named(NamedTuple):
    """What an answer calls its value, "" if nothing, and the value in one or more forms."""

    name: str
    values: list[str]


def split_name(text: str) -> Named:
    """Return ("x", ["5"]) for "x = 5", ("A", ["25\\pi", "78.5"]) for "A = 25\\pi ≈ 78.5"."""
    match = _NAMED.fullmatch(text)
    if match is None:
        point = _POINT.match(text)
        name, rest = (point.group().strip(), text[point.end() :]) if point else ("", text)
    else:
        name, rest = match.group("name"), match.group("rest")
        if elements(rest) is None:
            rest = _EQUALS.split(rest)[-1]  # the last of a chain
    rest = re.sub(r"^\s*(?:\\approx|\\sim)(?![A-Za-z])\s*", "", rest)
    values = [part.strip() for part in re.split(r"\\approx(?![A-Za-z])", rest)]
    return Named(re.sub(r"^m\s*(?=\\angle)|\s+", "", name), values)


def is_equation(text: str) -> bool:
    """Return whether text is an equation or inequality whose left side is no mere name."""
    return bool(re.search(r"[<>]|\\(?:le|ge|ne)(?![A-Za-z])", text)) or (
        "=" in text and _NAMED.fullmatch(text) is None
    )
