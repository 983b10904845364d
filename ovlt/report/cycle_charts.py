"""Geometry of the figures of a cycle, in the manner of ``ovlt.report.charts``: no markup."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ovlt.report.charts import (
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Figure,
    Series,
    cut,
    every,
    format_number,
    nice,
    thin,
    trailing_mean,
)

_MOST_LABELS = 7  # under an axis; of more only every second, third, ... is shown
_LETTER = 7.0  # width of a letter in SVG units, on the safe side
_BAR, _GAP = 12, 9  # height of a bar, and between two rows of bars
Mark = tuple[float, float, float]  # value, low end, high end


def points_chart(
    title: str, labels: Sequence[str], lines: Mapping[str, Sequence[Mark | None]]
) -> dict[str, Any] | None:
    """Shares with intervals over named places, joined by lines; None is a gap. Returns None when
    there is no mark at all."""
    ends = [end for marks in lines.values() for mark in marks if mark for end in mark]
    if not ends:
        return None
    figure = Figure(title, [-0.4, len(labels) - 0.6], ends, percent=True)
    step = math.ceil(len(labels) / _MOST_LABELS)
    figure.x_ticks = [
        {"at": figure.at(i, figure.low)[0], "label": label}
        for i, label in enumerate(labels)
        if i % step == 0
    ]
    for label, marks in lines.items():
        aside = (len(figure.lines) - (len(lines) - 1) / 2) * len(labels) / 45  # none hides another
        series: Series = [(i + aside, mark[0] if mark else None) for i, mark in enumerate(marks)]
        whiskers = [
            (*figure.at(i + aside, mark[1]), figure.at(i, mark[2])[1])
            for i, mark in enumerate(marks)
            if mark
        ]
        dots = [figure.at(s, v) for s, v in series if v is not None]
        figure.add(
            label, [(i, v) for i, (_, v) in enumerate(series)],
            path=figure.path(series), window=0, mean="", dots=dots, whiskers=whiskers,
        )  # fmt: skip
    return figure.finish(dict(enumerate(labels))) | {"x_label": "", "over": "stages"}


def joined_chart(
    title: str, parts: Sequence[tuple[str, Mapping[str, Series]]], *, percent: bool = False
) -> dict[str, Any] | None:
    """Lines of several stages laid end to end, with a boundary before each but the first.

    ``parts``: (title of the stage, {legend: its series}), steps counted anew in each. Returns None
    when there is no value. A mean of the last steps does not reach into the stage before.
    """
    parts = [
        (name, {k: [point for point in series if point[0] >= 0] for k, series in own.items()})
        for name, own in parts
    ]
    parts = [(name, own) for name, own in parts if any(own.values())]
    values = [v for _, own in parts for series in own.values() for _, v in series if v is not None]
    if not values:
        return None
    starts, lengths = [0.0], []
    for _, own in parts:  # one step between the last of a stage and step 0 of the next
        lengths.append(max([1.0, *(s for series in own.values() for s, _ in series)]))
        starts.append(starts[-1] + lengths[-1] + 1)
    figure = Figure(title, [0.0, starts[-1] - 1], values, percent)
    spacing = max(1.0, nice(max(lengths) / max(2.5, 13 / len(parts))))
    figure.x_ticks = [
        {"at": figure.at(start + k * spacing, figure.low)[0], "label": format_number(k * spacing)}
        for start, length in zip(starts, lengths, strict=False)
        for k in range(1, int(length / spacing) + 1)
    ]
    names: dict[float, str] = {}
    for legend in dict.fromkeys(legend for _, own in parts for legend in own):
        shifted = [
            [(start + s, v) for s, v in own.get(legend, ())]
            for start, (_, own) in zip(starts, parts, strict=False)
        ]
        for start, (name, own) in zip(starts, parts, strict=False):
            names |= {start + s: f"{name}, step {s:g}" for s, _ in own.get(legend, ())}
        whole = [point for series in shifted for point in series]
        window = len(whole) // 20 if len(whole) >= 60 else 0
        drawn = [thin(series) for series in shifted]
        points = [point for series in drawn for point in series]
        figure.add(
            legend,
            points,
            path="".join(map(figure.path, drawn)),
            window=window,
            mean="".join(figure.path(every(trailing_mean(series, window))) for series in shifted)
            if window else "",
            dots=[figure.at(s, v) for s, v in points if v is not None] if len(points) < 30 else [],
        )  # fmt: skip
    lefts = [LEFT, *(figure.at(start - 0.5, figure.low)[0] for start in starts[1:-1])]
    room = [right - left for left, right in itertools.pairwise([*lefts, RIGHT])]
    figure_parts = [
        {
            "label": cut(name, max(4, int(wide / _LETTER))),
            "at": left + 4 if index else left,
            "boundary": left if index else None,
        }
        for index, (left, wide, (name, _)) in enumerate(zip(lefts, room, parts, strict=True))
    ]
    return figure.finish(names) | {"parts": figure_parts}


def bars_chart(
    title: str, labels: Sequence[str], bars: Sequence[tuple[str, Sequence[float | None]]]
) -> dict[str, Any] | None:
    """Horizontal bars from zero: a row for each label, in it a bar for each (legend, values) with
    its value beside it. Returns None when there is nothing to draw."""
    most = max((v for _, row in bars for v in row if v is not None), default=None)
    if most is None or not labels:
        return None
    shown = [cut(label, 26) for label in labels]
    left, right = 14 + _LETTER * max(map(len, shown)), WIDTH - 44
    height = _BAR * len(bars) + _GAP
    rows = []
    for index, label in enumerate(shown):
        top = TOP + index * height
        drawn = [
            {
                "slot": slot % 8, "y": top + slot * _BAR, "x": left,
                "width": round(value / most * (right - left), 1) if most else 0.0,
                "label": f"{value:,.0f}" if value == int(value) else format_number(value),
            }
            for slot, (_, values) in enumerate(bars)
            if (value := values[index]) is not None
        ]  # fmt: skip
        rows.append({"label": label, "y": top + _BAR * len(bars) / 2 + 4, "bars": drawn})
    return {
        "title": title, "rows": rows, "left": left, "bottom": TOP + height * len(labels),
        "thick": _BAR - 2, "legend": [name for name, _ in bars],
    }  # fmt: skip
