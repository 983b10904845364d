"""Text and numbers as the report shows them."""

from __future__ import annotations

import unicodedata

DASH = "\u2013"  # in place of a missing number
# Unicode categories that a reader cannot see: control, format, surrogate, private use, unassigned,
# line separator, paragraph separator.
_INVISIBLE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def visible(text: str) -> str:
    """Return ``text`` with every character spelled out that a reader cannot see.

    Those are control, bidi, zero-width, surrogate and unassigned characters. U+202E becomes the
    eight characters ``<U+202E>`` in mathematical angle brackets. Line feeds and tabs stay; CR LF
    becomes LF. The result always encodes as UTF-8.
    """
    text = text.replace("\r\n", "\n")
    if text.isascii() and text.replace("\n", "").replace("\t", "").isprintable():
        return text
    return "".join(
        f"\u27e8U+{ord(char):04X}\u27e9"
        if char not in "\n\t" and unicodedata.category(char) in _INVISIBLE
        else char
        for char in text
    )


def cut(text: str, limit: int) -> str:
    """Return a label of at most ``limit`` characters."""
    return text if len(text) <= limit else text[: limit - 3] + "..."


def percent(value: float | None) -> str:
    """Return a share as percent with one decimal: 0.625 is 62.5."""
    return DASH if value is None else f"{value * 100:.1f}"


def signed(value: float | None, scale: float = 1.0, digits: int = 2) -> str:
    """Return ``value * scale`` with its sign, by a real minus; a rounded zero has no sign."""
    if value is None:
        return DASH
    text = f"{abs(value) * scale:.{digits}f}"
    if float(text) == 0:
        return text
    return ("\u2212" if value < 0 else "+") + text


def number_text(value: float | None) -> str:
    """Return ``format_number(value)``, or a dash for None."""
    return DASH if value is None else format_number(value)


def format_number(value: float, percent: bool = False) -> str:
    """Return three or four significant digits, short: 0.625, 1234, 12.5k, 3e-06; percent: 62.5."""
    if percent:
        return f"{value * 100:.4g}"
    size = abs(value)
    if size == 0 or 0.001 <= size < 1e4:
        return f"{value:.4g}" if size >= 1000 else f"{value:.3g}"
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if unit <= size < unit * 1e3:
            return f"{value / unit:.3g}{name}"
    return f"{value:.2g}"


def duration(seconds: float | None) -> str:
    """Return seconds as a person reads them: 42 s, 3 min 05 s, 2 h 07 min."""
    if seconds is None:
        return DASH
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
