"""MMMU-Pro: 1,730 questions with 10 or 4 options, and as a picture (MMMU/MMMU_Pro; 2409.02813).

Facts: MMMU-Benchmark/MMMU at bb0b95a, mmmu-pro/evaluate.py. Rules only; where they find no option
the authors draw one at random, unseeded. Here the draw is seeded by the id, and its share is said.
The published overall is the mean of standard with 10 options and vision.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from typing import ClassVar

from ovlt.benchmarks import openvlthinker, vlmevalkit
from ovlt.benchmarks.columns import letter, lettered, options_of, text_of
from ovlt.benchmarks.items import (
    BenchmarkItem,
    BenchmarkPrompt,
    BenchmarkRow,
    BenchmarkTask,
    Rule,
    RuleRun,
    Ruling,
    Split,
    StyleName,
)

_TAG = re.compile(r"<image (\d)>")
_LAST_LINE = (
    "The last line of your response should be of the following format: 'Answer: $LETTER' (without "
    "quotes) where LETTER is one of options."
)
_STEPS = " Think step by step before answering."
_DIRECT = "Answer with the option letter from the given choices directly."
_KIT_LAST_LINE = (
    "The last line of your response should be of the following format: 'Answer: $LETTER' (without "
    "quotes) where LETTER is one of the options. Think step by step before answering. "
)
_KIT_DIRECT = "Answer directly with the option letter from the given choices. "


def _split(config: str) -> Split:
    counts = {
        ("", ""): 1730,
        ("part", "test"): 1153,
        ("part", "validation"): 577,
    }
    return Split(config, "test", (("test",),), counts)


class MmmuPro(BenchmarkTask):
    """MMMU-Pro in its three settings."""

    name: ClassVar[str] = "mmmu-pro"
    title: ClassVar[str] = "MMMU-Pro"
    hub: ClassVar[str] = "MMMU/MMMU_Pro"
    overlap: ClassVar[str] = "MMMU, validation (577 questions) and test"
    splits: ClassVar[Mapping[str, Split]] = {
        "standard10": _split("standard (10 options)"),
        "standard4": _split("standard (4 options)"),
        "vision": _split("vision"),
    }
    combined: ClassVar[tuple[str, ...]] = ("standard10", "vision")
    columns: ClassVar[tuple[str, ...]] = ("id", "options", "answer", "subject")
    image_columns: ClassVar[tuple[str, ...]] = (
        "image_1|image", *(f"image_{i}" for i in range(2, 8)),
    )  # fmt: skip
    settings: ClassVar[Mapping[str, str]] = {
        "direct": "official: ask for the letter alone; its default is step by step",
        "cot": "vlmevalkit: ask for steps and read the last line (its dataset ..._COT)",
    }

    def row_id(self, row: BenchmarkRow) -> str:
        return str(row["id"])

    def prompt(
        self, item: BenchmarkItem, style: StyleName, settings: frozenset[str]
    ) -> BenchmarkPrompt:
        row, options = item.row, options_of(item.row)
        question = text_of(row, "question")
        vision = "question" not in row
        if style == "openvlthinker":
            text = (
                openvlthinker.in_the_image(options) if vision
                else openvlthinker.with_choices(question, options)
            )  # fmt: skip
            return BenchmarkPrompt.images_first(item.images, text)
        if style == "vlmevalkit":
            ask = _KIT_LAST_LINE if "cot" in settings else _KIT_DIRECT
            if vision:
                head = "Answer the following multiple-choice question in the image. "
                return BenchmarkPrompt.images_first((1,), head + ask)
            head = "Answer the following multiple-choice question. " if "cot" in settings else ""
            lines = lettered(options, "{}. {}")
            return at_tags(f"Question: {question}\nOptions:\n{lines}\n{head}{ask}", item)
        if vision:
            head = "Write out the multiple-choice question in the image and then solve it."
            ask = (
                f"{_DIRECT} {_LAST_LINE}" if "direct" in settings
                else f"{head} {_LAST_LINE}{_STEPS}"
            )  # fmt: skip
            return BenchmarkPrompt.images_first((1,), ask)
        head = "Answer the preceding multiple choice question."
        ask = _DIRECT if "direct" in settings else f"{head} {_LAST_LINE}{_STEPS}"
        return images_last(f"{question}\n{lettered(options, '{}. {}')}\n{ask}", item)

    def rules(self) -> Mapping[StyleName, Rule]:
        return {"official": official, "openvlthinker": by_tags, "vlmevalkit": by_matcher}

    def labels(self, row: BenchmarkRow) -> Mapping[str, tuple[str, ...]]:
        difficulty = text_of(row, "topic_difficulty")
        return {
            "subject": (text_of(row, "subject"),),
            "difficulty": (difficulty,) if difficulty else (),
        }

    def counts(self, row: BenchmarkRow) -> Mapping[str, tuple[str, ...]]:
        return {"part": (text_of(row, "id").partition("_")[0],)}


def images_last(text: str, item: BenchmarkItem) -> BenchmarkPrompt:
    """Put ``[image]`` at the tags, and the images after the text in the order of the tags.

    One that is named twice stands twice. The number in a tag names the column.
    """
    images = [int(number) for number in _TAG.findall(text) if int(number) in item.images]
    return BenchmarkPrompt((_TAG.sub("[image]", text), *images))


def at_tags(text: str, item: BenchmarkItem) -> BenchmarkPrompt:
    """Put the images at their tags; without a tag they go first."""
    parts: list[str | int] = [
        int(piece) if i % 2 else piece
        for i, piece in enumerate(_TAG.split(text))
        if i % 2 == 0 or int(piece) in item.images
    ]
    if len(parts) == 1:
        return BenchmarkPrompt.images_first(item.images, text)
    return BenchmarkPrompt(tuple(parts))


def official(row: BenchmarkRow, response: str, settings: frozenset[str]) -> RuleRun:
    """Rule as evaluate.py does; a seeded draw where it draws."""
    options, truth = options_of(row), text_of(row, "answer")
    named = parse(response, options)
    if named:
        return Ruling(named == truth, named, "Answer: line, letter or option text")
    seed = random.Random(f"mmmu-pro {text_of(row, 'id')}")
    drawn = letter(seed.randrange(len(options))) if options else ""
    return Ruling(drawn == truth, "RANDOM", "no option found: a draw", "draw", normalised=drawn)
    yield  # a generator that asks nothing


def parse(response: str, options: list[str]) -> str:
    """Return the letter that the official parser finds, "" where it draws."""
    letters = [letter(i) for i in range(len(options))]
    if "Answer:" in response:
        tail = response.rpartition("Answer:")[2].strip()
        within = [name for name in letters if name in tail]
        if len(within) == 1:
            return within[0]
    for mark in ",.!?;:'":
        response = response.strip(mark)
    text = f" {response} "
    # A letter is looked for in three forms, and where several are found, the last one is taken, by
    # the place of a form of its own ("C " anywhere, but " C " for the place).
    for form, placed in (("({})", "({})"), ("{} ", " {} "), ("{}.", " {} ")):
        found = [name for name in letters if form.format(name) in text]
        if found:
            return max(found, key=lambda name: text.rfind(placed.format(name)))
    if len(text.split()) > 5:
        lowered = text.lower()
        pairs = [
            (name, option.lower())
            for name, option in zip(letters, options, strict=True)
            if option.lower() in lowered
        ]
        if pairs:
            return max(pairs, key=lambda pair: lowered.rfind(pair[1]))[0]
    return ""


def by_tags(row: BenchmarkRow, response: str, settings: frozenset[str]) -> RuleRun:
    """Style openvlthinker: the letter in answer tags."""
    return openvlthinker.rule_for(openvlthinker.truth_in(row, text_of(row, "answer")), response)
    yield  # a generator that asks nothing


def by_matcher(row: BenchmarkRow, response: str, settings: frozenset[str]) -> RuleRun:
    """Style vlmevalkit: the last Answer: line (with cot), the option matcher, then the judge."""
    text = last_line(response) if "cot" in settings else response
    options, answer = options_of(row), text_of(row, "answer")
    return (yield from vlmevalkit.choose_option(text, options, answer, alone=True))


def last_line(response: str) -> str:
    """Return the one capital letter after the last line that starts with "Answer:", else its text.

    Without such a line it is the whole response.
    """
    lines = [line.strip() for line in response.strip().split("\n")]
    marked = [line for line in lines if line.startswith("Answer:")]
    if not marked:
        return response
    tail = marked[-1].removeprefix("Answer:")
    capitals = {char for char in tail if "A" <= char <= "Z"}
    return capitals.pop() if len(capitals) == 1 else tail
