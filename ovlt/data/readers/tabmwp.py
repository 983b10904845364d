"""TabMWP: word problems over tables, drawn as images. Records in a dict by problem id."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ovlt.data.json_stream import json_members
from ovlt.data.readers.layouts import Asked, Folder, Rows, Source, attempt, pick
from ovlt.data.readers.rows import (
    Record,
    Row,
    answer_text,
    checked_choices,
    letter_of,
    question_row,
)

_THOUSANDS = re.compile(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_FRACTION = re.compile(r"(-?)\\d?frac\{(\d+)\}\{(\d+)\}")


def normal_answer(answer: Any) -> str:
    """An answer as it is graded: 4,656 -> 4656; \\frac{5}{18} -> 5/18; 8.20 and 2:10 P.M. stay.

    Raises BadRow.
    """
    text = answer_text(answer)
    if _THOUSANDS.fullmatch(text):
        return text.replace(",", "")
    if found := _FRACTION.fullmatch(text):
        return f"{found[1]}{found[2]}/{found[3]}"
    return text


def _problem(record: Record, id: str, asked: Asked) -> Iterator[Row]:
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
        question = f"{question.rstrip()} (Unit: {unit.strip()})"  # "$" stands nowhere else
    yield question_row(id, question, normal_answer(record["answer"]), [image], kind=kind)


def _folder(asked: Asked) -> Rows:
    path = asked.path
    files = {file.stem.removeprefix("problems_"): file for file in path.glob("problems_*.json")}
    split = pick(files, asked.split, ("train",), "split", path)
    tables: Path = path / "tables"
    for id, record in json_members(files[split]):
        if isinstance(record, dict):
            record = record | {"tables": tables}
        yield from attempt(_problem, record, id, asked)


TABMWP = Source(
    "tabmwp",
    "TabMWP",
    (Folder("PromptPG's data/tabmwp", ("problems_*.json", "tables"), _folder),),
    ("TabMWP(MathV360K)",),
    ("tabmwp",),
)
