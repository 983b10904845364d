"""MathVista: 1,000 questions of testmini (AI4Math/MathVista; arXiv 2310.02255).

Facts: lupantech/MathVista at 53d5258, evaluation/extract_answer.py and calculate_score.py. A judge
extracts the answer from free text; the comparison is by rules: the nearest choice, truncation for
integers, rounding at ``precision`` for floats.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar

from ovlt.benchmarks import openvlthinker, vlmevalkit
from ovlt.benchmarks.answers import nearest
from ovlt.benchmarks.columns import letter, lettered, options_of, text_of
from ovlt.benchmarks.items import (
    Ask,
    BenchmarkItem,
    BenchmarkPrompt,
    BenchmarkRow,
    BenchmarkTask,
    PlainTruth,
    Rule,
    RuleRun,
    Ruling,
    Split,
    StyleName,
)

_TASKS = {
    "figure question answering": 269,
    "geometry problem solving": 208,
    "math word problem": 186,
    "visual question answering": 179,
    "textbook question answering": 158,
}
_TYPES = {"multi_choice": 540, "free_form": 460}
_ANSWERS = {"text": 540, "integer": 418, "float": 40, "list": 2}
_COUNTS = {
    **{("question type", name): n for name, n in _TYPES.items()},
    **{("answer type", name): n for name, n in _ANSWERS.items()},
    **{("task", name): n for name, n in _TASKS.items()},
    ("", ""): 1000,
}
_METADATA = ("language", "source", "category", "task", "context", "grade")
_DECIMALS = {
    1: "with one decimal place and provide the final value, e.g., 1.2, 1.3, 1.4, at the end.",
    2: "with two decimal places and provide the final value, e.g., 1.23, 1.34, 1.45, at the end.",
}
_PARENTHESISED = re.compile(r"\(([a-zA-Z])\)")


class MathVista(BenchmarkTask):
    """MathVista's testmini."""

    name: ClassVar[str] = "mathvista"
    title: ClassVar[str] = "MathVista"
    hub: ClassVar[str] = "AI4Math/MathVista"
    overlap: ClassVar[str] = (
        "GeoQA+, Geometry3K, UniGeo, GEOS, IconQA, TabMWP, Super-CLEVR, CLEVR-Math, FigureQA, "
        "DVQA, PlotQA, ChartQA, AI2D, ScienceQA, MapQA, TQA, VQA2.0, A-OKVQA, TextVQA, KVQA, DocVQA"
    )
    splits: ClassVar[Mapping[str, Split]] = {
        "testmini": Split("default", "testmini", (("testmini",), ("annot_testmini",)), _COUNTS)
    }
    columns: ClassVar[tuple[str, ...]] = (
        "pid", "question", "choices", "answer", "question_type", "answer_type", "precision",
        "metadata",
    )  # fmt: skip
    image_columns: ClassVar[tuple[str, ...]] = ("decoded_image|image",)
    settings: ClassVar[Mapping[str, str]] = {
        "solution_order": "question, choices, hint, 'Solution:' (the authors' second prompt)",
        "quick_extract": 'official: read the quotes of `The answer is "...".` before the judge',
        "ignore_empty": "official: an empty extraction is no answer",
    }

    def row_id(self, row: BenchmarkRow) -> str:
        return str(row["pid"])

    def prompt(
        self, item: BenchmarkItem, style: StyleName, settings: frozenset[str]
    ) -> BenchmarkPrompt:
        query = text_of(item.row, "query")
        if "solution_order" in settings or not query:
            query = build_query(item.row, hint_last="solution_order" in settings)
        return BenchmarkPrompt.images_first((1,), query)

    def rules(self) -> Mapping[StyleName, Rule]:
        return {"official": official, "openvlthinker": by_tags, "vlmevalkit": by_prefetch}

    def plain_truth(self, row: BenchmarkRow) -> PlainTruth | None:
        options, answer = options_of(row, "choices"), text_of(row, "answer")
        return PlainTruth(openvlthinker.truth_of(answer, options), tuple(options))

    def labels(self, row: BenchmarkRow) -> Mapping[str, tuple[str, ...]]:
        data = row.get("metadata")
        metadata = data if isinstance(data, dict) else {}
        skills = metadata.get("skills")
        return {
            "question type": (text_of(row, "question_type"),),
            "answer type": (text_of(row, "answer_type"),),
            **{name: (str(metadata.get(name)),) for name in _METADATA},
            "skill": tuple(map(str, skills)) if isinstance(skills, list | tuple) else (),
        }


def build_query(row: BenchmarkRow, *, hint_last: bool = False) -> str:
    """Return the prompt of a row without a ``query`` column, as both official scripts write it."""
    unit = text_of(row, "unit")
    question = f"Question: {text_of(row, 'question')}" + (f" (Unit: {unit})" if unit else "")
    options = options_of(row, "choices")
    choices = "Choices:\n" + lettered(options, "({}) {}") if options else ""
    parts = (
        [question, choices, _hint(row), "Solution:"]
        if hint_last
        else [_hint(row), question, choices]
    )
    return "\n".join(part for part in parts if part).strip()


