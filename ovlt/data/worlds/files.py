"""Synthetic questions and SFT rows as files: parquet, or JSONL with PNG files beside it."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from PIL import Image

from ovlt.data.worlds.base import Item
from ovlt.data.writers import SHAREGPT_COLUMNS, Row, write_rows

IMAGE_TAG = "<image>"


def _encoded(rows: Iterable[Row]) -> Iterator[Row]:
    """Rows with PIL images -> rows with PNG bytes, named after the row."""
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
    """Questions with answers, for GRPO and evaluation; returns how many.

    ``source`` names what an item counts as, its family by default.
    Columns: problem (starts with "<image>"), answer, images, source, id, kind. A ``.parquet`` file
    holds its images as {bytes, path}; a ``.jsonl`` file lists paths relative to its own folder, in
    the folder ``<name>_images`` beside it.
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


def write_sft(rows: Iterable[Row], path: str | Path) -> int:
    """Rows of ``trace_rows`` or ``base_rows``, with columns messages, images, source, id; returns
    how many. Files as in ``write_questions``; marks are kept in the id alone."""
    return write_rows(_encoded(rows), path, SHAREGPT_COLUMNS)
