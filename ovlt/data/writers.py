"""Rows into files: parquet with the images inside, or JSONL with a folder of images beside it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

Row = dict[str, Any]

SHAREGPT_COLUMNS = {"messages": "messages", "images": "images", "source": "text", "id": "text"}

_GROUP_ROWS, _GROUP_BYTES = 500, 64 << 20  # of a parquet row group


def write_rows(rows: Iterable[Row], path: str | Path, columns: Mapping[str, str]) -> int:
    """Write rows and return how many; the file appears only when it is complete.

    ``columns`` maps names to "text", "texts", "number", "images" or "messages". The column
    ``images`` lists {bytes, path}, both given. A ``.parquet`` file holds them so; a ``.jsonl`` file
    lists paths relative to its own folder, in the folder ``<name>_images`` beside it.
    """
    path = Path(path)
    if path.suffix not in (".parquet", ".jsonl"):
        raise ValueError(f"cannot write '{path}': end its name in .parquet or .jsonl")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    if path.suffix == ".parquet":
        count = _write_parquet(rows, partial, columns)
    else:
        count = _write_jsonl(rows, partial, path.with_name(path.stem + "_images"), columns)
    os.replace(partial, path)
    return count


def _write_parquet(rows: Iterable[Row], partial: Path, columns: Mapping[str, str]) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {
        "text": pa.string(),
        "texts": pa.list_(pa.string()),
        "number": pa.float64(),
        "images": pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        "messages": pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())])),
    }
    schema = pa.schema([(name, types[kind]) for name, kind in columns.items()])
    count = 0
    with pq.ParquetWriter(partial, schema) as writer:
        for group in _groups(rows):
            count += len(group)
            table = [{name: row[name] for name in columns} for row in group]
            writer.write_table(pa.Table.from_pylist(table, schema))
    return count


def _groups(rows: Iterable[Row]) -> Iterator[list[Row]]:
    group, size = [], 0
    for row in rows:
        group.append(row)
        size += sum(len(image["bytes"]) for image in row["images"])
        if len(group) == _GROUP_ROWS or size >= _GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _write_jsonl(
    rows: Iterable[Row], partial: Path, folder: Path, columns: Mapping[str, str]
) -> int:
    count = 0
    with partial.open("w", encoding="utf-8") as file:
        for row in rows:
            count += 1
            for image in row["images"]:
                folder.mkdir(exist_ok=True)
                (folder / image["path"]).write_bytes(image["bytes"])
            record = {name: row[name] for name in columns}
            record["images"] = [f"{folder.name}/{image['path']}" for image in row["images"]]
            file.write(json.dumps(record) + "\n")
    return count
