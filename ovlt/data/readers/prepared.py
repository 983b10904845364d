"""Rows that are questions already: EasyR1's columns, and R1-V's with the answer in its tags."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ovlt.data.readers.layouts import Asked, Table
from ovlt.data.readers.rows import IMAGE_TAG, Record, Row, answer_text, question_row
from ovlt.data.tables import BadRow

MARKS = ("id", "source", "kind", "choices", "pass_rate", "difficulty")  # kept where a row has them


def _easyr1(record: Record, id: str, asked: Asked) -> Iterator[Row]:
    """As it stands: the text may hold its image tags anywhere, or none (then they go in front)."""
    problem, images = record["problem"], record["images"]
    if not isinstance(problem, str) or not problem.strip():
        raise BadRow("no question text")
    images = [] if images is None else images if isinstance(images, list) else [images]
    tags = problem.count(IMAGE_TAG)
    if not tags:
        problem = IMAGE_TAG * len(images) + problem
    elif tags != len(images):
        raise BadRow(f"{tags} {IMAGE_TAG} tags but {len(images)} images")
    row = {"problem": problem, "answer": answer_text(record["answer"])}
    row |= {"images": [_found(image, asked) for image in images]}
    marks = {name: record[name] for name in MARKS if record.get(name) is not None}
    yield row | {"id": id, "source": "", "kind": "", "choices": []} | marks


def _found(image: object, asked: Asked) -> object:
    if isinstance(image, dict) and image.get("bytes") is None:
        image = image.get("path")
    if isinstance(image, str) and image:
        return str((asked.path if asked.path.is_dir() else asked.path.parent) / image)
    return image


def _r1v(record: Record, id: str, asked: Asked) -> Iterator[Row]:
    solution = record["solution"]
    tagged = re.search(r"<answer>(.*?)</answer>", str(solution), re.DOTALL)
    if tagged is None:
        raise BadRow("solution has no <answer> tags")
    yield question_row(id, record["problem"], tagged[1], [record["image"]])


EASYR1 = Table("EasyR1's columns", ("problem", "answer", "images"), _easyr1, optional=MARKS)
R1V = Table("R1-V's columns", ("image", "problem", "solution"), _r1v)
