r"""EMMA: 2,788 questions in four subjects, EMMA-mini 4 x 100 (luckychao/EMMA; arXiv 2501.05444).

Facts: EMMA-Bench/EMMA at 50609fd, evaluation/evaluate.py and utils.py. The published numbers are
those of the fast rules; ``llm_eval`` asks a judge, whose reply has to be exactly "correct". Images
stand at their tags, each after "Picture N:", as the authors' Qwen wrapper has them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar

from ovlt.benchmarks import openvlthinker, vlmevalkit
from ovlt.benchmarks.answers import boxed, is_float, number_in_words
from ovlt.benchmarks.columns import lettered, option_at, options_of, text_of
from ovlt.benchmarks.items import (
    Ask,
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
from ovlt.benchmarks.latex_value import latex_value

_SIZES = {"Math": (892, 562), "Physics": (156, 156), "Chemistry": (1176, 720), "Coding": (564, 564)}
_MINI = {"Math": (100, 63), "Physics": (100, 100), "Chemistry": (100, 78), "Coding": (100, 100)}
_TAG = re.compile(r"<image_(\d+)>")
_CHOOSE = (
    "Answer with the option's letter from the given choices and put the letter in one "
    '"\\boxed{}". '
)
_ONE_WORD = (
    'Answer the question using a single word or phrase and put the answer in one "\\boxed{}". '
)
_COT = "Please solve the problem step by step."
_DIRECT = (
    "Please ensure that your output only contains the final answer without any additional content "
    "(such as intermediate reasoning steps)."
)
_JUDGE_TRIES = 5
_SHORT_TRIES = 3


def _split(config: str, sizes: Mapping[str, tuple[int, int]]) -> Split:
    chosen = sizes if config == "All" else {config: sizes[config]}
    total, choice = (sum(size[i] for size in chosen.values()) for i in (0, 1))
    counts = {
        ("", ""): total,
        **{("subject", name): size for name, (size, _) in chosen.items()},
        ("type", "multiple choice"): choice,
    }
    if total > choice:
        counts["type", "open-ended"] = total - choice
    return Split(config, "test", (("test",),), counts, configs=tuple(chosen))


class Emma(BenchmarkTask):
    """EMMA: all subjects, one of them, or EMMA-mini."""

    name: ClassVar[str] = "emma"
    title: ClassVar[str] = "EMMA"
    hub: ClassVar[str] = "luckychao/EMMA"
    overlap: ClassVar[str] = "MathVision and MathVista (498 questions of Math)"
    splits: ClassVar[Mapping[str, Split]] = {
        "test": _split("All", _SIZES),
        **{name.lower(): _split(name, _SIZES) for name in _SIZES},
    }
    columns: ClassVar[tuple[str, ...]] = (
        "pid", "question", "options", "answer", "type", "subject", "category",
    )  # fmt: skip
    image_columns: ClassVar[tuple[str, ...]] = tuple(f"image_{i}" for i in range(1, 6))
    settings: ClassVar[Mapping[str, str]] = {
        "direct": "ask for the answer alone; default of official is step by step",
        "cot": "vlmevalkit: ask for steps (its dataset EMMA_COT)",
        "llm_eval": "official: a judge in place of the fast rules",
    }

    def row_id(self, row: BenchmarkRow) -> str:
        return str(row["pid"])

    def prompt(
        self, item: BenchmarkItem, style: StyleName, settings: frozenset[str]
    ) -> BenchmarkPrompt:
        row, options = item.row, _options(item.row)
        question, context = text_of(row, "question"), text_of(row, "context")
        if style == "openvlthinker":
            present = sorted(item.images)
            if text_of(row, "subject") == "Math" or text_of(row, "pid").startswith("Math"):
                present = present[:1]
            return BenchmarkPrompt.images_first(
                present, openvlthinker.with_choices(question, options)
            )
        lines = "".join(f"{line}\n" for line in lettered(options, "{}: {}").split("\n"))
        body = f"{question}\n{lines}\n" if options else f"{question}\n"
        if style == "vlmevalkit":
            head = f"{context}\n\n" if context else ""
            body = f"{question}\n\n{lines}\n\n" if options else f"{question}\n\n"
            ask = (
                "Answer with the option's letter from the given choices. " if options
                else "Answer the question using a single word or phrase. "
            )  # fmt: skip
            strategy = f"{_COT} " if "cot" in settings else _DIRECT
            return interleaved(head + body + ask + strategy, item)
        strategy = _DIRECT if "direct" in settings else _COT
        text = f"{context}\n{body}{_CHOOSE if options else _ONE_WORD}{strategy}"
        return interleaved(text, item, numbered=True)

    def rules(self) -> Mapping[StyleName, Rule]:
        return {"official": official, "openvlthinker": by_tags, "vlmevalkit": by_matcher}

    def labels(self, row: BenchmarkRow) -> Mapping[str, tuple[str, ...]]:
        subject, task = text_of(row, "subject"), text_of(row, "task")
        categories = (
            text_of(row, "category").split(";")
            if subject == "Coding"
            else [text_of(row, "category")]
        )
        return {
            "subject": (subject,),
            "type": (text_of(row, "type").lower(),),
            "category": tuple(f"{subject}: {name.strip()}" for name in categories if name.strip()),
            "coding task": (task,) if subject == "Coding" and task else (),
        }


class EmmaMini(Emma):
    """EMMA-mini: 100 questions of each subject."""

    name: ClassVar[str] = "emma-mini"
    title: ClassVar[str] = "EMMA-mini"
    hub: ClassVar[str] = "luckychao/EMMA-mini"
    splits: ClassVar[Mapping[str, Split]] = {
        "test": _split("All", _MINI),
        **{name.lower(): _split(name, _MINI) for name in _MINI},
    }


def _is_choice(row: BenchmarkRow) -> bool:
    return text_of(row, "type").lower() == "multiple choice"


def _options(row: BenchmarkRow) -> list[str]:
    return options_of(row) if _is_choice(row) else []


def interleaved(text: str, item: BenchmarkItem, *, numbered: bool = False) -> BenchmarkPrompt:
    """Put images at their tags; a tag without an image stays out, an image without a tag too.

    ``numbered``: fragments of blanks alone are dropped, and "Picture N: " precedes each image.
    """
    parts: list[str | int] = []
    shown = 0
    for i, piece in enumerate(_TAG.split(text)):  # text, number, text, number, text ...
        if i % 2 == 0:
            if piece.strip() or not numbered:
                parts.append(piece)
        elif int(piece) in item.images:
            shown += 1
            parts += [f"Picture {shown}: ", int(piece)] if numbered else [int(piece)]
    return BenchmarkPrompt(tuple(parts))


def official(row: BenchmarkRow, response: str, settings: frozenset[str]) -> RuleRun:
    """Rule by the fast rules, or by the authors' judge (``llm_eval``)."""
    answer = text_of(row, "answer")
    if not response.strip():
        return Ruling(False, "", "empty response")
    if "llm_eval" in settings:
        for _ in range(_JUDGE_TRIES):
            reply = yield Ask("correct")
            if reply is None:
                return Ruling(None, None, "no judge", "nobody")
            if reply.strip():
                right = reply.strip().lower() == "correct"
                return Ruling(right, reply, 'the reply is exactly "correct"', "judge")
        return Ruling(None, None, "the judge's replies are empty", "nobody")
    extracted = extract(response)
    option = option_at(_options(row), answer)
    truths = (answer,) if option is None else (answer, option)
    right = bool(extracted.strip()) and any(is_equal(extracted, truth) for truth in truths)
    return Ruling(right, extracted, "letter, option text, words or value at 2 decimals")


