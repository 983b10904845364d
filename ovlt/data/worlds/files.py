"""Synthetic questions and SFT rows as files: parquet, or JSONL with PNG files beside it."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from ovlt.data.worlds.base import Item

IMAGE_TAG = "<image>"

Row = dict[str, Any]


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _write(rows: Iterable[Row], path: str | Path, columns: Mapping[str, str]) -> int:
    """Write rows whose ``images`` are PIL images; the file appears only when it is complete."""
    path = Path(path)
    if path.suffix not in (".parquet", ".jsonl"):
        raise ValueError(f"cannot write '{path}': end its name in .parquet or .jsonl")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    write = _write_parquet if path.suffix == ".parquet" else _write_jsonl
    count = write(rows, partial, path, columns)
    os.replace(partial, path)
    return count


def _write_parquet(
    rows: Iterable[Row], partial: Path, path: Path, columns: Mapping[str, str]
) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {
        "text": pa.string(),
        "images": pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        "messages": pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())])),
    }
    schema = pa.schema([(name, types[kind]) for name, kind in columns.items()])
    count, stream = 0, iter(rows)
    with pq.ParquetWriter(partial, schema) as writer:
        while batch := list(islice(stream, 500)):
            count += len(batch)
            table = [{name: row[name] for name in columns} for row in batch]
            for row in table:
                row["images"] = [
                    {"bytes": _png(image), "path": f"{row['id']}-{i}.png"}
                    for i, image in enumerate(row["images"])
                ]
            writer.write_table(pa.Table.from_pylist(table, schema))
    return count


def _write_jsonl(rows: Iterable[Row], partial: Path, path: Path, columns: Mapping[str, str]) -> int:
    folder = path.with_name(path.stem + "_images")
    count = 0
    with partial.open("w", encoding="utf-8") as file:
        for row in rows:
            count += 1
            names = [f"{row['id']}-{i}.png" for i in range(len(row["images"]))]
            for name, image in zip(names, row["images"], strict=True):
                folder.mkdir(exist_ok=True)
                (folder / name).write_bytes(_png(image))
            record = {name: row[name] for name in columns}
            record["images"] = [f"{folder.name}/{name}" for name in names]
            file.write(json.dumps(record) + "\n")
    return count


def write_questions(items: Iterable[Item], path: str | Path) -> int:
    """Questions with answers, for GRPO and evaluation; returns how many.

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
            "source": item.family,
            "id": item.id,
            "kind": item.kind,
        }
        for item in items
    )
    return _write(rows, path, columns | {"images": "images"})


def write_sft(rows: Iterable[Row], path: str | Path) -> int:
    """Rows of ``trace_rows`` or ``base_rows``, with columns messages, images, source, id; returns
    how many. Files as in ``write_questions``; marks are kept in the id alone."""
    columns = {"messages": "messages", "images": "images", "source": "text", "id": "text"}
    return _write(rows, path, columns)
