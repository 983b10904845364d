"""Line, pie and bar charts with yes/no questions, as in FigureQA.

At level 1 the questions name colours; from level 2 on a legend gives each colour a name, and the
questions use the name. Values are whole numbers on drawn grid lines; pie shares are multiples of
5 percent. What a question compares is visibly apart, and two lines that touch also cross.
"""

from __future__ import annotations

import itertools
from random import Random
from typing import NamedTuple, TypedDict

from PIL import Image

from ovlt.data.worlds.base import (
    COLORS,
    GRID,
    INK,
    PALETTE,
    Canvas,
    Family,
    Question,
    Scene,
    fit_font,
    font,
    pick_by_truth,
    reasoned,
    yes_no,
)

KINDS = ("is_max", "is_min", "greater", "crosses", "rises")
NAMES = ("Oslo", "Lima", "Cairo", "Quito", "Seoul", "Paris", "Delhi", "Rome", "Kyoto", "Accra")
TOP = 10  # largest value of a line or bar chart

_MEASURE = {"line": "final value", "pie": "share", "bar": "value"}
_EXTREME = (
    "Does {x} have the {word} {measure}?",
    "Is the {measure} of {x} the {word}?",
    "Is it true that {x} has the {word} {measure}?",
)
_GREATER = (
    "Does {x} have a {word} {measure} than {y}?",
    "Is the {measure} of {x} {word} than that of {y}?",
    "Compared with {y}, does {x} have a {word} {measure}?",
)
_CROSSES = ("Do {x} and {y} cross?", "Does {x} cross {y}?", "Do {x} and {y} meet anywhere?")
_RISES = (
    "Does {x} end higher than it starts?",
    "Is the last value of {x} higher than its first?",
    "Does {x} rise from the first point to the last?",
)

# Colour, name ("" at level 1) and values: one value, or one per point of a line.
Series = tuple[str, str, list[int]]


class ChartContent(TypedDict):
    """A line, pie or bar chart."""

    chart: str
    series: list[Series]


def _walks(rng: Random, lines: int, points: int) -> list[list[int]]:
    """Return one walk per line; no two share a value at a point, so lines that touch cross."""
    columns = [rng.sample(range(TOP + 1), lines)]
    while len(columns) < points:
        step = [min(TOP, max(0, v + rng.randint(-2, 2))) for v in columns[-1]]
        if len(set(step)) == lines:
            columns.append(step)
    return [list(values) for values in zip(*columns, strict=True)]


def _shares(rng: Random, slices: int, gap: int) -> list[list[int]]:
    """Return percentages that add up to 100: multiples of 5, any two at least ``gap`` apart."""
    while True:
        cuts = sorted(rng.sample(range(1, 20), slices - 1))
        parts = [5 * (b - a) for a, b in zip([0, *cuts], [*cuts, 20], strict=True)]
        ordered = sorted(parts)
        if all(b - a >= gap for a, b in itertools.pairwise(ordered)):
            return [[part] for part in parts]


def make(rng: Random, level: int, kind: str) -> Scene[ChartContent]:
    chart = "line" if kind in ("crosses", "rises") else rng.choice(("line", "pie", "bar"))
    count = {1: 3, 2: 4, 3: 5}[level]
    if chart == "line":
        values = _walks(rng, count - 1, {1: 4, 2: 5, 3: 6}[level])
    elif chart == "pie":
        values = _shares(rng, count, 10 if level == 1 else 5)
    else:
        values = [[value] for value in rng.sample(range(1, TOP + 1), count)]
    colors = rng.sample(COLORS, len(values))
    names = rng.sample(NAMES, len(values)) if level > 1 else [""] * len(values)
    series = list(zip(colors, names, values, strict=True))
    return Scene({"chart": chart, "series": series}, rng.getrandbits(32))


