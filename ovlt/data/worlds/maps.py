"""Maps of made-up regions whose tint is explained by a legend, as in MapQA.

Regions lie in rows; two regions border each other when they share an edge, so a region's
neighbours are the one above, below, left and right. Regions that meet in a corner only are never
asked about.
"""

from __future__ import annotations

import itertools
from random import Random
from typing import TypedDict

from PIL import Image

from ovlt.data.worlds.base import (
    INK,
    Canvas,
    Family,
    Question,
    Scene,
    fit_font,
    near_miss,
    other,
    pick_by_truth,
    reasoned,
    yes_no,
)

KINDS = ("class_of", "count_class", "same_class", "higher", "borders")
NAMES = (
    "Avon",
    "Brix",
    "Colm",
    "Dorn",
    "Elba",
    "Fenn",
    "Gale",
    "Holt",
    "Iver",
    "Jura",
    "Kell",
    "Lorn",
    "Mira",
    "Nore",
    "Oren",
    "Pell",
)
CLASSES = {
    1: ("low", "medium", "high"),
    2: ("low", "medium", "high", "extreme"),
    3: ("scarce", "low", "medium", "high", "extreme"),
}
_GRID = {1: (3, 2), 2: (3, 3), 3: (4, 3)}  # level -> columns, rows
_MEASURES = ("rainfall", "population", "income", "farming", "tourism")
_SCALES = (  # lightest and darkest tint
    ((232, 241, 252), (60, 120, 200)),
    ((234, 246, 232), (58, 150, 82)),
    ((254, 240, 222), (226, 120, 40)),
    ((246, 234, 248), (152, 88, 186)),
)

_CLASS = (
    "What is the {m} level of {x}?",
    "According to the legend, how is the {m} in {x}?",
    "Which {m} class does {x} belong to?",
)
_COUNT = (
    "How many regions have {k} {m}?",
    "Count the regions with {k} {m}.",
    "What is the number of regions with {k} {m}?",
)
_SAME = (
    "Do {x} and {y} have the same {m} level?",
    "Is the {m} level of {x} equal to that of {y}?",
    "Are {x} and {y} in the same {m} class?",
)
_HIGHER = (
    "Does {x} have a higher {m} level than {y}?",
    "Is the {m} level of {x} above that of {y}?",
    "Compared with {y}, is the {m} level of {x} higher?",
)
_BORDERS = (
    "Does {x} share a border with {y}?",
    "Is {x} a neighbor of {y}?",
    "Do {x} and {y} border each other?",
)


class MapContent(TypedDict):
    """Regions in reading order, ``columns`` to a row."""

    measure: str
    classes: list[str]  # from least to most
    columns: int
    regions: list[tuple[str, str]]  # name, class


def make(rng: Random, level: int, kind: str) -> Scene[MapContent]:
    columns, rows = _GRID[level]
    names = rng.sample(NAMES, columns * rows)
    classes = CLASSES[level]
    content: MapContent = {
        "measure": rng.choice(_MEASURES),
        "classes": list(classes),
        "columns": columns,
        "regions": [(name, rng.choice(classes)) for name in names],
    }
    return Scene(content, rng.getrandbits(32))


def _wavy(
    start: tuple[float, float], end: tuple[float, float], size: float, look: Random
) -> list[tuple[float, float]]:
    """Return a border between two points, displaced at its midpoints three times over."""
    points = [start, end]
    for _ in range(3):
        finer = [points[0]]
        for (x0, y0), (x1, y1) in itertools.pairwise(points):
            finer.append(
                (
                    (x0 + x1) / 2 + look.uniform(-size, size),
                    (y0 + y1) / 2 + look.uniform(-size, size),
                )
            )
            finer.append((x1, y1))
        points, size = finer, size / 2
    return points


def tints(look: int, count: int) -> list[tuple[int, int, int]]:
    """Return the colours of the classes, lightest first."""
    light, dark = Random(look).choice(_SCALES)
    r, g, b = (
        [round(x + (y - x) * i / (count - 1)) for i in range(count)]
        for x, y in zip(light, dark, strict=True)
    )
    return list(zip(r, g, b, strict=True))


def draw(scene: Scene[MapContent], width: int, height: int) -> Image.Image:
    content = scene.content
    columns, rows = content["columns"], len(content["regions"]) // content["columns"]
    colors = dict(zip(content["classes"], tints(scene.look, len(content["classes"])), strict=True))
    look = Random(scene.look)
    canvas = Canvas(width, height)
    left, right = canvas.width * 0.06, canvas.width * 0.94
    top, bottom = canvas.height * 0.07, canvas.height * 0.77
    cell_w, cell_h = (right - left) / columns, (bottom - top) / rows
    nodes = [
        [
            (
                left + (c + look.uniform(-0.12, 0.12)) * cell_w,
                top + (r + look.uniform(-0.10, 0.10)) * cell_h,
            )
            for c in range(columns + 1)
        ]
        for r in range(rows + 1)
    ]
    wave = min(cell_w, cell_h) * 0.07
    across = [
        [_wavy(nodes[r][c], nodes[r][c + 1], wave, look) for c in range(columns)]
        for r in range(rows + 1)
    ]
    down = [
        [_wavy(nodes[r][c], nodes[r + 1][c], wave, look) for c in range(columns + 1)]
        for r in range(rows)
    ]
    face = fit_font([name for name, _ in content["regions"]], cell_w * 0.6, cell_h * 0.3)
    for index, (_, kind) in enumerate(content["regions"]):
        r, c = divmod(index, columns)
        outline = across[r][c] + down[r][c + 1] + across[r + 1][c][::-1] + down[r][c][::-1]
        canvas.pen.polygon(outline, fill=colors[kind])
    for path in [p for row in (*across, *down) for p in row]:
        canvas.pen.line(path, fill=INK, width=canvas.stroke, joint="curve")
    for index, (name, _) in enumerate(content["regions"]):
        r, c = divmod(index, columns)
        ring = (nodes[r][c], nodes[r][c + 1], nodes[r + 1][c], nodes[r + 1][c + 1])
        center = (sum(x for x, _ in ring) / 4, sum(y for _, y in ring) / 4)
        canvas.pen.text(center, name, INK, face, anchor="mm")
    _draw_legend(canvas, content["measure"], colors)
    return canvas.finish()


