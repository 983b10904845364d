"""Rendered scenes: CLEVR, CLEVR-Math, R1-V's counting sets, Super-CLEVR.

Super-CLEVR mixes true / false, numbers and words as answers in one file; its images are split by
their number. CLEVR-Math itself is distributed as a script for an old `datasets` with images by
path; what is read here are the parquet copies of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

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
from ovlt.data.readers.rows import QuestionRow, Record, question_row
from ovlt.data.tables import BadRow

# Super-CLEVR's images: 20,000 for training, 5,000 for validation, 5,000 for tests.
_SUPER_SPLITS = {
    "train": range(20_000),
    "val": range(20_000, 25_000),
    "test": range(25_000, 30_000),
}


def _scene_question(record: Record, id: str, part: SourcePart) -> Iterator[QuestionRow]:
    answer = record.get("answer")
    if answer is None:
        raise BadRow("no answer (a test split)")
    image: Path = record["folder"] / record["image_filename"]
    yield question_row(id, record["question"], answer, [str(image)])


def _clevr_folder(part: SourcePart) -> RowStream:
    files = {
        file.stem.removeprefix("CLEVR_").removesuffix("_questions"): file
        for file in part.path.glob("questions/CLEVR_*_questions.json")
    }
    split = pick(files, part.split, ("train",), "split", part.path)
    folder = part.path / "images" / split
    yield from _questions(files[split], folder, split, part, range(0))


def _super_clevr_folder(part: SourcePart) -> RowStream:
    path = part.path
    files = {file.stem: file for file in path.glob("superCLEVR_questions*.json")}
    file = files[pick(files, part.subset, ("superCLEVR_questions_30k",), "subset", path)]
    split = pick(_SUPER_SPLITS, part.split, ("train",), "split", path)
    yield from _questions(file, path / "images", split, part, _SUPER_SPLITS[split])


def _questions(file: Path, folder: Path, split: str, part: SourcePart, numbers: range) -> RowStream:
    """Yield the questions of a CLEVR-style file; with ``numbers``, about those images alone."""
    for index, record in enumerate(json_list(file, "questions")):
        if isinstance(record, dict):
            digits = re.search(r"(\d+)\.\w+$", str(record.get("image_filename")))
            if numbers and (digits is None or int(digits[1]) not in numbers):
                continue
        scene = extended(record, folder=folder)
        yield from attempt(_scene_question, scene, f"{split}/{index}", part)


def _clevr_math(record: Record, id: str, part: SourcePart) -> Iterator[QuestionRow]:
    yield question_row(
        id, record["question"], record["label"], [record["image"]], kind=record["template"]
    )


def _counting_file(record: Record, id: str, part: SourcePart) -> Iterator[QuestionRow]:
    base = part.path if part.path.is_dir() else part.path.parent
    image = str(base / str(record["image_path"]))
    yield question_row(id, record["question"], record["ground_truth"], [image])


_COUNTING = TableLayout(
    "R1-V's counting JSONL", ("image_path", "question", "ground_truth"), _counting_file
)

CLEVR = Source(
    "clevr",
    "CLEVR",
    (FolderLayout("CLEVR_v1.0", ("questions/CLEVR_*_questions.json", "images"), _clevr_folder),),
    ("clevr(cauldron,llava_format)", "clevr"),
    ("clevr",),
)
CLEVR_MATH = Source(
    "clevr_math",
    "CLEVR-Math",
    (TableLayout("dali-does/clevr-math", ("template", "question", "image", "label"), _clevr_math),),
    ("CLEVR-Math(MathV360K)", "clevr_math"),
    ("clevr-math",),
)
COUNTING = Source("counting", "R1-V counting", (_COUNTING,))
SUPER_CLEVR = Source(
    "super_clevr",
    "Super-CLEVR",
    (
        FolderLayout("Super-CLEVR", ("superCLEVR_questions*.json", "images"), _super_clevr_folder),
        _COUNTING,
    ),
    ("Super-CLEVR(MathV360K)",),
    ("super-clevr", "superclevr"),
)