def _legend(canvas: Canvas, series: list[Series], top: float, height: float) -> None:
    """Paint the swatch and the name of each series, in one row."""
    slot = canvas.width * 0.96 / len(series)
    swatch = min(height * 0.6, slot * 0.2)
    names = [name for _, name, _ in series]
    face = fit_font(names, slot * 0.68 - swatch * 0.3, height * 0.62)
    for i, (color, name, _) in enumerate(series):
        x, y = canvas.width * 0.02 + i * slot + slot * 0.04, top + height / 2
        box = (x, y - swatch / 2, x + swatch, y + swatch / 2)
        canvas.pen.rectangle(box, fill=PALETTE[color])
        canvas.pen.text((x + swatch * 1.35, y), name, INK, face, anchor="lm")


def draw(scene: Scene[ChartContent], width: int, height: int) -> Image.Image:
    chart, series = scene.content["chart"], scene.content["series"]
    canvas = Canvas(width, height)
    top = canvas.height * 0.05
    if series[0][1]:
        _legend(canvas, series, canvas.height * 0.01, canvas.height * 0.10)
        top = canvas.height * 0.14
    if chart == "pie":
        _draw_pie(canvas, series, top, Random(scene.look))
    else:
        _draw_axes(canvas, series, top, chart)
    return canvas.finish()


def _draw_pie(canvas: Canvas, series: list[Series], top: float, look: Random) -> None:
    bottom = canvas.height * 0.95
    radius = min(bottom - top, canvas.width * 0.9) / 2
    x, y = canvas.width / 2, (top + bottom) / 2
    box = (x - radius, y - radius, x + radius, y + radius)
    angle = look.uniform(0, 360)
    for color, _, (share,) in series:
        canvas.pen.pieslice(box, angle, angle + 3.6 * share, fill=PALETTE[color])
        angle += 3.6 * share