def _draw_legend(canvas: Canvas, measure: str, colors: dict[str, tuple[int, int, int]]) -> None:
    """Paint the name of the measure over one field per class: its tint with its name on it."""
    left, right = canvas.width * 0.06, canvas.width * 0.94
    top, bottom = canvas.height * 0.89, canvas.height * 0.98
    title = fit_font([measure], right - left, canvas.height * 0.055)
    canvas.pen.text((canvas.width / 2, canvas.height * 0.855), measure, INK, title, anchor="mm")
    slot = (right - left) / len(colors)
    face = fit_font(list(colors), slot * 0.84, (bottom - top) * 0.62)
    for i, (name, color) in enumerate(colors.items()):
        x = left + i * slot
        canvas.pen.rectangle((x, top, x + slot, bottom), color, INK, max(2, canvas.stroke // 2))
        canvas.pen.text((x + slot / 2, (top + bottom) / 2), name, INK, face, anchor="mm")


def caption(scene: Scene[MapContent]) -> str:
    content, columns = scene.content, scene.content["columns"]
    regions = [f"{name} {kind}" for name, kind in content["regions"]]
    rows = [", ".join(regions[i : i + columns]) for i in range(0, len(regions), columns)]
    listed = " ".join(f"Row {i}: {row}." for i, row in enumerate(rows, 1))
    scale = ", ".join(content["classes"])
    return f"A map of {content['measure']}, from least to most: {scale}. {listed}"


def ask(scene: Scene[MapContent], kind: str, rng: Random) -> Question | None:
    content = scene.content
    regions: dict[str, str] = dict(content["regions"])
    classes, measure = content["classes"], content["measure"]
    if kind == "class_of":
        x, answer = rng.choice(list(regions.items()))
        body = f"I find {x} and compare its tint with the legend: it is {answer}."
        return reasoned(
            "map",
            rng.choice(_CLASS).format(x=x, m=measure),
            answer,
            other(rng, classes, answer),
            body,
            "level",
        )
    if kind == "count_class":
        target = rng.choice(classes)
        names = [name for name, value in regions.items() if value == target]
        body = (
            f"Regions that are {target}: "
            + (", ".join(f"{name} {i}" for i, name in enumerate(names, 1)) or "none 0")
            + "."
        )
        return reasoned(
            "map",
            rng.choice(_COUNT).format(k=target, m=measure),
            str(len(names)),
            near_miss(rng, len(names)),
            body,
            "count",
        )
    names = list(regions)
    pairs = [(x, y) for x in names for y in names if x != y]
    if kind == "borders":
        return _ask_borders(rng, names, pairs, content["columns"])
    if kind == "same_class":
        phrases, cases = _SAME, [((x, y), regions[x] == regions[y]) for x, y in pairs]
    else:
        rank = {name: classes.index(value) for name, value in regions.items()}
        phrases = _HIGHER
        cases = [((x, y), rank[x] > rank[y]) for x, y in pairs if rank[x] != rank[y]]
    picked = pick_by_truth(rng, cases)
    if picked is None:
        return None
    (x, y), truth = picked
    body = f"{x} is {regions[x]} and {y} is {regions[y]}."
    return reasoned(
        "map", rng.choice(phrases).format(x=x, y=y, m=measure), *yes_no(truth), body, "answer"
    )


def _ask_borders(
    rng: Random, names: list[str], pairs: list[tuple[str, str]], columns: int
) -> Question | None:
    place = {name: divmod(i, columns) for i, name in enumerate(names)}

    def gap(x: str, y: str) -> tuple[int, int]:
        return abs(place[x][0] - place[y][0]), abs(place[x][1] - place[y][1])

    cases = [((x, y), sum(gap(x, y)) == 1) for x, y in pairs if gap(x, y) != (1, 1)]
    picked = pick_by_truth(rng, cases)
    if picked is None:
        return None
    (x, y), truth = picked
    near = [n for n in names if sum(gap(x, n)) == 1]
    body = f"The neighbors of {x} are {', '.join(near)}. {y} is {'' if truth else 'not '}one."
    return reasoned("map", rng.choice(_BORDERS).format(x=x, y=y), *yes_no(truth), body, "answer")


FAMILY = Family("maps", KINDS, (140, 168, 196), make, draw, caption, ask)
