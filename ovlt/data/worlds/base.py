"""Types, colours and drawing tools that the image families of the synthetic world share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from random import Random
from typing import Generic, TypeVar

from PIL import Image, ImageDraw, ImageFont

PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (214, 48, 49),
    "blue": (45, 98, 220),
    "green": (39, 158, 72),
    "yellow": (245, 196, 24),
    "purple": (142, 68, 190),
    "black": (38, 38, 44),
    "orange": (240, 128, 20),
    "pink": (244, 130, 180),
}
COLORS = tuple(PALETTE)
BACKGROUND = (250, 250, 248)
INK = (35, 35, 40)
GRID = (214, 214, 210)
LEVELS = (1, 2, 3)


@dataclass(frozen=True)
class WorldSpec:
    """How large the images are and how hard the questions.

    ``size`` is pixels of a side, or (width, height). ``difficulty`` is the level (1 to 3) of every
    item unless ``generate`` is given ``levels``.
    """

    size: int | tuple[int, int] = 84
    difficulty: int = 1

    def __post_init__(self) -> None:
        if min(self.width, self.height) < 56:
            raise ValueError(f"size {self.size} is too small to draw on: use at least 56 pixels")
        if self.difficulty not in LEVELS:
            raise ValueError(f"difficulty {self.difficulty} does not exist: use 1, 2 or 3")

    @property
    def width(self) -> int:
        return self.size if isinstance(self.size, int) else self.size[0]

    @property
    def height(self) -> int:
        return self.size if isinstance(self.size, int) else self.size[1]


Content = TypeVar("Content", bound=Mapping[str, object])


@dataclass(frozen=True)
class Scene(Generic[Content]):
    """What a picture shows.

    ``content`` is a TypedDict of the image family, plain JSON data, and decides the split. ``look``
    seeds what carries no meaning (jitter, rotation, hue) and does not touch the split.
    """

    content: Content
    look: int = 0

    def key(self, family: str) -> str:
        """Return a hash of the content, 16 hex digits."""
        text = json.dumps([family, self.content], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Question:
    """A question about one scene.

    Every trace, and the summary, ends in the answer and a full stop; ``decoy`` is a plausible wrong
    answer.
    """

    problem: str
    answer: str
    decoy: str
    traces: dict[str, str]
    short: str
    summary: str


@dataclass(frozen=True)
class Item:
    """One question with its picture. ``problem`` holds no image tag: the writers put it in front.

    ``traces`` maps a style to reasoning that ends in the answer; ``short`` and ``caption`` know
    nothing of the response format. ``key`` is the hash of the scene's content.
    """

    id: str
    family: str
    kind: str
    level: int
    problem: str
    answer: str
    image: Image.Image = field(compare=False)
    caption: str
    short: str
    traces: dict[str, str]
    summary: str
    key: str
    decoy: str


@dataclass(frozen=True)
class Family(Generic[Content]):
    """An image family: one kind of picture and the kinds of question about it.

    ``make`` draws at random a scene that suits a level and a kind of question; ``draw`` paints it
    at a width and height in pixels; ``ask`` returns None if the scene has no clear answer to that
    kind of question.
    """

    name: str
    kinds: tuple[str, ...]
    min_side: tuple[int, int, int]  # shortest legible side in pixels, per level
    make: Callable[[Random, int, str], Scene[Content]]
    draw: Callable[[Scene[Content], int, int], Image.Image]
    caption: Callable[[Scene[Content]], str]
    ask: Callable[[Scene[Content], str, Random], Question | None]


def reasoned(
    picture: str, problem: str, answer: str, decoy: str, body: str, label: str
) -> Question:
    """Return a question with the trace ``body`` and a conclusion; ``label`` names the answer."""
    short = f"{answer.capitalize()}." if answer in ("yes", "no") else f"It is {answer}."
    return Question(
        problem=problem,
        answer=answer,
        decoy=decoy,
        traces={
            "steps": f"{body} So the {label} is {answer}.",
            "direct": f"I look at the {picture}. So the {label} is {answer}.",
        },
        short=short,
        summary=f"The {label} is {answer}.",
    )


def near_miss(rng: Random, value: int, spread: int = 2) -> str:
    """Draw a whole number close to ``value``, not equal to it and not negative."""
    steps = [d for d in range(-spread, spread + 1) if d and value + d >= 0]
    return str(value + rng.choice(steps))


def other(rng: Random, options: list[str], answer: str) -> str:
    """Draw one of ``options`` that is not the answer."""
    return rng.choice([option for option in options if option != answer])


def yes_no(truth: bool) -> tuple[str, str]:
    """Return (answer, decoy) of a yes/no question."""
    return ("yes", "no") if truth else ("no", "yes")


Case = TypeVar("Case")


def pick_by_truth(rng: Random, cases: list[tuple[Case, bool]]) -> tuple[Case, bool] | None:
    """Toss a fair coin and draw a case with that truth; None if no case has it.

    The caller then draws another scene but the coin stays the same, so yes and no come about
    equally often.
    """
    truth = rng.random() < 0.5
    fitting = [case for case in cases if case[1] == truth]
    return rng.choice(fitting) if fitting else None


@lru_cache(maxsize=128)
def font(pixels: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return Pillow's built-in face at a height in pixels."""
    return ImageFont.load_default(max(6, pixels))


def fit_font(
    texts: list[str], max_width: float, max_height: float
) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return the largest built-in face in which each text fits the width and height (pixels)."""
    pixels = max(6, int(max_height))
    widest = max((font(pixels).getlength(text) for text in texts), default=0.0)
    if widest > max_width:
        pixels = max(6, int(pixels * max_width / widest))
    return font(pixels)


class Canvas:
    """A picture drawn at twice its size and halved at the end, which smooths lines and text.

    Coordinates are those of the large picture: ``self.width`` and ``self.height`` are doubled.
    """

    scale = 2

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width * self.scale, height * self.scale
        self.image = Image.new("RGB", (self.width, self.height), BACKGROUND)
        self.pen = ImageDraw.Draw(self.image)
        self.stroke = max(2, round(min(self.width, self.height) / 160))

    def finish(self) -> Image.Image:
        """Return the picture at its final size."""
        return self.image.reduce(self.scale)
