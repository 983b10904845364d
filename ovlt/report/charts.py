"""Geometry of the report's figures: numbers in, coordinates and tick labels out, no markup.

Drawn here rather than by matplotlib: its SVG bakes colours in, so it cannot follow a dark theme or
be read out under the pointer, costs 30 to 80 kB a figure, and needs care to come out the same
twice. The template turns these dicts into SVG, so its autoescaping covers every label.
"""

from __future__ import annotations

import collections
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ovlt.report.text import visible

WIDTH, HEIGHT = 400, 210
LEFT, RIGHT, TOP, BOTTOM = 52, 388, 10, 178  # the plot area, in SVG units
MAX_POINTS = 800  # per line; more cannot be told apart
Series = Sequence[tuple[float, float | None]]  # (step, value); None is a gap


def line_chart(title: str, lines: dict[str, Series], *, percent: bool = False) -> dict[str, Any]:
    """One figure of lines over steps; a long line is drawn faint under its trailing mean."""
    values = [v for series in lines.values() for _, v in series if v is not None]
    figure = Figure(title, [s for series in lines.values() for s, _ in series], values, percent)
    for label, series in lines.items():
        window = len(series) // 20 if len(series) >= 60 else 0
        shown = thin(series)
        figure.add(
            label,
            shown,
            path=figure.path(shown),
            window=window,
            mean=figure.path(every(trailing_mean(series, window))) if window else "",
            dots=[figure.at(s, v) for s, v in shown if v is not None] if len(shown) < 30 else [],
        )
    return figure.finish()


def stacked_chart(title: str, layers: dict[str, Series]) -> dict[str, Any]:
    """Layers on top of each other, one column per step; all layers have the same steps."""
    layers = {label: every(series) for label, series in layers.items()}
    steps = [s for s, _ in next(iter(layers.values()))]
    columns = zip(*layers.values(), strict=True)
    totals = [math.fsum(max(v or 0.0, 0.0) for _, v in column) for column in columns]
    edges = [(a + b) / 2 for a, b in itertools.pairwise(steps)]
    edges = [steps[0] - 0.5, *edges, steps[-1] + 0.5]
    figure = Figure(title, edges, [0.0, *totals], whole_steps=(steps[0], steps[-1]))
    low = [0.0] * len(steps)
    for label, series in layers.items():
        top = [base + max(v or 0.0, 0.0) for base, (_, v) in zip(low, series, strict=True)]
        outline = [*_columns(edges, top), *reversed(_columns(edges, low))]
        area = "M" + "L".join("{},{}".format(*figure.at(s, v)) for s, v in outline) + "Z"
        figure.add(label, series, area=area)
        low = top
    return figure.finish()


def interval_chart(
    rows: Sequence[dict[str, Any]], *, signed: bool = False
) -> dict[str, Any] | None:
    """Accuracy of each stage with its interval, one row per stage; ``signed``: differences.

    ``rows``: ``{"label", "marks": {"greedy" | "sampled": (accuracy, low, high)}}``. Returns None
    when no row has a mark.
    """
    ends = [end for row in rows for mark in row["marks"].values() for end in mark]
    if not ends:
        return None
    longest = max(len(row["label"]) for row in rows)
    left, right, row_height = min(max(100, 24 + 7 * longest), 206), 428, 40
    if signed:
        ends.append(0.0)
    low, high, ticks = limits(min(ends), max(ends), percent=True, signed=signed)

    def x(value: float) -> float:
        return round(left + (value - low) / (high - low) * (right - left), 1)

    drawn = []
    for index, row in enumerate(rows):
        centre = TOP + row_height * (index + 0.5)
        marks = [
            {"slot": slot, "y": centre + offset, "x": x(value), "x1": x(start), "x2": x(end)}
            for slot, name, offset in ((0, "greedy", -8), (1, "sampled", 8))
            if name in row["marks"]
            for value, start, end in [row["marks"][name]]
        ]
        drawn.append({"label": cut(row["label"], 26), "y": centre, "marks": marks})
    bottom = TOP + row_height * len(rows)
    x_ticks = [
        {"at": x(t), "label": ("+" if signed and t > 0 else "") + format_number(t, percent=True)}
        for t in ticks
    ]
    return {
        "rows": drawn, "left": left, "right": right, "bottom": bottom, "x_ticks": x_ticks,
        "zero": x(0.0) if signed else None,
    }  # fmt: skip


def cut(text: str, most: int) -> str:
    """A label of at most ``most`` characters."""
    return text if len(text) <= most else text[: most - 3] + "..."


def format_number(value: float, percent: bool = False) -> str:
    """Three or four significant digits, short: 0.625, 1234, 12.5k, 3e-06; percent: 62.5."""
    if percent:
        return f"{value * 100:.4g}"
    size = abs(value)
    if size == 0 or 0.001 <= size < 1e4:
        return f"{value:.4g}" if size >= 1000 else f"{value:.3g}"
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if unit <= size < unit * 1e3:
            return f"{value / unit:.3g}{name}"
    return f"{value:.2g}"


