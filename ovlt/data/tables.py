"""Rows of parquet, JSONL and JSON files, as plain dicts, a batch at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ovlt.data.json_stream import json_list

TABLES = (".parquet", ".jsonl", ".json")
_ROWS = 64  # of a parquet batch: photographs may take a megabyte each


class BadRow(ValueError):
    """Why a row is left out."""


def read_table(path: str | Path, columns: Sequence[str] | None = None) -> Iterator[Any]:
    """Rows of a .parquet, .jsonl or .json file; a broken line of JSONL comes as the BadRow it is.

    ``columns`` limits what is read of a parquet file. Raises ValueError on a file that it cannot
    read.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no data file at {path}; give a .parquet, .jsonl or .json file of rows")
    if path.suffix == ".parquet":
        yield from _read_parquet(path, columns)
    elif path.suffix == ".jsonl":
        yield from _read_lines(path)
    elif path.suffix == ".json":
        yield from json_list(path)
    else:
        raise ValueError(
            f"{path}: rows are read from .parquet, .jsonl or .json, not {path.suffix!r}"
        )


def column_names(path: str | Path) -> list[str]:
    """The columns of a parquet file, or the keys of the first record of a JSON or JSONL file.

    Raises ValueError as ``read_table`` does.
    """
    path = Path(path)
    if path.suffix == ".parquet" and path.is_file():
        from pyarrow import ArrowException
        from pyarrow.parquet import read_schema

        try:
            return list(read_schema(path).names)
        except (ArrowException, OSError) as error:
            raise ValueError(f"{path} is not a readable parquet file: {error}") from None
    return next((list(row) for row in read_table(path) if isinstance(row, dict)), [])


def _read_parquet(path: Path, columns: Sequence[str] | None) -> Iterator[Any]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        # Else the columns of a whole row group, perhaps thousands of images, are held, and twice.
        # What remains is a page: up to 1,024 images, as pyarrow writes them.
        with ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
            chosen = None if columns is None else list(columns)
            for batch in file.iter_batches(batch_size=_ROWS, columns=chosen):
                yield from batch.to_pylist()
    except (ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a readable parquet file: {error}") from None


def _read_lines(path: Path) -> Iterator[Any]:
    with path.open("rb") as lines:  # bytes: a line that is no UTF-8 is one bad row, not the end
        for line in lines:
            if line.strip():
                try:
                    yield json.loads(line)
                except (ValueError, RecursionError):  # of JSON, of UTF-8, or nested for ever
                    yield BadRow("line is not valid JSON")
