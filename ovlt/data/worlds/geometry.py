"""Angles, lengths and areas drawn to scale, as in Geometry3K and GEOS.

Figures: a protractor with two rays (``angle``, ``angle_type``), a triangle with one unknown angle
(``missing_angle``, ``isosceles``), a bar or two over a ruler (``ruler``, ``ruler_diff``) and a
rectangle with its sides given (``perimeter``, ``area``). Answers are whole numbers below 100.
"""

from __future__ import annotations

from math import cos, radians, sin
from random import Random
from typing import Literal, NamedTuple, TypedDict

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
    near_miss,
    other,
    reasoned,
)

KINDS = (
    "angle",
    "angle_type",
    "missing_angle",
    "isosceles",
    "ruler",
    "ruler_diff",
    "perimeter",
    "area",
)
RULER = 15  # units on the ruler
_STEP = {1: 10, 2: 10, 3: 5}  # degrees between the places where a ray may lie, per level
Point = tuple[float, float]
Bar = tuple[str, int, int]  # colour, where it begins and ends on the ruler
_LETTERS = ("ABC", "DEF", "KLM", "PQR", "STU", "XYZ")

_PHRASES = {
    "angle": (
        "How many degrees is the angle between the two rays?",
        "Read the protractor: what is the angle between the rays in degrees?",
        "What is the size of the angle in degrees?",
    ),
    "angle_type": (
        "Is the angle between the rays acute, right or obtuse?",
        "What type of angle is shown: acute, right or obtuse?",
        "Name the type of this angle (acute, right or obtuse).",
    ),
    "missing_angle": (
        "What is angle {x} in degrees?",
        "Find the measure of angle {x} in degrees.",
        "How many degrees is the angle at {x}?",
    ),
    "ruler": (
        "How long is the {x} bar in units?",
        "What is the length of the {x} bar on the ruler?",
        "Read the ruler: how many units long is the {x} bar?",
    ),
    "ruler_diff": (
        "How many units longer is the {x} bar than the {y} bar?",
        "By how many units is the {x} bar longer than the {y} bar?",
        "What is the difference in length between the {x} bar and the {y} bar?",
    ),
    "perimeter": (
        "What is the perimeter of the rectangle?",
        "Find the perimeter of this rectangle.",
        "How long is the way around the rectangle?",
    ),
    "area": (
        "What is the area of the rectangle?",
        "Find the area of this rectangle.",
        "How many unit squares cover the rectangle?",
    ),
}


class Angle(TypedDict):
    """A protractor with two rays."""

    figure: Literal["angle"]
    rays: tuple[int, int]  # degrees
    color: str


class Triangle(TypedDict):
    """A triangle with one unknown angle; ``equal`` marks the two sides at its last vertex."""

    figure: Literal["triangle"]
    letters: str  # of the vertices
    angles: tuple[int, int, int]  # degrees, in the order of the vertices
    equal: bool


class Ruler(TypedDict):
    """Bars over a ruler."""

    figure: Literal["ruler"]
    bars: list[Bar]


class Rectangle(TypedDict):
    """A rectangle with its sides given."""

    figure: Literal["rectangle"]
    sides: tuple[int, int]  # width, height
    color: str


Figure = Angle | Triangle | Ruler | Rectangle


def make(rng: Random, level: int, kind: str) -> Scene[Figure]:
    figure: Figure
    if kind in ("angle", "angle_type"):
        figure = _make_angle(rng, level, kind)
    elif kind in ("missing_angle", "isosceles"):
        figure = _make_triangle(rng, level, kind)
    elif kind in ("ruler", "ruler_diff"):
        figure = _make_ruler(rng, level, kind)
    else:
        figure = _make_rectangle(rng, level, kind)
    return Scene(figure, rng.getrandbits(32))


def _make_angle(rng: Random, level: int, kind: str) -> Angle:
    step = _STEP[level]
    if kind == "angle":
        size = rng.randrange(20, 100, step)
    else:
        low, high = rng.choice(((20, 80), (90, 90), (100, 170)))
        size = rng.randrange(low, high + 1, step)
    first = rng.randrange(0, 181 - size, step)
    return {"figure": "angle", "rays": (first, first + size), "color": rng.choice(COLORS[:5])}


