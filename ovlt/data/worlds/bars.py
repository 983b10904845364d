"""Bars of whole-number height 1 to 9 in distinct colours, on a grid of one line per unit.

There is nothing to count: the trace ``tally`` reads all heights and then names the bars in
question, so that each number is a copy of one just written; ``scan`` leaves that step out.
"""

from __future__ import annotations

from random import Random
from typing import TypedDict

from PIL import Image, ImageDraw

from ovlt.data.worlds.base import (
    BACKGROUND,
    COLORS,
    GRID,
    INK,
    PALETTE,
    Family,
    Question,
    Scene,
    font,
    near_miss,
    other,
)

KINDS = ("tallest", "bar_h", "bar_sum")
MAX_HEIGHT = 9

# level -> fewest bars, most bars, colours in use
_LEVELS = {1: (3, 4, 4), 2: (5, 6, 6), 3: (7, 8, 8)}

_TALLEST = (
    "Which bar is the tallest?",
    "What color is the tallest bar?",
    "Which color has the highest bar?",
)
_HEIGHT = (
    "How tall is the {x} bar?",
    "What is the height of the {x} bar?",
    "What value does the {x} bar reach?",
)
_SUM = (
    "What is the sum of the {x} and {y} bars?",
    "How much are the {x} bar and the {y} bar together?",
    "Add the heights of the {x} and {y} bars.",
)


class BarsContent(TypedDict):
    """Bars from left to right."""

    bars: list[tuple[str, int]]  # colour, height


def make(rng: Random, level: int, kind: str) -> Scene[BarsContent]:
    fewest, most, num_colors = _LEVELS[level]
    colors = rng.sample(COLORS[:num_colors], rng.randint(fewest, most))
    bars = [(color, rng.randint(1, MAX_HEIGHT)) for color in colors]
    return Scene({"bars": bars}, rng.getrandbits(32))


def draw(scene: Scene[BarsContent], width: int, height: int) -> Image.Image:
    """Paint the bars: at 84 pixels a unit is 9 pixels high; from 168 on, the axis has numbers."""
    bars, look = scene.content["bars"], Random(scene.look)
    image = Image.new("RGB", (width, height), BACKGROUND)
    pen = ImageDraw.Draw(image)
    base = round(height * 82 / 84)
    if labelled := min(width, height) >= 168:
        base = round(height * 0.96)
    unit = base / (MAX_HEIGHT + (0.5 if labelled else 0.0))
    left = round(height * 0.07) if labelled else 0
    thin = max(1, round(height / 336))
    for value in range(1, MAX_HEIGHT + 1):
        y = round(base - value * unit)
        pen.rectangle((left, y, width, y + thin - 1), fill=GRID)
    if labelled:
        face = font(round(unit * 0.55))
        for value in range(MAX_HEIGHT + 1):
            pen.text((left * 0.75, base - value * unit), str(value), INK, face, anchor="rm")
    slot = (width - left) / len(bars)
    for index, (color, value) in enumerate(bars):
        bar = slot * look.uniform(0.55, 0.75)
        x = left + index * slot + (slot - bar) / 2
        top = round(base - value * unit)
        pen.rectangle((round(x), top, round(x + bar), base), fill=PALETTE[color])
    pen.rectangle((left, base, width, base + max(1, height // 120)), fill=INK)
    return image


def caption(scene: Scene[BarsContent]) -> str:
    return ", ".join(f"{color} bar {value}" for color, value in scene.content["bars"]) + "."


def ask(scene: Scene[BarsContent], kind: str, rng: Random) -> Question | None:
    heights: dict[str, int] = dict(scene.content["bars"])
    read = ", ".join(f"{color} {value}" for color, value in heights.items())
    if kind == "tallest":
        best = max(heights.values())
        if list(heights.values()).count(best) > 1:
            return None
        answer = next(color for color, value in heights.items() if value == best)
        decoy = other(rng, list(heights), answer)
        problem = rng.choice(_TALLEST)
        named, bare = f" The highest is {best}, the {answer} bar.", f" The highest is {best}."
        short, summary = f"It is {answer}.", f"The tallest bar is {answer}."
    elif kind == "bar_h":
        x, value = rng.choice(list(heights.items()))
        answer, decoy = str(value), near_miss(rng, value)
        problem = rng.choice(_HEIGHT).format(x=x)
        named, bare = f" The {x} bar is {value}.", ""
        short, summary = f"It is {answer}.", f"The height is {answer}."
    else:
        (x, first), (y, second) = rng.sample(list(heights.items()), 2)
        answer, decoy = str(first + second), near_miss(rng, first + second)
        problem = rng.choice(_SUM).format(x=x, y=y)
        bare = f" {first} plus {second}."
        named = f" The {x} bar is {first}, the {y} bar is {second}.{bare}"
        short, summary = f"It is {answer}.", f"The sum is {answer}."
    return Question(
        problem=problem,
        answer=answer,
        decoy=decoy,
        traces={
            "tally": f"I read: {read}.{named} So {answer}.",
            "scan": f"I see: {read}.{bare} So {answer}.",
            "direct": f"I look at the bars. So {answer}.",
        },
        short=short,
        summary=summary,
    )


FAMILY = Family("bars", KINDS, (56, 56, 84), make, draw, caption, ask)
