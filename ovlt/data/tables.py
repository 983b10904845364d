"""Read the rows of parquet, JSONL and JSON files as plain dicts, a batch at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from pyarrow import ArrowException
from pyarrow.parquet import ParquetFile, read_schema

from ovlt.data.json_stream import json_list

TABLES = (".parquet", ".jsonl", ".json")
_BATCH_ROWS = 64  # rows of parquet decoded at once: a photograph may take a megabyte


class BadRow(ValueError):
    """Why a row is left out."""


def read_table(path: str | Path, columns: Sequence[str] | None = None) -> Iterator[object]:
    """Yield the rows of a .parquet, .jsonl or .json file, as the file has them.

    A row should be a dict, but JSON may hold anything: check it. A broken line of JSONL comes as a
    BadRow. ``columns`` limits what is read of a parquet file. Raises ValueError if the file cannot
    be read.
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
    """Return the columns of a parquet file, or the keys of the first record of JSON or JSONL.

    Raises ValueError as ``read_table`` does.
    """
    path = Path(path)
    if path.suffix == ".parquet" and path.is_file():
        try:
            return list(read_schema(path).names)
        except (ArrowException, OSError) as error:
            raise ValueError(f"{path} is not a readable parquet file: {error}") from None
    return next((list(row) for row in read_table(path) if isinstance(row, dict)), [])


def _read_parquet(path: Path, columns: Sequence[str] | None) -> Iterator[object]:
    try:
        # The default buffering would hold a whole row group, perhaps thousands of images, twice.
        # This way only a page is held: up to 1,024 images, as pyarrow writes them.
        with ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
            chosen = None if columns is None else list(columns)
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=chosen):
                yield from batch.to_pylist()
    except (ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a readable parquet file: {error}") from None


def _read_lines(path: Path) -> Iterator[object]:
    with path.open("rb") as lines:  # bytes: broken UTF-8 is one bad row, not the end
        for line in lines:
            if line.strip():
                try:
                    yield json.loads(line)
                except (ValueError, RecursionError):  # broken JSON or UTF-8, or nested too deep
                    yield BadRow("line is not valid JSON")
