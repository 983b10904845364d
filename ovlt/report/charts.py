"""Geometry of the report's figures: numbers in, coordinates and tick labels out, no markup.

Drawn here rather than by matplotlib: its SVG bakes colours in, so it cannot follow a dark theme or
be read out under the pointer, costs 30 to 80 kB a figure, and needs care to come out the same
twice. The template turns these charts into SVG, so its autoescaping covers every label.
"""

from __future__ import annotations

import collections
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ovlt.report.summary import Curve, Mode
from ovlt.report.text import cut, format_number, visible

WIDTH, HEIGHT = 400, 210
LEFT, RIGHT, TOP, BOTTOM = 52, 388, 10, 178  # the plot area, in SVG units
NUM_COLOURS = 8  # a ninth line has the colour of the first
MAX_POINTS = 800  # per line; the eye cannot separate more
MIN_SMOOTHED = 60  # a line of fewer points has no trailing mean
MAX_DOTTED = 30  # a line of fewer points shows each as a dot
MAX_LABEL = 26  # characters of a row's label

Point = tuple[float, float | None]  # (step, value); None is a gap
Series = Sequence[Point]
Mark = tuple[float, float, float]  # value, low end, high end


@dataclass(frozen=True)
class Tick:
    at: float
    label: str


@dataclass(frozen=True)
class Line:
    """One line or area of a chart, as SVG paths and points; empty fields are not drawn."""

    label: str
    slot: int  # number of its colour
    path: str = ""
    mean: str = ""  # of the last ``window`` values
    window: int = 0
    dots: Sequence[tuple[float, float]] = ()
    whiskers: Sequence[tuple[float, float, float]] = ()  # x, both ends
    area: str = ""


@dataclass(frozen=True)
class Segment:
    """The stretch of the step axis that belongs to one stage."""

    label: str
    at: float  # x of the label
    boundary: float | None  # x of the line before it


@dataclass(frozen=True)
class Chart:
    """Lines over steps, or over stages."""

    title: str
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    lines: Sequence[Line]
    readout: str  # JSON that the page's script reads
    segments: Sequence[Segment] = ()
    x_label: str = "step"
    over: str = "steps"
    non_finite: int = 0  # values that were NaN or infinite
    first_non_finite: float | None = None  # step of the first of them


@dataclass(frozen=True)
class IntervalMark:
    slot: int
    y: float
    x: float
    x1: float
    x2: float


@dataclass(frozen=True)
class IntervalRow:
    label: str
    y: float
    marks: Sequence[IntervalMark]


@dataclass(frozen=True)
class IntervalChart:
    """A row of marks with intervals for each stage."""

    rows: Sequence[IntervalRow]
    left: float
    right: float
    bottom: float
    x_ticks: Sequence[Tick]
    zero: float | None  # x of zero, if it is marked


def points_of(curve: Curve) -> Series:
    """Return a curve of summary.json as (step, value) pairs."""
    return list(zip(curve["steps"], curve["values"], strict=True))


def line_chart(title: str, lines: Mapping[str, Series], *, percent: bool = False) -> Chart:
    """Draw lines over steps; a long line is drawn faint under its trailing mean."""
    values = [v for series in lines.values() for _, v in series if v is not None]
    figure = Figure(title, [s for series in lines.values() for s, _ in series], values, percent)
    for label, series in lines.items():
        figure.add_curve(label, [series])
    return figure.finish()


def stacked_chart(title: str, layers: Mapping[str, Series]) -> Chart:
    """Draw layers on top of each other, one column per step; all layers have the same steps."""
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
        figure.add(Line(label, figure.next_slot, area=area), series)
        low = top
    return figure.finish()


