"""Write rows to files: parquet with the images inside, or JSONL and a folder of images."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ovlt.system.files import written_whole

# A row to be written: a value for each of the columns that the caller names to `write_rows`, and
# "images", a list of StoredImage (ovlt.data.image_refs).
FileRow = dict[str, Any]

SHAREGPT_COLUMNS = {"messages": "messages", "images": "images", "source": "text", "id": "text"}

# A parquet row group ends at 100 rows, or earlier at 8 MiB of images: a reader that needs one row
# reads a group.
_GROUP_ROWS, _GROUP_BYTES = 100, 8 << 20


def write_rows(rows: Iterable[FileRow], path: str | Path, columns: Mapping[str, str]) -> int:
    """Write rows to a ``.parquet`` or ``.jsonl`` file and return how many.

    The file appears only when it is complete. ``columns`` maps names to "text", "texts", "number",
    "images" or "messages". The column ``images`` lists {bytes, path}, both given: a ``.parquet``
    file holds them so; a ``.jsonl`` file lists paths relative to its own folder, in the folder
    ``<name>_images`` beside it. Raises ValueError for any other ending of the name.
    """
    path = Path(path)
    if path.suffix not in (".parquet", ".jsonl"):
        raise ValueError(f"cannot write '{path}': end its name in .parquet or .jsonl")
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as temporary:
        if path.suffix == ".parquet":
            return _write_parquet(rows, temporary, columns)
        return _write_jsonl(rows, temporary, path.with_name(path.stem + "_images"), columns)


def _write_parquet(rows: Iterable[FileRow], path: Path, columns: Mapping[str, str]) -> int:
    types = {
        "text": pa.string(),
        "texts": pa.list_(pa.string()),
        "number": pa.float64(),
        "images": pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        "messages": pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())])),
    }
    schema = pa.schema([(name, types[kind]) for name, kind in columns.items()])
    count = 0
    with pq.ParquetWriter(path, schema) as writer:
        for group in _groups(rows):
            count += len(group)
            table = [{name: row[name] for name in columns} for row in group]
            writer.write_table(pa.Table.from_pylist(table, schema))
    return count


def _groups(rows: Iterable[FileRow]) -> Iterator[list[FileRow]]:
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
    rows: Iterable[FileRow], path: Path, image_folder: Path, columns: Mapping[str, str]
) -> int:
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            count += 1
            for image in row["images"]:
                image_folder.mkdir(exist_ok=True)
                (image_folder / image["path"]).write_bytes(image["bytes"])
            record = {name: row[name] for name in columns}
            record["images"] = [f"{image_folder.name}/{image['path']}" for image in row["images"]]
            file.write(json.dumps(record) + "\n")
    return count