class Figure:
    """The axes of one figure, and what has been drawn into it."""

    def __init__(
        self,
        title: str,
        steps: Sequence[float],
        values: Sequence[float],
        percent: bool = False,
        whole_steps: tuple[float, float] | None = None,
    ) -> None:
        self.title, self.percent = title, percent
        self.first, self.last = min(steps), max(steps)
        ends = whole_steps or (self.first, self.last)
        if self.first == self.last:  # one step stands in the middle
            self.first, self.last = self.first - 1, self.last + 1
        self.low, self.high, ticks = limits(min(values), max(values), percent)
        self.y_ticks = [
            {"at": self.at(self.first, tick)[1], "label": format_number(tick, percent)}
            for tick in ticks
        ]
        spacing = max(1.0, nice(max(ends[1] - ends[0], 1) / 5))
        marks = [math.ceil(ends[0] / spacing) * spacing + i * spacing for i in range(7)]
        self.x_ticks = [
            {"at": self.at(mark, self.low)[0], "label": format_number(mark)}
            for mark in marks
            if mark <= ends[1]
        ]
        self.lines: list[dict[str, Any]] = []
        self.readout: dict[str, dict[float, str]] = {}

    def at(self, step: float, value: float) -> tuple[float, float]:
        x = LEFT + (step - self.first) / (self.last - self.first) * (RIGHT - LEFT)
        y = BOTTOM - (value - self.low) / (self.high - self.low) * (BOTTOM - TOP)
        return round(x, 1), round(y, 1)

    def path(self, series: Series) -> str:
        pieces, pen = [], "M"
        for step, value in series:
            if value is None:
                pen = "M"
                continue
            pieces.append("{}{},{}".format(pen, *self.at(step, value)))
            pen = "L"
        return "".join(pieces)

    def add(self, label: str, series: Series, **drawn: Any) -> None:
        self.lines.append({"label": label, "slot": len(self.lines) % 8, **drawn})
        self.readout[label] = {
            step: format_number(value, self.percent) for step, value in series if value is not None
        }

    def finish(self, names: Mapping[float, str] | None = None) -> dict[str, Any]:
        """The figure; ``names`` of the steps are read out in place of their numbers."""
        steps = sorted({step for line in self.readout.values() for step in line})
        readout = {
            "steps": steps,
            "x": [self.at(step, self.low)[0] for step in steps],
            "lines": {k: [line.get(s, "-") for s in steps] for k, line in self.readout.items()},
            "names": None if names is None else [visible(names[step]) for step in steps],
        }
        return {
            "title": self.title,
            "x_ticks": self.x_ticks,
            "y_ticks": self.y_ticks,
            "lines": self.lines,
            "readout": json.dumps(readout, allow_nan=False),
        }


def nice(raw: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is at least ``raw``."""
    power = 10.0 ** math.floor(math.log10(raw))
    return next(m * power for m in (1, 2, 5, 10, 20) if m * power >= raw * (1 - 1e-9))


def limits(
    low: float, high: float, percent: bool, signed: bool = False
) -> tuple[float, float, list[float]]:
    """Ends of a value axis, and its ticks; both ends are ticks. Percent ends at 0 and 100, unless
    ``signed``."""
    if 0 < low < 0.6 * high:
        low = 0.0
    least = 0.05 if percent else max(1e-3 * max(abs(low), abs(high)), 1e-12)
    if high - low < least:
        low, high = low - least / 2, high + least / 2
    if percent and not signed:
        low, high = max(low, 0.0), min(high, 1.0)
    spacing = nice((high - low) / 4)
    first, last = math.floor(low / spacing + 1e-9), math.ceil(high / spacing - 1e-9)
    ticks = [float(f"{i * spacing:.12g}") for i in range(first, last + 1)]
    return ticks[0], ticks[-1], ticks


def _columns(edges: Sequence[float], heights: Sequence[float]) -> list[tuple[float, float]]:
    spans = zip(itertools.pairwise(edges), heights, strict=True)
    return [point for (start, end), height in spans for point in ((start, height), (end, height))]


def trailing_mean(series: Series, window: int) -> list[tuple[float, float | None]]:
    recent: collections.deque[float] = collections.deque(maxlen=window)
    out: list[tuple[float, float | None]] = []
    for step, value in series:
        if value is not None:
            recent.append(value)
        out.append((step, math.fsum(recent) / len(recent) if recent else None))
    return out


def thin(series: Series) -> Series:
    """Fewer points, keeping the least and the greatest of each stretch: a spike must stay."""
    if len(series) <= MAX_POINTS:
        return series
    width = math.ceil(len(series) / (MAX_POINTS // 2))
    kept: set[int] = {0, len(series) - 1}
    for start in range(0, len(series), width):
        stretch = range(start, min(start + width, len(series)))
        gaps = [i for i in stretch if series[i][1] is None]
        known = [i for i in stretch if series[i][1] is not None]
        if known:
            kept |= {min(known, key=lambda i: series[i][1]), max(known, key=lambda i: series[i][1])}
        kept.update(gaps[:1])
    return [series[i] for i in sorted(kept)]


def every(series: Series) -> Series:
    """Every k-th step, the same for all layers of a stack."""
    return series[:: math.ceil(len(series) / MAX_POINTS)]