def interval_chart(
    rows: Sequence[tuple[str, Mapping[Mode, Mark]]], *, signed: bool = False
) -> IntervalChart | None:
    """Draw the accuracy of each stage with its interval, one row per stage.

    ``rows``: (label, {mode: mark}), shares in [0, 1]; ``signed``: they are differences, and zero is
    marked. Returns None if no row has a mark.
    """
    ends = [end for _, marks in rows for mark in marks.values() for end in mark]
    if not ends:
        return None
    longest = max(len(label) for label, _ in rows)
    left, right, row_height = min(max(100, 24 + 7 * longest), 206), 428, 40
    if signed:
        ends.append(0.0)
    low, high, ticks = limits(min(ends), max(ends), percent=True, signed=signed)

    def x(value: float) -> float:
        return round(left + (value - low) / (high - low) * (right - left), 1)

    def row(index: int, label: str, marks: Mapping[Mode, Mark]) -> IntervalRow:
        centre = TOP + row_height * (index + 0.5)
        places: tuple[tuple[Mode, float], ...] = (("greedy", -8), ("sampled", 8))
        row_marks = [
            IntervalMark(slot, centre + offset, *map(x, marks[mode]))
            for slot, (mode, offset) in enumerate(places)
            if mode in marks
        ]
        return IntervalRow(cut(label, MAX_LABEL), centre, row_marks)

    def tick(value: float) -> Tick:
        sign = "+" if signed and value > 0 else ""
        return Tick(x(value), sign + format_number(value, percent=True))

    return IntervalChart(
        rows=[row(index, label, marks) for index, (label, marks) in enumerate(rows)],
        left=left,
        right=right,
        bottom=TOP + row_height * len(rows),
        x_ticks=[tick(value) for value in ticks],
        zero=x(0.0) if signed else None,
    )


class Figure:
    """The axes of one chart and the lines drawn so far."""

    def __init__(
        self,
        title: str,
        steps: Sequence[float],
        values: Sequence[float],
        percent: bool = False,
        whole_steps: tuple[float, float] | None = None,
    ) -> None:
        """Scale the axes to ``steps`` and ``values``; ``whole_steps``: ends of the ticks below."""
        self.title, self.percent = title, percent
        self.first, self.last = min(steps), max(steps)
        ends = whole_steps or (self.first, self.last)
        if self.first == self.last:  # one step stands in the middle
            self.first, self.last = self.first - 1, self.last + 1
        self.low, self.high, ticks = limits(min(values), max(values), percent)
        self.y_ticks = [
            Tick(self.at(self.first, tick)[1], format_number(tick, percent)) for tick in ticks
        ]
        spacing = nice_spacing(max(ends[1] - ends[0], 1) / 5)
        places = [math.ceil(ends[0] / spacing) * spacing + i * spacing for i in range(7)]
        self.x_ticks = [
            Tick(self.x(place), format_number(place)) for place in places if place <= ends[1]
        ]
        self.lines: list[Line] = []
        self.readout: dict[str, dict[float, str]] = {}  # {label: {step: value}}

    @property
    def next_slot(self) -> int:
        """Number of the colour of the next line."""
        return len(self.lines) % NUM_COLOURS

    def x(self, step: float) -> float:
        return round(LEFT + (step - self.first) / (self.last - self.first) * (RIGHT - LEFT), 1)

    def at(self, step: float, value: float) -> tuple[float, float]:
        """Return x and y of a point."""
        y = BOTTOM - (value - self.low) / (self.high - self.low) * (BOTTOM - TOP)
        return self.x(step), round(y, 1)

    def path(self, series: Series) -> str:
        """Return the SVG path through a series; it is interrupted at a gap."""
        pieces, pen = [], "M"
        for step, value in series:
            if value is None:
                pen = "M"
                continue
            pieces.append("{}{},{}".format(pen, *self.at(step, value)))
            pen = "L"
        return "".join(pieces)

    def points(self, series: Series) -> list[tuple[float, float]]:
        return [self.at(step, value) for step, value in series if value is not None]

    def add(self, line: Line, series: Series) -> None:
        """Add a line; ``series`` is what the page reads out for it."""
        self.lines.append(line)
        self.readout[line.label] = {
            step: format_number(value, self.percent) for step, value in series if value is not None
        }

    def add_curve(self, label: str, segments: Sequence[Series]) -> None:
        """Add a line of several segments; neither it nor its mean reaches from one to the next."""
        num_points = sum(map(len, segments))
        window = num_points // 20 if num_points >= MIN_SMOOTHED else 0
        means = [every(trailing_mean(series, window)) for series in segments] if window else []
        thinned = [thin(series) for series in segments]
        points = [point for series in thinned for point in series]
        line = Line(
            label,
            self.next_slot,
            path="".join(map(self.path, thinned)),
            mean="".join(map(self.path, means)),
            window=window,
            dots=self.points(points) if len(points) < MAX_DOTTED else [],
        )
        self.add(line, points)

    def finish(
        self,
        names: Mapping[float, str] | None = None,
        *,
        segments: Sequence[Segment] = (),
        x_label: str = "step",
        over: str = "steps",
    ) -> Chart:
        """Return the chart; ``names`` of the steps are read out in place of their numbers."""
        steps = sorted({step for values in self.readout.values() for step in values})
        readout = {
            "steps": steps,
            "x": [self.x(step) for step in steps],
            "lines": {k: [line.get(s, "-") for s in steps] for k, line in self.readout.items()},
            "names": None if names is None else [visible(names[step]) for step in steps],
        }
        return Chart(
            title=self.title,
            x_ticks=self.x_ticks,
            y_ticks=self.y_ticks,
            lines=self.lines,
            readout=json.dumps(readout, allow_nan=False),
            segments=segments,
            x_label=x_label,
            over=over,
        )


