"""MathVerse: 788 problems in six versions (AI4Math/MathVerse; arXiv 2403.14624).

Facts: ZrrSkywalker/MathVerse at 937b090. A judge extracts the answer and a second call says whether
it is consistent with the standard answer; the overall score is over the five versions with an
image. Vision Only has no question text: the judge is shown that of another version.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar

from ovlt.benchmarks import openvlthinker, vlmevalkit
from ovlt.benchmarks.columns import text_of
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

_VERSIONS = ("Text Dominant", "Text Lite", "Vision Intensive", "Vision Dominant", "Vision Only")
_SUBFIELDS = {
    "Plane Geometry": {"Angle": 193, "Length": 158, "Applied": 69, "Area": 47, "Analytic": 43},
    "Functions": {"Property": 71, "Applied": 40, "Expression": 32, "Coordinate": 16},
    "Solid Geometry": {"Volume": 51, "Area": 44, "Length": 24},
}
_FILES = (("testmini",),)
_SCORE_TRIES = 10  # the authors repeat without an end


def _counts(versions: tuple[str, ...]) -> dict[tuple[str, str], int]:
    times = len(versions)
    return {
        ("", ""): 788 * times,
        ("question type", "multi-choice"): 436 * times,
        ("question type", "free-form"): 352 * times,
        **{("version", version): 788 for version in versions},
        **{
            ("subfield", f"{subject}, {name}"): n * times
            for subject, parts in _SUBFIELDS.items()
            for name, n in parts.items()
        },
    }


def _split(*versions: str) -> Split:
    return Split(
        "testmini", "testmini", _FILES, _counts(versions), only=("problem_version", versions)
    )


class MathVerse(BenchmarkTask):
    """MathVerse's testmini: all versions with an image, one of them, or Text Only."""

    name: ClassVar[str] = "mathverse"
    title: ClassVar[str] = "MathVerse"
    hub: ClassVar[str] = "AI4Math/MathVerse"
    overlap: ClassVar[str] = "GeoQA, Geometry3K, GEOS"
    splits: ClassVar[Mapping[str, Split]] = {
        "testmini": _split(*_VERSIONS),
        **{version.lower().replace(" ", "_"): _split(version) for version in _VERSIONS},
        "text_only": Split(
            "testmini_text_only",
            "testmini_text_only",
            (("testmini_text_only",),),
            _counts(("Text Only",)),
        ),
    }
    columns: ClassVar[tuple[str, ...]] = (
        "sample_index", "problem_index", "problem_version", "question", "answer", "question_type",
        "metadata", "query_wo", "query_cot",
    )  # fmt: skip
    image_columns: ClassVar[tuple[str, ...]] = ("image",)
    settings: ClassVar[Mapping[str, str]] = {
        "cot": "send query_cot ('first conduct reasoning') in place of the direct query",
        "quick_match": "official: compare texts in place of the second judge call",
        "trunk=N": "official: the judge sees only the last N words (the README's example: 30)",
    }

    def row_id(self, row: BenchmarkRow) -> str:
        return str(row["sample_index"])

    def complete(self, rows: list[dict[str, object]]) -> list[dict[str, object]]:
        questions: dict[str, str] = {}
        for row in rows:
            index, question = text_of(row, "problem_index"), text_of(row, "question")
            if text_of(row, "problem_version") != "Vision Only" and question:
                questions.setdefault(index, question)
        for row in rows:
            if not text_of(row, "question_for_eval"):
                own = text_of(row, "question")
                row["question_for_eval"] = own or questions.get(text_of(row, "problem_index"), "")
        return rows

    def prompt(
        self, item: BenchmarkItem, style: StyleName, settings: frozenset[str]
    ) -> BenchmarkPrompt:
        cot = style == "openvlthinker" or "cot" in settings
        if style == "vlmevalkit" and not cot:
            vision = text_of(item.row, "problem_version") == "Vision Only"
            column = "query_wo" if vision else "question"
        else:
            column = "query_cot" if cot else "query_wo"
        return BenchmarkPrompt.images_first(item.images, text_of(item.row, column))

    def rules(self) -> Mapping[StyleName, Rule]:
        return {"official": official, "openvlthinker": by_tags, "vlmevalkit": by_two_calls}

    def plain_truth(self, row: BenchmarkRow) -> PlainTruth | None:
        answer = text_of(row, "answer")
        is_choice = text_of(row, "question_type") == "multi-choice"
        if is_choice and (len(answer) != 1 or answer not in "ABCDE"):
            return None  # "(C)", "False", "C\nD": not safely comparable
        return PlainTruth(answer, is_letter=is_choice)

    def labels(self, row: BenchmarkRow) -> Mapping[str, tuple[str, ...]]:
        data = row.get("metadata")
        metadata = data if isinstance(data, dict) else {}
        subject = str(metadata.get("subject"))
        return {
            "version": (text_of(row, "problem_version"),),
            "subject": (subject,),
            "subfield": (f"{subject}, {metadata.get('subfield')}",),
            "question type": (text_of(row, "question_type"),),
        }


def last_words(response: str, settings: frozenset[str]) -> str:
    """Return the pieces between blanks that the extraction sees; line breaks do not separate."""
    for setting in settings:
        if match := re.fullmatch(r"trunk=?(\d+)", setting):
            count = int(match.group(1))
            return " ".join(response.split(" ")[-count:]) if count > 0 else response
    return response


def official(row: BenchmarkRow, response: str, settings: frozenset[str]) -> RuleRun:
    """Rule by two judge calls: extract, then compare; bounded where the authors repeat for ever."""
    reply = yield Ask("extract", last_words(response, settings))
    if reply is None:
        return Ruling(None, None, "no judge", "nobody")
    extraction = reply.replace("Extracted Answer: ", "").strip()
    truth = text_of(row, "answer")
    if "quick_match" in settings:
        return Ruling(extraction == truth, extraction, "judge, then equal texts", "judge")
    for _ in range(_SCORE_TRIES):
        reply = yield Ask("consistent", extraction)
        if reply is None:
            return Ruling(None, extraction, "no second reply", "nobody")
        score = reply.replace("Judgement:", "").strip()
        if score in ("0", "1"):
            return Ruling(score == "1", extraction, "judge, twice", "judge")
    return Ruling(None, extraction, "the judge never said 0 or 1", "nobody")


def by_tags(row: BenchmarkRow, response: str, settings: frozenset[str]) -> RuleRun:
    """Style openvlthinker: answer tags, then its judge."""
    truth = openvlthinker.truth_in(row, text_of(row, "answer"))
    return (yield from openvlthinker.judged(truth, response))


def by_two_calls(row: BenchmarkRow, response: str, settings: frozenset[str]) -> RuleRun:
    """Style vlmevalkit: as official, but equal texts need no second call; five tries are all."""
    text = yield from vlmevalkit.extraction("extract")
    if text is None:
        return Ruling(None, None, "no judge", "nobody")
    if text.strip() == text_of(row, "answer").strip():
        return Ruling(True, text, "judge, then equal texts", "judge")
    for _ in range(vlmevalkit.TRIES):
        reply = yield Ask("consistent", text)
        if reply is None:
            return Ruling(None, text, "no second reply", "nobody")
        if vlmevalkit.FAILED_CALL not in reply and reply.strip() in ("0", "1"):
            return Ruling(reply.strip() == "1", text, "judge, twice", "judge")
    return Ruling(False, text, "the judge never said 0 or 1", "nobody")
