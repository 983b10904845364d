"""MapQA: choropleth maps of the United States. An answer is a text or a set of texts."""

from __future__ import annotations

from collections.abc import Iterator

from ovlt.data.json_stream import json_list
from ovlt.data.readers.layouts import (
    FolderLayout,
    RowStream,
    Source,
    SourcePart,
    attempt,
    pick,
)
from ovlt.data.readers.rows import QuestionRow, Record, answer_text, question_row
from ovlt.data.tables import BadRow


def set_answer(answer: object) -> str:
    """Return a text as it is, and a set as its members joined by "; ". Raises BadRow.

    The grader compares members in any order. They are not joined by ", " because a member may hold
    commas ("1,231,000-4,782,400").
    """
    if not isinstance(answer, list):
        return answer_text(answer)
    if not answer:
        raise BadRow("no answer")
    return "; ".join(answer_text(member) for member in answer)


def _folder(part: SourcePart) -> RowStream:
    path = part.path
    if not (path / "questions").is_dir():
        subsets = [folder.parent.name for folder in path.glob("*/questions")]
        path = path / pick(subsets, part.subset, (), "subset", path)
    files = {f.stem.removesuffix("-QA"): f for f in (path / "questions").glob("*-QA.json")}
    split = pick(files, part.split, ("train",), "split", path)

    def convert(record: Record, id: str, part: SourcePart) -> Iterator[QuestionRow]:
        image = str(path / "images" / record["map_id"])
        yield question_row(
            id,
            record["question"].replace(" ?", "?"),
            set_answer(record["answer"]),
            [image],
            kind=record.get("question_type"),
        )

    for index, record in enumerate(json_list(files[split])):
        yield from attempt(convert, record, f"{path.name}/{split}/{index}", part)


MAPQA = Source(
    "mapqa",
    "MapQA",
    (
        FolderLayout("MapQA, one subset", ("questions/*-QA.json", "images"), _folder),
        FolderLayout("MapQA", ("*/questions/*-QA.json", "*/images"), _folder),
    ),
    ("MapQA(MathV360K)", "mapqa(cauldron,llava_format)", "mapqa"),
    ("mapqa",),
)
