"""MapQA: choropleth maps of the United States; an answer is a text or a set of texts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ovlt.data.json_stream import json_list
from ovlt.data.readers.layouts import Asked, Folder, Rows, Source, attempt, pick
from ovlt.data.readers.rows import Record, Row, answer_text, question_row
from ovlt.data.tables import BadRow


def set_answer(answer: Any) -> str:
    """A text as it is; a set as its members with "; " between, which the grader reads unordered.

    Not ", ": a member may hold commas ("1,231,000-4,782,400"). Raises BadRow.
    """
    if not isinstance(answer, list):
        return answer_text(answer)
    if not answer:
        raise BadRow("no answer")
    return "; ".join(answer_text(member) for member in answer)


def _folder(asked: Asked) -> Rows:
    path = asked.path
    if not (path / "questions").is_dir():
        subsets = [folder.parent.name for folder in path.glob("*/questions")]
        path = path / pick(subsets, asked.subset, (), "subset", path)
    files = {f.stem.removesuffix("-QA"): f for f in (path / "questions").glob("*-QA.json")}
    split = pick(files, asked.split, ("train",), "split", path)

    def convert(record: Record, id: str, asked: Asked) -> Iterator[Row]:
        image = str(path / "images" / record["map_id"])
        yield question_row(
            id,
            record["question"].replace(" ?", "?"),
            set_answer(record["answer"]),
            [image],
            kind=record.get("question_type"),
        )

    for index, record in enumerate(json_list(files[split])):
        yield from attempt(convert, record, f"{path.name}/{split}/{index}", asked)


MAPQA = Source(
    "mapqa",
    "MapQA",
    (
        Folder("MapQA, one subset", ("questions/*-QA.json", "images"), _folder),
        Folder("MapQA", ("*/questions/*-QA.json", "*/images"), _folder),
    ),
    ("MapQA(MathV360K)", "mapqa(cauldron,llava_format)", "mapqa"),
    ("mapqa",),
)
