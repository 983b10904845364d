"""Photographs: VizWiz-VQA and A-OKVQA.

VizWiz has ten answers by ten people and no right one: the majority is taken if at least three
agree, as many as its own metric asks for. Images that most of them call unanswerable are left out:
the reward would teach the model to decline. The fields of VizWiz's native JSON and of A-OKVQA are
those that public loaders read; they have not been compared with the files themselves.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from ovlt.data.json_stream import json_list
from ovlt.data.readers.layouts import (
    FolderLayout,
    RowStream,
    Source,
    SourcePart,
    TableLayout,
    attempt,
    extended,
    pick,
)
from ovlt.data.readers.rows import QuestionRow, Record, checked_choices, letter_at, question_row
from ovlt.data.tables import BadRow

_AGREE = 3  # of ten; fewer do not score full marks in VizWiz's metric


def majority(answers: object) -> str:
    """Return the answer that most people gave. Raises BadRow.

    ``answers`` is a list of texts or of {answer, answer_confidence}; the first wins a tie.
    """
    if answers is None:
        raise BadRow("no answer (a test split)")
    if not isinstance(answers, list) or not answers:
        raise BadRow("answers are not a list")
    given = [a.get("answer") if isinstance(a, dict) else a for a in answers]
    texts = [" ".join(a.casefold().split()) for a in given if isinstance(a, str) and a.strip()]
    if not texts:
        raise BadRow("no answer")
    [(answer, count)] = Counter(texts).most_common(1)
    if re.sub(r"\W", "", answer) in ("unanswerable", "unsuitable", "unsuitableimage"):
        raise BadRow("most call it unanswerable")
    if count < min(_AGREE, len(texts)):
        raise BadRow(f"fewer than {_AGREE} people agree")
    return answer


def _vizwiz_parquet(record: Record, id: str, part: SourcePart) -> Iterator[QuestionRow]:
    yield question_row(
        str(record.get("question_id", id)),
        record["question"],
        majority(record["answers"]),
        [record["image"]],
        kind=record.get("category"),
    )


def _vizwiz_folder(part: SourcePart) -> RowStream:
    path = part.path
    files = {file.stem: file for file in (path / "Annotations").glob("*.json")}
    split = pick(files, part.split, ("train",), "split", path)

    def convert(record: Record, id: str, part: SourcePart) -> Iterator[QuestionRow]:
        image = str(path / split / record["image"])
        kind = record.get("answer_type")
        answer = majority(record.get("answers"))
        yield question_row(id, record["question"], answer, [image], kind=kind)

    for index, record in enumerate(json_list(files[split])):
        yield from attempt(convert, record, f"{split}/{index}", part)


def _aokvqa(record: Record, id: str, part: SourcePart) -> Iterator[QuestionRow]:
    choices = checked_choices(record["choices"])
    letter = letter_at(record.get("correct_choice_idx"), choices)
    yield question_row(
        str(record["question_id"]), record["question"], letter, [record["image"]], choices=choices
    )


def _aokvqa_folder(part: SourcePart) -> RowStream:
    path = part.path
    files = {file.stem.split("_")[-1]: file for file in path.glob("aokvqa_*.json")}
    split = pick(files, part.split, ("train",), "split", path)
    images = path / f"{split}2017"
    if not images.is_dir():
        raise ValueError(
            f"{path} has no folder {split}2017: A-OKVQA's images are COCO 2017's; put or link them"
        )
    for index, record in enumerate(json_list(files[split])):
        if isinstance(record, dict) and isinstance(record.get("image_id"), int):
            record = extended(record, image=str(images / f"{record['image_id']:012d}.jpg"))
        yield from attempt(_aokvqa, record, f"{split}/{index}", part)


VIZWIZ = Source(
    "vizwiz",
    "VizWiz-VQA",
    (
        FolderLayout("VizWiz-VQA", ("Annotations/*.json",), _vizwiz_folder),
        TableLayout(
            "lmms-lab/VizWiz-VQA",
            ("image", "question", "answers"),
            _vizwiz_parquet,
            ("question_id", "category"),
        ),
    ),
    ("VizWiz(MathV360K)",),
    ("vizwiz",),
)
AOKVQA = Source(
    "aokvqa",
    "A-OKVQA",
    (
        FolderLayout("A-OKVQA with COCO 2017", ("aokvqa_*.json",), _aokvqa_folder),
        TableLayout(
            "HuggingFaceM4/A-OKVQA",
            ("image", "question_id", "question", "choices", "correct_choice_idx"),
            _aokvqa,
        ),
    ),
    ("aokvqa(cauldron,llava_format)", "aokvqa"),
    ("a-okvqa", "aokvqa"),
)
