"""Write small datasets in their own schemas: images, JSON, parquet."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from ovlt.data.readers import BadRow, QuestionRow, open_source

TEXT = pa.string()
TEXTS = pa.list_(pa.string())
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
IMAGES = pa.list_(IMAGE)


def png(seed: int, height: int = 31, width: int = 45) -> bytes:
    """Return a picture of coarse blocks, which survives being encoded anew."""
    blocks = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    image = Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST)
    image.save(buffer, "PNG")
    return buffer.getvalue()


def cell(seed: int) -> dict[str, Any]:
    """Return a cell of an image column, as the Hugging Face hub stores it."""
    return {"bytes": png(seed), "path": f"{seed}.png"}


def image_file(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(seed))
    return path


def json_file(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def parquet_file(path: Path, rows: list[dict[str, Any]], columns: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, pa.schema(list(columns.items()))), path)
    return path


def read_all(name: str, path: Path, **part: str) -> tuple[list[QuestionRow], list[str]]:
    """Return (the good rows, the reasons of the bad ones)."""
    good, bad = [], []
    for row in open_source(name, path, **part)[1]:
        if isinstance(row, BadRow):
            bad.append(str(row))
        else:
            good.append(row)
    return good, bad


def questions(rows: list[QuestionRow]) -> list[tuple[str, str]]:
    """Return (problem without its image tags, answer) of each row."""
    return [(row["problem"].replace("<image>", ""), row["answer"]) for row in rows]
