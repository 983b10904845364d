"""Clock times and ratios: numbers joined by colons, compared part by part."""

from __future__ import annotations

import re
from fractions import Fraction

from ovlt.reward.numbers import number

_MERIDIEM = r"(?P<half>[ap])\.?\s?m\b\.?"
_CLOCK = re.compile(
    rf"(?P<hour>\d{{1,2}})(?:[:.](?P<minute>\d{{2}})(?:[:.](?P<second>\d{{2}}))?)?\s*{_MERIDIEM}"
    r"|(?P<hour_only>\d{1,2})\s*o'\s*clock",
    re.IGNORECASE,
)
_COLONS = re.compile(r"[^:]+(?::[^:]+){1,5}")


def _clock(text: str) -> tuple[int, int, int, str] | None:
    """Return hour, minute, second and "a", "p" or "" of "9:30 AM", "9 p.m.", "3 o'clock"."""
    match = _CLOCK.fullmatch(text)
    if match is None:
        return None
    hour = int(match.group("hour") or match.group("hour_only"))
    minute, second = int(match.group("minute") or 0), int(match.group("second") or 0)
    return hour, minute, second, (match.group("half") or "").lower()


def _parts(text: str) -> list[Fraction] | None:
    """Return the numbers of "9:30", "1 : 2 : 3" or "1 to 2"; None for other text."""
    text = re.sub(r"(?<=\d)\s+to\s+(?=\d)", ":", text)
    if not _COLONS.fullmatch(text):
        return None
    values = [number(part) for part in text.split(":")]
    return None if any(value is None for value in values) else [v for v in values if v is not None]


def _hours(hour: int, half: str) -> set[int]:
    """Return the hours of the day that may be meant."""
    if not half:
        return {hour, (hour + 12) % 24} if 0 < hour <= 12 else {hour}
    return {hour % 12 + (12 if half == "p" else 0)} if hour <= 12 else {hour}


def compare_clock(given: str, truth: str) -> tuple[bool, str] | None:
    """Compare two times or ratios; None unless the ground truth, or both with a.m., is one."""
    clocks = _clock(given), _clock(truth)
    if clocks == (None, None):
        if ":" not in given and ":" not in truth:
            return None
        left, right = _parts(given), _parts(truth)
        if left is None and right is None:
            return None
        return left == right, "ratio or time"
    times = []
    for clock, text in zip(clocks, (given, truth), strict=True):
        if clock is None:
            parts = _parts(text)
            if parts is None or len(parts) > 3 or any(p.denominator != 1 for p in parts):
                return False, "time"
            hour, minute, second = [int(p) for p in (*parts, Fraction(0))[:3]]
            clock = hour, minute, second, ""
        times.append(clock)
    (hour, *rest, half), (hour2, *rest2, half2) = times
    return rest == rest2 and bool(_hours(hour, half) & _hours(hour2, half2)), "clock time"
