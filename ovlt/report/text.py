"""Text and numbers as the report shows them."""

from __future__ import annotations

import unicodedata

_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}  # Unicode categories, see ``visible``


def visible(text: str) -> str:
    """``text`` with control, bidi, zero-width, surrogate and unassigned characters spelled out.

    U+202E becomes the eight characters ``<U+202E>`` in mathematical angle brackets. Line feeds and
    tabs stay; CR LF becomes LF. The result always encodes as UTF-8.
    """
    text = text.replace("\r\n", "\n")
    if text.isascii() and text.replace("\n", "").replace("\t", "").isprintable():
        return text
    return "".join(
        f"\u27e8U+{ord(char):04X}\u27e9"
        if char not in "\n\t" and unicodedata.category(char) in _UNSEEN
        else char
        for char in text
    )


def _percent(value: float | None) -> str:
    return "\u2013" if value is None else f"{value * 100:.1f}"


def signed(value: float | None, scale: float = 1.0, digits: int = 2) -> str:
    if value is None:
        return "\u2013"
    text = f"{abs(value) * scale:.{digits}f}"
    if float(text) == 0:
        return text
    return ("\u2212" if value < 0 else "+") + text


def _number(value: float | None) -> str:
    from ovlt.report.charts import format_number

    return "\u2013" if value is None else format_number(value)


def _span(seconds: float | None) -> str:
    """Seconds as a person reads them: 42 s, 3 min 05 s, 2 h 07 min."""
    if seconds is None:
        return "\u2013"
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
