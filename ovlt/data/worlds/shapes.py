"""Coloured shapes to count and compare, as in CLEVR and Super-CLEVR.

Level 1 at 84 x 84 pixels is a grid of 3 x 3 cells of 28 pixels, one merged patch of Qwen2.5-VL
each, with 2 to 6 shapes: the smallest world in which a tiny model learns to count. Traces are short
and regular for the same reason. Objects are always listed row by row.
"""

from __future__ import annotations

from functools import lru_cache
from math import cos, pi, sin
from random import Random
from typing import TypedDict

from PIL import Image, ImageDraw

from ovlt.data.worlds.base import BACKGROUND, COLORS, PALETTE, Family, Question, Scene, near_miss

SHAPES = ("circle", "square", "triangle", "cross", "star", "diamond")
KINDS = ("count_all", "count_s", "count_c", "count_cs", "total2", "more")

# level -> columns, rows, fewest shapes, most shapes, colours in use, shapes in use
_LEVELS = {1: (3, 3, 2, 6, 4, 4), 2: (4, 3, 5, 9, 6, 5), 3: (6, 4, 8, 14, 6, 6)}

_COUNT = (
    "How many {x} are there?",
    "Count the {x}.",
    "What is the number of {x}?",
    "How many {x} do you see?",
)
_TOTAL = (
    "How many {x} and {y} are there in total?",
    "Count the {x} and the {y} together.",
    "What is the total number of {x} and {y}?",
)
_MORE = (
    "Which {what} is more common, {x} or {y}?",
    "Is {x} or {y} the more common {what}?",
    "Which {what} appears more often, {x} or {y}?",
)

Shape = tuple[str, str]  # colour, shape


class ShapesContent(TypedDict):
    """Objects on a grid, at most one to a cell."""

    columns: int
    rows: int
    objects: list[tuple[int, str, str]]  # cell in reading order, colour, shape


def make(rng: Random, level: int, kind: str) -> Scene[ShapesContent]:
    columns, rows, fewest, most, num_colors, num_shapes = _LEVELS[level]
    count = rng.randint(fewest, most)
    colors, shapes = COLORS[:num_colors], SHAPES[:num_shapes]
    if rng.random() < 0.5:  # few sorts of things; otherwise almost every count is 0 or 1
        colors, shapes = rng.sample(colors, 2), rng.sample(shapes, 2)
    cells = sorted(rng.sample(range(columns * rows), count))
    objects = [(cell, rng.choice(colors), rng.choice(shapes)) for cell in cells]
    return Scene({"columns": columns, "rows": rows, "objects": objects}, rng.getrandbits(32))


def _star(radius: float) -> list[tuple[float, float]]:
    radii = (radius, radius * 0.45)
    return [(radii[i % 2] * sin(i * pi / 5), -radii[i % 2] * cos(i * pi / 5)) for i in range(10)]


@lru_cache(maxsize=256)
def _mask(shape: str, diameter: int) -> Image.Image:
    """Return the coverage of one shape, ``[diameter, diameter]``, drawn at 8x and reduced."""
    big = 8 * diameter
    mask = Image.new("L", (big, big), 0)
    pen = ImageDraw.Draw(mask)
    end = big - 1
    if shape == "circle":
        pen.ellipse((0, 0, end, end), fill=255)
    elif shape == "square":
        inset = big * 0.07  # so that its area is close to that of the others
        pen.rectangle((inset, inset, end - inset, end - inset), fill=255)
    elif shape == "triangle":
        pen.polygon([(end / 2, 0), (end, end), (0, end)], fill=255)
    elif shape == "cross":
        low, high = big * 0.32, big * 0.68
        pen.rectangle((low, 0, high, end), fill=255)
        pen.rectangle((0, low, end, high), fill=255)
    elif shape == "star":
        pen.polygon([(end / 2 + x, big * 0.53 + y) for x, y in _star(big * 0.53)], fill=255)
    else:
        pen.polygon(
            [(end / 2, 0), (end * 0.9, end / 2), (end / 2, end), (end * 0.1, end / 2)], fill=255
        )
    return mask.reduce(8)


