"""Write synthetic questions and SFT rows: parquet, or JSONL with PNG files beside it."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from PIL import Image

from ovlt.data.worlds.base import Item
from ovlt.data.writers import SHAREGPT_COLUMNS, FileRow, write_rows

IMAGE_TAG = "<image>"


def _encoded(rows: Iterable[FileRow]) -> Iterator[FileRow]:
    """Yield the rows with each PIL image as PNG bytes and a name after the row."""
    for row in rows:
        images = [
            {"bytes": _png(image), "path": f"{row['id']}-{i}.png"}
            for i, image in enumerate(row["images"])
        ]
        yield row | {"images": images}


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def write_questions(
    items: Iterable[Item], path: str | Path, source: Callable[[Item], str] = lambda i: i.family
) -> int:
    """Write questions with answers, for GRPO and evaluation, and return how many.

    Columns: problem (starts with "<image>"), answer, images, source, id, kind. ``source`` names
    what an item counts as, its image family by default. A ``.parquet`` file holds images as
    {bytes, path}; a ``.jsonl`` file lists paths relative to its own folder, in the folder
    ``<name>_images`` beside it.
    """
    columns = dict.fromkeys(("problem", "answer", "images", "source", "id", "kind"), "text")
    rows = (
        {
            "problem": f"{IMAGE_TAG}{item.problem}",
            "answer": item.answer,
            "images": [item.image],
            "source": source(item),
            "id": item.id,
            "kind": item.kind,
        }
        for item in items
    )
    return write_rows(_encoded(rows), path, columns | {"images": "images"})


def write_sft(rows: Iterable[FileRow], path: str | Path) -> int:
    """Write rows of ``trace_rows`` or ``base_rows`` and return how many.

    Columns: messages, images, source, id; files as in ``write_questions``. The marks of a row
    (``style``, ``correct``) are written only as part of its id.
    """
    return write_rows(_encoded(rows), path, SHAREGPT_COLUMNS)
