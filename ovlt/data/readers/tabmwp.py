"""TabMWP: word problems over tables drawn as images. A file maps problem ids to records."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ovlt.data.json_stream import json_members
from ovlt.data.readers.layouts import (
    FolderLayout,
    RowStream,
    Source,
    SourcePart,
    attempt,
    extended,
    pick,
)
from ovlt.data.readers.rows import (
    QuestionRow,
    Record,
    answer_text,
    checked_choices,
    letter_of,
    question_row,
)

_THOUSANDS = re.compile(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_FRACTION = re.compile(r"(-?)\\d?frac\{(\d+)\}\{(\d+)\}")


def normal_answer(answer: object) -> str:
    """Return an answer in the form that is graded. Raises BadRow.

    4,656 -> 4656; \\frac{5}{18} -> 5/18; 8.20 and 2:10 P.M. stay.
    """
    text = answer_text(answer)
    if _THOUSANDS.fullmatch(text):
        return text.replace(",", "")
    if fraction := _FRACTION.fullmatch(text):
        return f"{fraction[1]}{fraction[2]}/{fraction[3]}"
    return text


def _problem(record: Record, id: str, part: SourcePart) -> Iterator[QuestionRow]:
    question, unit = record["question"], record.get("unit")
    image = str(record["tables"] / f"{id}.png")
    kind = record.get("ans_type")
    choices = record.get("choices")
    if choices is not None:
        choices = checked_choices(choices)
        letter = letter_of(record["answer"], choices)
        yield question_row(id, question, letter, [image], choices=choices, kind=kind)
        return
    if isinstance(unit, str) and unit.strip() and isinstance(question, str):
        question = f"{question.rstrip()} (Unit: {unit.strip()})"  # "$" is written nowhere else
    yield question_row(id, question, normal_answer(record["answer"]), [image], kind=kind)


def _folder(part: SourcePart) -> RowStream:
    path = part.path
    files = {file.stem.removeprefix("problems_"): file for file in path.glob("problems_*.json")}
    split = pick(files, part.split, ("train",), "split", path)
    for id, record in json_members(files[split]):
        yield from attempt(_problem, extended(record, tables=path / "tables"), id, part)


TABMWP = Source(
    "tabmwp",
    "TabMWP",
    (FolderLayout("PromptPG's data/tabmwp", ("problems_*.json", "tables"), _folder),),
    ("TabMWP(MathV360K)",),
    ("tabmwp",),
)