def _make_triangle(rng: Random, level: int, kind: str) -> Triangle:
    """Draw three angles; an unknown one is at most 99 degrees, two digits."""
    step = {1: 5, 2: 2, 3: 1}[level]
    while True:
        if kind == "isosceles":
            a = b = rng.randrange(30, 76, step)
        else:
            a, b = rng.randrange(25, 111, step), rng.randrange(25, 111, step)
        if 20 <= 180 - a - b <= 99:
            break
    return {
        "figure": "triangle",
        "letters": rng.choice(_LETTERS),
        "angles": (a, b, 180 - a - b),
        "equal": kind == "isosceles",
    }


def _make_ruler(rng: Random, level: int, kind: str) -> Ruler:
    bars: list[Bar] = []
    for color in rng.sample(COLORS[:5], 2 if kind == "ruler_diff" else level):
        length = rng.randint(2, RULER - 2)
        first = rng.randint(0, RULER - length)
        bars.append((color, first, first + length))
    return {"figure": "ruler", "bars": bars}


def _make_rectangle(rng: Random, level: int, kind: str) -> Rectangle:
    most = {1: 12, 2: 20, 3: 30}[level]
    while True:
        width, height = rng.randint(3, most), rng.randint(2, most)
        fits = width * height <= 99 if kind == "area" else 2 * (width + height) <= 99
        if fits and 1 / 4 <= width / height <= 4:
            break
    return {"figure": "rectangle", "sides": (width, height), "color": rng.choice(COLORS[:5])}


def draw(scene: Scene[Figure], width: int, height: int) -> Image.Image:
    canvas, content = Canvas(width, height), scene.content
    if content["figure"] == "angle":
        _draw_angle(canvas, content)
    elif content["figure"] == "triangle":
        _draw_triangle(canvas, content, turn=Random(scene.look).uniform(0, 360))
    elif content["figure"] == "ruler":
        _draw_ruler(canvas, content)
    else:
        _draw_rectangle(canvas, content)
    return canvas.finish()


