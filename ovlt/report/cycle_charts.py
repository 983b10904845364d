"""Geometry of the figures of a cycle, in the manner of ``ovlt.report.charts``: no markup."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ovlt.report.charts import (
    LEFT,
    MAX_LABEL,
    NUM_COLOURS,
    RIGHT,
    TOP,
    WIDTH,
    Chart,
    Figure,
    Line,
    Mark,
    Segment,
    Series,
    Tick,
    nice_spacing,
)
from ovlt.report.text import cut, format_number

_MAX_LABELS = 7  # under an axis; of more only every second, third, ... is shown
_MAX_TICKS = 13  # under an axis of several stages, all together
_LETTER = 7.0  # width of a letter in SVG units, on the safe side
_BAR, _GAP = 12, 9  # height of a bar, and between two rows of bars


@dataclass(frozen=True)
class Bar:
    slot: int
    x: float
    y: float
    width: float
    label: str


@dataclass(frozen=True)
class BarRow:
    label: str
    y: float
    bars: Sequence[Bar]


@dataclass(frozen=True)
class BarChart:
    title: str
    rows: Sequence[BarRow]
    left: float
    bottom: float
    thickness: float
    legend: Sequence[str]


@dataclass(frozen=True)
class _PlacedStage:
    """A stage on the common axis of several: its steps begin at ``start``."""

    title: str
    lines: Mapping[str, Series]
    start: float
    last_step: float

    def shifted(self, legend: str) -> Series:
        return [(self.start + step, value) for step, value in self.lines.get(legend, ())]


def points_chart(
    title: str, labels: Sequence[str], lines: Mapping[str, Sequence[Mark | None]]
) -> Chart | None:
    """Draw shares with intervals over labelled places, joined by lines; None is a gap.

    Returns None if there is no mark at all.
    """
    ends = [end for marks in lines.values() for mark in marks if mark for end in mark]
    if not ends:
        return None
    figure = Figure(title, [-0.4, len(labels) - 0.6], ends, percent=True)
    stride = math.ceil(len(labels) / _MAX_LABELS)
    ticks = [Tick(figure.x(i), label) for i, label in enumerate(labels)]
    figure.x_ticks = ticks[::stride]
    for number, (legend, marks) in enumerate(lines.items()):
        # Lines stand a little side by side, so that none hides the whiskers of another.
        offset = (number - (len(lines) - 1) / 2) * len(labels) / 45
        values = [mark[0] if mark else None for mark in marks]
        series = [(i + offset, value) for i, value in enumerate(values)]
        line = Line(
            legend,
            figure.next_slot,
            path=figure.path(series),
            dots=figure.points(series),
            whiskers=[
                (*figure.at(i + offset, mark[1]), figure.at(i, mark[2])[1])
                for i, mark in enumerate(marks)
                if mark
            ],
        )
        figure.add(line, list(enumerate(values)))
    return figure.finish(dict(enumerate(labels)), x_label="", over="stages")


def joined_chart(
    title: str, stages: Sequence[tuple[str, Mapping[str, Series]]], *, percent: bool = False
) -> Chart | None:
    """Draw lines of several stages end to end, with a boundary before each stage but the first.

    ``stages``: (title, {legend: series}), steps counted anew in each. Returns None if there is no
    value. A trailing mean does not reach into the stage before.
    """
    placed = _place(stages)
    series = [series for stage in placed for series in stage.lines.values()]
    values = [value for points in series for _, value in points if value is not None]
    if not values:
        return None
    figure = Figure(title, [0.0, placed[-1].start + placed[-1].last_step], values, percent)
    figure.x_ticks = _ticks(figure, placed)
    for legend in dict.fromkeys(legend for stage in placed for legend in stage.lines):
        figure.add_curve(legend, [stage.shifted(legend) for stage in placed])
    names = {
        stage.start + step: f"{stage.title}, step {step:g}"
        for stage in placed
        for points in stage.lines.values()
        for step, _ in points
    }
    return figure.finish(names, segments=_segments(figure, placed))


def _place(stages: Sequence[tuple[str, Mapping[str, Series]]]) -> list[_PlacedStage]:
    """Place the stages that have points one after the other, without their negative steps."""
    placed: list[_PlacedStage] = []
    start = 0.0
    for title, lines in stages:
        lines = {k: [point for point in series if point[0] >= 0] for k, series in lines.items()}
        if any(lines.values()):
            last_step = max([1.0, *(step for series in lines.values() for step, _ in series)])
            placed.append(_PlacedStage(title, lines, start, last_step))
            start += last_step + 1  # one step from the last of a stage to step 0 of the next
    return placed


def _ticks(figure: Figure, stages: Sequence[_PlacedStage]) -> list[Tick]:
    """Return ticks with the steps of each stage; its step 0 has none, the boundary is there."""
    longest = max(stage.last_step for stage in stages)
    spacing = nice_spacing(longest / max(2.5, _MAX_TICKS / len(stages)))
    return [
        Tick(figure.x(stage.start + k * spacing), format_number(k * spacing))
        for stage in stages
        for k in range(1, int(stage.last_step / spacing) + 1)
    ]


def _segments(figure: Figure, stages: Sequence[_PlacedStage]) -> list[Segment]:
    """Return the label and the boundary of each stage, labels cut to the room they have."""
    boundaries = [figure.x(stage.start - 0.5) for stage in stages[1:]]
    rooms = [right - left for left, right in itertools.pairwise([LEFT, *boundaries, RIGHT])]
    labels = [
        cut(stage.title, max(4, int(room / _LETTER)))
        for stage, room in zip(stages, rooms, strict=True)
    ]
    return [
        Segment(labels[0], LEFT, None),
        *(Segment(label, x + 4, x) for label, x in zip(labels[1:], boundaries, strict=True)),
    ]


def bars_chart(
    title: str, labels: Sequence[str], bars: Sequence[tuple[str, Sequence[float | None]]]
) -> BarChart | None:
    """Draw horizontal bars from zero, each with its value beside it.

    Each label has a row, with a bar for each of ``bars``: (legend, one value per label). Returns
    None if there is nothing to draw.
    """
    largest = max((v for _, row in bars for v in row if v is not None), default=None)
    if largest is None or not labels:
        return None
    labels = [cut(label, MAX_LABEL) for label in labels]
    left, right = 14 + _LETTER * max(map(len, labels)), WIDTH - 44
    height = _BAR * len(bars) + _GAP

    def bar(slot: int, top: float, value: float) -> Bar:
        return Bar(
            slot % NUM_COLOURS,
            x=left,
            y=top + slot * _BAR,
            width=round(value / largest * (right - left), 1) if largest else 0.0,
            label=f"{value:,.0f}" if value == int(value) else format_number(value),
        )

    rows = []
    for index, label in enumerate(labels):
        top = TOP + index * height
        values = [column[index] for _, column in bars]
        row = [bar(slot, top, value) for slot, value in enumerate(values) if value is not None]
        rows.append(BarRow(label, top + _BAR * len(bars) / 2 + 4, row))
    return BarChart(
        title,
        rows,
        left=left,
        bottom=TOP + height * len(labels),
        thickness=_BAR - 2,
        legend=[legend for legend, _ in bars],
    )