def nice(raw: float) -> float:
    """Return the smallest of 1, 2, 5 times a power of ten that is at least ``raw``."""
    power = 10.0 ** math.floor(math.log10(raw))
    return next(m * power for m in (1, 2, 5, 10, 20) if m * power >= raw * (1 - 1e-9))


def nice_spacing(raw: float) -> float:
    """Return ``nice(raw)``, but at least one step."""
    return max(1.0, nice(raw))


def limits(
    low: float, high: float, percent: bool, signed: bool = False
) -> tuple[float, float, list[float]]:
    """Return the ends of a value axis, and its ticks; both ends are ticks.

    An axis of shares (``percent``) ends at 0 and 100 % unless ``signed``.
    """
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
    """Return the upper corners of adjacent columns."""
    spans = zip(itertools.pairwise(edges), heights, strict=True)
    return [point for (start, end), height in spans for point in ((start, height), (end, height))]


def trailing_mean(series: Series, window: int) -> list[Point]:
    """Return at each step the mean of the last ``window`` values; None before the first."""
    recent: collections.deque[float] = collections.deque(maxlen=window)
    means: list[Point] = []
    for step, value in series:
        if value is not None:
            recent.append(value)
        means.append((step, math.fsum(recent) / len(recent) if recent else None))
    return means


def thin(series: Series) -> Series:
    """Drop points but the least and the greatest of each stretch, so that a spike stays."""
    if len(series) <= MAX_POINTS:
        return series
    width = math.ceil(len(series) / (MAX_POINTS // 2))
    indices: set[int] = {0, len(series) - 1}
    for start in range(0, len(series), width):
        values: dict[int, float] = {}  # by index
        gaps: list[int] = []
        for index, (_, value) in enumerate(series[start : start + width], start):
            if value is None:
                gaps.append(index)
            else:
                values[index] = value
        if values:
            indices |= {min(values, key=values.__getitem__), max(values, key=values.__getitem__)}
        indices.update(gaps[:1])
    return [series[i] for i in sorted(indices)]


def every(series: Series) -> Series:
    """Return every k-th point of a long series: the same steps for all layers of a stack."""
    return series[:: math.ceil(len(series) / MAX_POINTS)]