def _draw_axes(canvas: Canvas, series: list[Series], top: float, chart: str) -> None:
    pen, stroke = canvas.pen, canvas.stroke
    left, right = canvas.width * 0.10, canvas.width * 0.97
    bottom = canvas.height * (0.95 if chart == "bar" else 0.89)
    unit = (bottom - top) / TOP
    face = font(int(min(canvas.height * 0.05, unit * 0.8)))
    for value in range(TOP + 1):
        y = bottom - value * unit
        pen.line((left, y, right, y), fill=INK if value == 0 else GRID, width=max(2, stroke // 2))
        if value % 2 == 0:
            pen.text((left * 0.8, y), str(value), INK, face, anchor="rm")
    if chart == "bar":
        slot = (right - left) / len(series)
        for i, (color, _, (value,)) in enumerate(series):
            x = left + (i + 0.2) * slot
            pen.rectangle((x, bottom - value * unit, x + 0.6 * slot, bottom), fill=PALETTE[color])
        return
    points = len(series[0][2])
    xs = [left + (right - left) * (0.05 + 0.9 * i / (points - 1)) for i in range(points)]
    for i, x in enumerate(xs, 1):
        pen.text((x, (bottom + canvas.height) / 2), str(i), INK, face, anchor="mm")
    dot = stroke * 2.2
    for color, _, values in series:
        path = [(x, bottom - v * unit) for x, v in zip(xs, values, strict=True)]
        pen.line(path, fill=PALETTE[color], width=2 * stroke, joint="curve")
        for x, y in path:
            pen.ellipse((x - dot, y - dot, x + dot, y + dot), fill=PALETTE[color])


def _listed(chart: str, values: list[int]) -> str:
    return f"{values[0]} percent" if chart == "pie" else " ".join(map(str, values))


def caption(scene: Scene[ChartContent]) -> str:
    chart = scene.content["chart"]
    parts = [
        f"{f'{name} ({color})' if name else color} {_listed(chart, values)}"
        for color, name, values in scene.content["series"]
    ]
    return f"A {chart} chart. " + ", ".join(parts) + "."


class _Values(NamedTuple):
    """The values of a chart by the subject of a sentence: a name, or "the red line"."""

    measure: str  # what is compared: a final value, a share, a value
    series: dict[str, list[int]]

    @property
    def final(self) -> dict[str, int]:
        return {x: values[-1] for x, values in self.series.items()}

    @property
    def pairs(self) -> list[tuple[str, str]]:
        return [(x, y) for x in self.series for y in self.series if x != y]


class _Claim(NamedTuple):
    """A yes/no question, the reasoning about it, and whether it is true."""

    problem: str
    body: str
    truth: bool


def ask(scene: Scene[ChartContent], kind: str, rng: Random) -> Question | None:
    chart = scene.content["chart"]
    noun = {"line": "line", "pie": "slice", "bar": "bar"}[chart]
    series = {
        name or f"the {color} {noun}": values for color, name, values in scene.content["series"]
    }
    values = _Values(_MEASURE[chart], series)
    if kind in ("is_max", "is_min"):
        claim = _claim_extreme(values, kind, rng)
    else:
        claim = {"greater": _claim_greater, "crosses": _claim_crosses, "rises": _claim_rises}[kind](
            values, rng
        )
    if claim is None:
        return None
    answer, decoy = yes_no(claim.truth)
    body = claim.body[0].upper() + claim.body[1:]
    return reasoned("chart", claim.problem, answer, decoy, body, "answer")


def _claim_extreme(values: _Values, kind: str, rng: Random) -> _Claim:
    final, measure = values.final, values.measure
    best = (max if kind == "is_max" else min)(final, key=final.__getitem__)
    word = "highest" if kind == "is_max" else "lowest"
    case = pick_by_truth(rng, [(x, x == best) for x in final])
    assert case is not None  # of two or more subjects one is the best and another is not
    x, truth = case
    readings = ", ".join(f"{x.removeprefix('the ')} {value}" for x, value in final.items())
    return _Claim(
        rng.choice(_EXTREME).format(x=x, word=word, measure=measure),
        f"The {measure}s are {readings}. The {word} is {final[best]}, of {best}.",
        truth,
    )


def _claim_greater(values: _Values, rng: Random) -> _Claim:
    final = values.final
    higher = rng.random() < 0.5
    case = pick_by_truth(rng, [((x, y), (final[x] > final[y]) == higher) for x, y in values.pairs])
    assert case is not None  # of two different values, each pair holds for one order
    (x, y), truth = case
    word = "higher" if higher else "lower"
    relation = "more" if final[x] > final[y] else "less"
    return _Claim(
        rng.choice(_GREATER).format(x=x, y=y, word=word, measure=values.measure),
        f"{x} has {final[x]} and {y} has {final[y]}. {final[x]} is {relation} than {final[y]}.",
        truth,
    )


def _claim_crosses(values: _Values, rng: Random) -> _Claim | None:
    series = values.series
    case = pick_by_truth(rng, [((x, y), _cross(series[x], series[y])) for x, y in values.pairs])
    if case is None:
        return None
    (x, y), truth = case
    order = ["above" if a > b else "below" for a, b in zip(series[x], series[y], strict=True)]
    return _Claim(
        rng.choice(_CROSSES).format(x=x, y=y),
        f"From point to point, {x} is {', '.join(order)} {y}. The order "
        f"{'changes' if truth else 'stays the same'}.",
        truth,
    )


def _claim_rises(values: _Values, rng: Random) -> _Claim | None:
    series = values.series
    case = pick_by_truth(rng, [(x, v[-1] > v[0]) for x, v in series.items() if v[-1] != v[0]])
    if case is None:
        return None
    x, truth = case
    return _Claim(
        rng.choice(_RISES).format(x=x),
        f"{x} starts at {series[x][0]} and ends at {series[x][-1]}.",
        truth,
    )


def _cross(a: list[int], b: list[int]) -> bool:
    """Whether two lines change their order; they never share a value at a point."""
    return len({x > y for x, y in zip(a, b, strict=True)}) == 2


FAMILY = Family("charts", KINDS, (112, 168, 196), make, draw, caption, ask)
