"""Rows that are questions already: EasyR1's columns, and R1-V's with the answer in its tags."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from ovlt.data.columns import CONVERSATIONS, IMAGES, SYSTEM, Columns
from ovlt.data.readers.layouts import SourcePart, TableLayout
from ovlt.data.readers.rows import IMAGE_TAG, QuestionRow, Record, answer_text, question_row
from ovlt.data.tables import BadRow

OPTIONAL = ("id", "source", "kind", "choices", "pass_rate", "difficulty")


def _easyr1(record: Record, id: str, part: SourcePart) -> Iterator[QuestionRow]:
    """Yield a row as it is; image tags may stand anywhere in its text, or are put in front."""
    problem, images = record["problem"], record["images"]
    if not isinstance(problem, str) or not problem.strip():
        raise BadRow("no question text")
    images = [] if images is None else images if isinstance(images, list) else [images]
    _refuse_meant(record, len(images))
    tags = problem.count(IMAGE_TAG)
    if not tags:
        problem = IMAGE_TAG * len(images) + problem
    elif tags != len(images):
        raise BadRow(f"{tags} {IMAGE_TAG} tags but {len(images)} images")
    base = part.path if part.path.is_dir() else part.path.parent
    choices = record.get("choices")
    row: QuestionRow = {
        "problem": problem,
        "answer": answer_text(record["answer"]),
        "images": [_resolved(image, base) for image in images],
        "id": _text(record, "id", id),
        "source": _text(record, "source"),
        "kind": _text(record, "kind"),
        "choices": list(map(str, choices)) if isinstance(choices, list) else [],
    }
    if record.get("difficulty") is not None:
        row["difficulty"] = _text(record, "difficulty")
    if record.get("pass_rate") is not None:
        row["pass_rate"] = record["pass_rate"]
    yield row


def _refuse_meant(record: Record, num_images: int) -> None:
    """Raise BadRow for a column that would be lost and looks meant."""
    columns = Columns(record)
    columns.drop("problem", "answer", "images", *OPTIONAL)
    columns.refuse_meant(num_images, (*CONVERSATIONS, *SYSTEM, *IMAGES, "history"))


def _text(record: Record, name: str, default: str = "") -> str:
    value = record.get(name)
    return default if value is None else str(value)


def _resolved(image: object, base: Path) -> object:
    """Return the path of an image as seen from the working directory; bytes as they are."""
    if isinstance(image, dict) and image.get("bytes") is None:
        image = image.get("path")
    return str(base / image) if isinstance(image, str) and image else image


def _r1v(record: Record, id: str, part: SourcePart) -> Iterator[QuestionRow]:
    solution = record["solution"]
    tagged = re.search(r"<answer>(.*?)</answer>", str(solution), re.DOTALL)
    if tagged is None:
        raise BadRow("solution has no <answer> tags")
    yield question_row(id, record["problem"], tagged[1], [record["image"]])


EASYR1 = TableLayout(
    "EasyR1's columns", ("problem", "answer", "images"), _easyr1, optional=OPTIONAL, whole=True
)
R1V = TableLayout("R1-V's columns", ("image", "problem", "solution"), _r1v)