def draw(scene: Scene[ShapesContent], width: int, height: int) -> Image.Image:
    content, look = scene.content, Random(scene.look)
    columns, rows = content["columns"], content["rows"]
    cell_w, cell_h = width / columns, height / rows
    cell = min(cell_w, cell_h)
    image = Image.new("RGB", (width, height), BACKGROUND)
    for index, color, shape in content["objects"]:
        diameter = max(8, round(cell * look.uniform(0.62, 0.76)))
        # one pixel of each cell's rim stays free, so that two shapes never touch
        left = int(index % columns * cell_w + 1 + look.random() * (cell_w - 2 - diameter))
        top = int(index // columns * cell_h + 1 + look.random() * (cell_h - 2 - diameter))
        image.paste(PALETTE[color], (left, top), _mask(shape, diameter))
    return image


def _objects(scene: Scene[ShapesContent]) -> list[Shape]:
    return [(color, shape) for _, color, shape in scene.content["objects"]]


def caption(scene: Scene[ShapesContent]) -> str:
    return ", ".join(f"{color} {shape}" for color, shape in _objects(scene)) + "."


def plural(shape: str) -> str:
    return shape + ("es" if shape == "cross" else "s")


def _running(objects: list[Shape], part: str, groups: list[list[Shape]]) -> str:
    """Return every object in order, named as the question names it, each with the counts so far.

    A tiny transformer learns to count in this form: the next object is the next one in the image,
    and whether a count goes up is a comparison of the word just written with the question.
    ``part`` is "color", "shape" or "both"; ``groups`` holds the objects of each count.
    """
    parts, counts = [], [0] * len(groups)
    for color, shape in objects:
        counts = [n + ((color, shape) in group) for n, group in zip(counts, groups, strict=True)]
        name = {"color": color, "shape": shape, "both": f"{color} {shape}"}[part]
        parts.append(" ".join([name, *map(str, counts)]))
    return ", ".join(parts)


def _spread(rng: Random, options: list[tuple[str, list[Shape]]]) -> tuple[str, list[Shape]]:
    """Draw an option, its count first: 0 and 1, which nearly every scene offers, less often."""
    counts = sorted({len(objects) for _, objects in options})
    target = rng.choices(counts, [{0: 0.4, 1: 0.6}.get(count, 1.0) for count in counts])[0]
    return rng.choice([option for option in options if len(option[1]) == target])


def _options(
    kind: str, objects: list[Shape], num_c: int, num_s: int
) -> list[tuple[str, list[Shape]]]:
    """Return everything a kind can ask about at this level, with the objects that answer it."""
    colors, shapes = COLORS[:num_c], SHAPES[:num_s]
    if kind == "count_c":
        return [(f"{c} shapes", [o for o in objects if o[0] == c]) for c in colors]
    if kind == "count_s":
        return [(plural(s), [o for o in objects if o[1] == s]) for s in shapes]
    return [
        (f"{c} {plural(s)}", [o for o in objects if o == (c, s)]) for c in colors for s in shapes
    ]


def ask(scene: Scene[ShapesContent], kind: str, rng: Random) -> Question | None:
    objects = _objects(scene)
    level = next(k for k, v in _LEVELS.items() if v[0] == scene.content["columns"])
    num_c, num_s = _LEVELS[level][4:]
    everything = ", ".join(f"{color} {shape}" for color, shape in objects)
    if kind == "more":
        return _ask_more(objects, everything, rng, num_c, num_s)
    label, part = "count", {"count_c": "color", "count_cs": "both"}.get(kind, "shape")
    if kind == "count_all":
        counted, problem = objects, rng.choice(_COUNT).format(x="shapes")
    elif kind == "total2":
        one = rng.choice(("count_c", "count_s"))
        part = "color" if one == "count_c" else "shape"
        (x, first), (y, second) = rng.sample(_options(one, objects, num_c, num_s), 2)
        if not first and not second:
            return None
        counted = [o for o in objects if o in first or o in second]
        problem, label = rng.choice(_TOTAL).format(x=x, y=y), "total"
    else:
        x, counted = _spread(rng, _options(kind, objects, num_c, num_s))
        problem = rng.choice(_COUNT).format(x=x)
    n = len(counted)
    return Question(
        problem=problem,
        answer=str(n),
        decoy=near_miss(rng, n),
        traces={
            "tally": f"I count: {_running(objects, part, [counted])}. So {n}.",
            "scan": f"I see: {everything}. So {n}.",
            "direct": f"I look at the shapes. So {n}.",
        },
        short=f"There {'is' if n == 1 else 'are'} {n}.",
        summary=f"The {label} is {n}.",
    )


def _ask_more(
    objects: list[Shape], everything: str, rng: Random, num_c: int, num_s: int
) -> Question | None:
    by_color = rng.random() < 0.5
    what, words = ("color", COLORS[:num_c]) if by_color else ("shape", SHAPES[:num_s])
    x, y = rng.sample(words, 2)
    group = {w: [o for o in objects if o[0 if by_color else 1] == w] for w in (x, y)}
    if len(group[x]) == len(group[y]):
        return None
    answer, decoy = (x, y) if len(group[x]) > len(group[y]) else (y, x)
    return Question(
        problem=rng.choice(_MORE).format(what=what, x=x, y=y),
        answer=answer,
        decoy=decoy,
        traces={
            "tally": f"I count: {_running(objects, what, [group[x], group[y]])}. So {answer}.",
            "scan": f"I see: {everything}. So {answer}.",
            "direct": f"I look at the shapes. So {answer}.",
        },
        short=f"It is {answer}.",
        summary=f"The more common {what} is {answer}.",
    )


FAMILY = Family("shapes", KINDS, (56, 84, 140), make, draw, caption, ask)