def _draw_angle(canvas: Canvas, content: Angle) -> None:
    pen, stroke = canvas.pen, canvas.stroke
    radius = min(canvas.width * 0.40, canvas.height * 0.70)
    x0, y0 = canvas.width / 2, (canvas.height + radius) / 2

    def at(degrees: float, r: float) -> Point:
        return x0 + r * cos(radians(degrees)), y0 - r * sin(radians(degrees))

    pen.arc((x0 - radius, y0 - radius, x0 + radius, y0 + radius), 180, 360, INK, stroke)
    pen.line((*at(180, radius), *at(0, radius)), fill=INK, width=stroke)
    face = font(int(radius * 0.11))
    for degrees in range(0, 181, 5):
        inner = 0.90 if degrees % 10 == 0 else 0.95
        pen.line((*at(degrees, radius * inner), *at(degrees, radius)), INK, max(2, stroke // 2))
        if degrees % 20 == 0:
            pen.text(at(degrees, radius * 1.13), str(degrees), INK, face, anchor="mm")
    for degrees in content["rays"]:
        pen.line((x0, y0, *at(degrees, radius * 0.98)), PALETTE[content["color"]], 2 * stroke)
    dot = 2 * stroke
    pen.ellipse((x0 - dot, y0 - dot, x0 + dot, y0 + dot), fill=INK)


def _draw_triangle(canvas: Canvas, content: Triangle, turn: float) -> None:
    """Paint a triangle to scale, turned by so many degrees."""
    a, b, c = content["angles"]
    # law of sines: sides in units of the diameter of the circumscribed circle
    side = sin(radians(c))
    reach = sin(radians(b))
    corners = [(0.0, 0.0), (side, 0.0), (reach * cos(radians(a)), reach * sin(radians(a)))]
    spun = [
        (
            x * cos(radians(turn)) - y * sin(radians(turn)),
            x * sin(radians(turn)) + y * cos(radians(turn)),
        )
        for x, y in corners
    ]
    xs, ys = [x for x, _ in spun], [y for _, y in spun]
    scale = min(
        canvas.width * 0.62 / (max(xs) - min(xs)), canvas.height * 0.66 / (max(ys) - min(ys))
    )
    mid_x, mid_y = (max(xs) + min(xs)) / 2, (max(ys) + min(ys)) / 2
    points = [
        (canvas.width / 2 + (x - mid_x) * scale, canvas.height / 2 - (y - mid_y) * scale)
        for x, y in spun
    ]
    canvas.pen.polygon(points, fill=(232, 238, 250), outline=INK, width=canvas.stroke)
    center = (sum(x for x, _ in points) / 3, sum(y for _, y in points) / 3)
    size = min(canvas.width, canvas.height)
    face = font(int(size * 0.06))
    for i, (x, y) in enumerate(points):
        dx, dy = x - center[0], y - center[1]
        norm = (dx * dx + dy * dy) ** 0.5
        label = f"{content['letters'][i]} "
        if i == unknown_vertex(content):
            label += "?"
        elif i == 2 or not content["equal"]:
            label += f"{content['angles'][i]}\N{DEGREE SIGN}"
        where = (x + dx / norm * size * 0.10, y + dy / norm * size * 0.07)
        canvas.pen.text(where, label.strip(), INK, face, anchor="mm")
    if content["equal"]:  # the two sides that meet at the last vertex carry a tick
        for x, y in points[:2]:
            _tick(canvas, (x, y), points[2], size * 0.03)


def unknown_vertex(content: Triangle) -> int:
    """Return the vertex in question: the last, or the first of an isosceles triangle."""
    return 0 if content["equal"] else 2


def _tick(canvas: Canvas, start: Point, end: Point, length: float) -> None:
    (x0, y0), (x1, y1) = start, end
    norm = ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5
    dx, dy = -(y1 - y0) / norm * length, (x1 - x0) / norm * length
    x, y = (x0 + x1) / 2, (y0 + y1) / 2
    canvas.pen.line((x - dx, y - dy, x + dx, y + dy), fill=INK, width=2 * canvas.stroke)


def _draw_ruler(canvas: Canvas, content: Ruler) -> None:
    pen, stroke = canvas.pen, canvas.stroke
    left, right = canvas.width * 0.06, canvas.width * 0.94
    unit = (right - left) / RULER
    band = min(canvas.height * 0.22, unit * 3.2)
    row = min(canvas.height * 0.2, unit * 2)
    count = len(content["bars"])
    top = (canvas.height - band + row * (count + 0.2)) / 2
    pen.rectangle(
        (left - unit * 0.8, top, right + unit * 0.8, top + band), (255, 240, 205), INK, stroke
    )
    face = fit_font(["15"], unit * 0.75, band * 0.42)
    for value in range(RULER + 1):
        x = left + value * unit
        pen.line((x, top - row * (count + 0.2), x, top), fill=GRID, width=max(2, stroke // 2))
        pen.line((x, top, x, top + band * 0.35), fill=INK, width=stroke)
        pen.text((x, top + band * 0.68), str(value), INK, face, anchor="mm")
    for i, (color, first, last) in enumerate(content["bars"]):
        y = top - row * (count - i - 0.25)
        box = (left + first * unit, y - row * 0.3, left + last * unit, y + row * 0.3)
        pen.rectangle(box, fill=PALETTE[color])


def _draw_rectangle(canvas: Canvas, content: Rectangle) -> None:
    width, height = content["sides"]
    scale = min(canvas.width * 0.68 / width, canvas.height * 0.68 / height)
    w, h = width * scale / 2, height * scale / 2
    x, y = canvas.width * 0.46, canvas.height * 0.46
    canvas.pen.rectangle(
        (x - w, y - h, x + w, y + h), PALETTE[content["color"]], INK, canvas.stroke
    )
    size = min(canvas.width, canvas.height)
    face = font(int(size * 0.07))
    canvas.pen.text((x, y + h + size * 0.06), str(width), INK, face, anchor="mm")
    canvas.pen.text((x + w + size * 0.06, y), str(height), INK, face, anchor="mm")


def caption(scene: Scene[Figure]) -> str:
    content = scene.content
    if content["figure"] == "angle":
        first, second = content["rays"]
        return f"A protractor with {content['color']} rays at {first} and {second} degrees."
    if content["figure"] == "ruler":
        bars = ", ".join(f"{color} bar from {a} to {b}" for color, a, b in content["bars"])
        return f"A ruler with a {bars}."
    if content["figure"] == "rectangle":
        width, height = content["sides"]
        return f"A {content['color']} rectangle {width} wide and {height} high."
    letters, angles = content["letters"], content["angles"]
    if content["equal"]:
        return (
            f"A triangle {letters} with equal sides {letters[0]}{letters[2]} and "
            f"{letters[1]}{letters[2]}, angle {letters[2]} {angles[2]} degrees, "
            f"angle {letters[0]} unknown."
        )
    return (
        f"A triangle {letters} with angle {letters[0]} {angles[0]} degrees, "
        f"angle {letters[1]} {angles[1]} degrees, angle {letters[2]} unknown."
    )


class _Reading(NamedTuple):
    """What one reads off a figure: the reasoning, its result, and the words of the question."""

    body: str
    value: int
    label: str
    words: dict[str, str]


def ask(scene: Scene[Figure], kind: str, rng: Random) -> Question | None:
    content = scene.content
    if content["figure"] == "angle":
        reading = _read_angle(content)
    elif content["figure"] == "triangle":
        reading = _read_triangle(content)
    elif content["figure"] == "ruler":
        reading = _read_ruler(content, kind, rng)
        if reading.value <= 0:  # two bars of one length
            return None
    else:
        reading = _read_rectangle(content, kind)
    body, value, label, words = reading
    problem = rng.choice(_PHRASES["missing_angle" if kind == "isosceles" else kind]).format(**words)
    answer, decoy = str(value), near_miss(rng, value, 5)
    if kind == "angle_type":
        answer = "acute" if value < 90 else "right" if value == 90 else "obtuse"
        decoy, label = other(rng, ["acute", "right", "obtuse"], answer), "type"
        relation = {"acute": "less than 90", "right": "exactly 90", "obtuse": "more than 90"}
        body += f" That is {relation[answer]}."
    return reasoned("figure", problem, answer, decoy, body, label)


def _read_angle(content: Angle) -> _Reading:
    first, second = content["rays"]
    value = second - first
    body = f"The rays are at {first} and {second}. {second} minus {first} is {value}."
    return _Reading(body, value, "angle", {})


def _read_triangle(content: Triangle) -> _Reading:
    x = content["letters"][unknown_vertex(content)]
    if content["equal"]:
        value, _, apex = content["angles"]
        body = (
            f"The angles across from equal sides are equal. 180 minus {apex} is {180 - apex}. "
            f"Half of {180 - apex} is {value}."
        )
    else:
        a, b, value = content["angles"]
        body = f"{a} plus {b} is {a + b}. 180 minus {a + b} is {value}."
    return _Reading(body, value, f"angle {x}", {"x": x})


def _read_rectangle(content: Rectangle, kind: str) -> _Reading:
    width, height = content["sides"]
    if kind == "perimeter":
        value = 2 * (width + height)
        body = f"{width} plus {height} is {width + height}. Twice {width + height} is {value}."
    else:
        value = width * height
        body = f"{width} times {height} is {value}."
    return _Reading(body, value, kind, {})


def _read_ruler(content: Ruler, kind: str, rng: Random) -> _Reading:
    """Read one bar, or two and their difference: <= 0 if they are equally long."""
    if kind == "ruler":
        color, first, last = rng.choice(content["bars"])
        body = (
            f"The {color} bar goes from {first} to {last}. {last} minus {first} is {last - first}."
        )
        return _Reading(body, last - first, "length", {"x": color})
    by_length = sorted(content["bars"], key=lambda bar: bar[1] - bar[2])  # the longest first
    (x, x0, x1), (y, y0, y1) = by_length[:2]
    long, short = x1 - x0, y1 - y0
    body = (
        f"The {x} bar is {x1} minus {x0}, that is {long}. The {y} bar is {y1} minus {y0}, "
        f"that is {short}. {long} minus {short} is {long - short}."
    )
    return _Reading(body, long - short, "difference", {"x": x, "y": y})


FAMILY = Family("geometry", KINDS, (140, 140, 140), make, draw, caption, ask)