_PHRASES = ("final answer is", "correct answer is", "answer should be", "answer is", "answer:")


def extract(response: str) -> str:
    """Return the answer of a response by the fast rules, "" if there is none."""
    text = response.strip()
    for name in "ABCDEFGH":
        if text.upper() == name or text.startswith((f"{name}:", f"{name}.")):
            return name
    if is_float(text):
        return text
    if "boxed{" in text and (boxes := boxed(text)):
        inner = re.findall(r"\\text{(.*?)}", boxes[-1])
        return (inner[-1] if inner else boxes[-1]).strip()
    lowered = text.lower()
    for phrase in _PHRASES:
        if phrase in lowered:
            return lowered.rpartition(phrase)[2].strip().split("\n")[0].split(".")[0]
    return ""


def is_equal(given: str, truth: str) -> bool:
    """Equal ignoring case, by number words, or as values at two decimals."""
    a, b = given.lower(), truth.lower()
    if a.strip() == b.strip():
        return True
    words = number_in_words(a)
    if words is not None and str(words) == b.strip():
        return True
    x, y = latex_value(a, as_python=False), latex_value(b, as_python=False)
    return x is not None and y is not None and round(x, 2) == round(y, 2)


def by_tags(row: BenchmarkRow, response: str, settings: frozenset[str]) -> RuleRun:
    """Style openvlthinker: the answer in tags; lower-case letters are equal ignoring case."""
    truth = openvlthinker.truth_of(text_of(row, "answer"), _options(row))
    return openvlthinker.rule_for(openvlthinker.truth_in(row, truth), response)
    yield  # a generator that asks nothing


def by_matcher(row: BenchmarkRow, response: str, settings: frozenset[str]) -> RuleRun:
    """Style vlmevalkit: the option matcher, then the judge; open answers only by the judge."""
    answer = text_of(row, "answer")
    if options := _options(row):
        return (yield from vlmevalkit.choose_option(response, options, answer))
    for _ in range(_SHORT_TRIES):
        reply = yield Ask("short")
        if reply is None:
            return Ruling(None, None, "open answer, no judge", "nobody")
        marked = re.search(r"\[Begin Correctness\](.*?)\[End Correctness\]", reply, re.DOTALL)
        stated = marked.group(1).lower() if marked else ""
        if ("yes" in stated) != ("no" in stated):
            return Ruling("yes" in stated, reply, "judge", "judge")
    return Ruling(False, None, "the judge never said yes or no", "nobody")