def _hint(row: BenchmarkRow) -> str:
    kind = text_of(row, "answer_type")
    if text_of(row, "question_type") == "multi_choice":
        wanted = "and provide the correct option letter, e.g., A, B, C, D, at the end."
    elif kind == "integer":
        wanted = (
            "requiring an integer answer and provide the final value, e.g., 1, 2, 3, at the end."
        )
    elif kind == "float":
        precision = int(float(text_of(row, "precision") or 1))
        wanted = f"requiring a floating-point number {_DECIMALS.get(precision, _DECIMALS[2])}"
    else:
        wanted = (
            "requiring a Python list as an answer and provide the final list, e.g., [1, 2, 3], "
            "[1.2, 1.3, 1.4], at the end."
        )
    return f"Hint: Please answer the question {wanted}"


def official(row: BenchmarkRow, response: str, settings: frozenset[str]) -> RuleRun:
    """Rule as calculate_score.py does on what extract_answer.py extracts."""
    extraction, by = _plain_extraction(row, response, settings), "rule"
    if extraction is None:
        extraction = yield Ask("extract")
        if extraction is None:
            return Ruling(None, None, "free text, no judge", "nobody")
        by = "judge"
    normalised = _normalised(row, extraction, settings)
    return Ruling(
        normalised == text_of(row, "answer"), extraction, _how(row), by, normalised=normalised
    )


def _how(row: BenchmarkRow) -> str:
    if text_of(row, "question_type") == "multi_choice":
        return "text of the letter, else the nearest choice"
    return {"integer": "truncated", "float": "rounded at precision"}.get(
        text_of(row, "answer_type"), "identical text"
    )


def _plain_extraction(row: BenchmarkRow, response: str, settings: frozenset[str]) -> str | None:
    """Return the extraction where no judge is asked, else None."""
    if response == "":
        return ""
    is_choice = text_of(row, "question_type") == "multi_choice"
    if is_choice and response in options_of(row, "choices"):
        return response
    try:
        kind = text_of(row, "answer_type")
        if kind == "integer":
            return str(int(response))
        if kind == "float":
            return str(float(response))
    except ValueError:
        pass
    if "quick_extract" in settings:
        match = re.search(r'The answer is "(.*)"\.', response)
        if match:
            return match.group(1)
    return None


def _normalised(row: BenchmarkRow, extraction: str, settings: frozenset[str]) -> str | None:
    if text_of(row, "question_type") == "multi_choice":
        return _choice(options_of(row, "choices"), extraction.strip(), settings)
    kind = text_of(row, "answer_type")
    try:
        if kind == "integer":
            return str(int(float(extraction)))
        if kind == "float":
            return str(round(float(extraction), int(float(text_of(row, "precision")))))
    except (ValueError, OverflowError):
        return None
    return extraction


def _choice(choices: list[str], extraction: str, settings: frozenset[str]) -> str | None:
    if "ignore_empty" in settings and not extraction:
        return None
    if parenthesised := _PARENTHESISED.search(extraction):
        extraction = parenthesised.group(1).upper()
    letters = [letter(i) for i in range(len(choices))]
    if extraction in letters:
        return choices[letters.index(extraction)]
    return nearest(extraction, choices)


def by_tags(row: BenchmarkRow, response: str, settings: frozenset[str]) -> RuleRun:
    """Style openvlthinker: the letter of the answer among the choices, in answer tags."""
    truth = openvlthinker.truth_of(text_of(row, "answer"), options_of(row, "choices"))
    return openvlthinker.rule_for(openvlthinker.truth_in(row, truth), response)
    yield  # a generator that asks nothing


def by_prefetch(row: BenchmarkRow, response: str, settings: frozenset[str]) -> RuleRun:
    """Style vlmevalkit: the option matcher or the number itself, else the judge's extraction.

    Lists are always wrong, and an answer 0 is never read without the judge, as in that harness.
    """
    options = options_of(row, "choices")
    if options and text_of(row, "question_type") != "free_form":
        truth = text_of(row, "answer_option") or openvlthinker.truth_of(
            text_of(row, "answer"), options
        )
        if named := vlmevalkit.match_option(response, options):
            return Ruling(named == truth, named, "option matcher")
        text = yield from vlmevalkit.extraction("extract")
        if text is None:
            return Ruling(None, None, "option matcher undecided, no judge", "nobody")
        named = vlmevalkit.match_option(text, options)
        return Ruling(named == truth, text, "judge, option matcher", "judge")
    value = _number(row, response)
    if value and value == _number(row, text_of(row, "answer")):
        return Ruling(True, str(value), "equal number")
    text = yield from vlmevalkit.extraction("extract")
    if text is None:
        return Ruling(None, None, "no equal number, no judge", "nobody")
    value = _number(row, text)
    right = value is not None and value == _number(row, text_of(row, "answer"))
    return Ruling(right, text, "judge, equal number", "judge")


def _number(row: BenchmarkRow, text: str) -> int | float | None:
    try:
        kind = text_of(row, "answer_type")
        return {"integer": int, "float": float}[kind](text)
    except (ValueError, KeyError):
        return None
