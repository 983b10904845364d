"""Find and read the rows of a path: a file, a folder of shards, or a dataset of the Hub.

What a file is, its first bytes say, not its name: parquet, Arrow, a JSON list, or JSON objects.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from pyarrow import ArrowException
from pyarrow.parquet import read_schema

from ovlt.data.column_tables import ArrowTable, ParquetTable, read_columns
from ovlt.data.json_tables import MARKS, json_table
from ovlt.data.row_table import BadRow, RowTable
from ovlt.data.shards import folder_files
from ovlt.system.hub import is_hub_name

__all__ = ["TABLES", "BadRow", "column_names", "open_tables", "read_table"]

TABLES = (".parquet", ".jsonl", ".json")
_HEAD = 1 << 16
# How files start that are no rows yet, and what to do with them.
_WRAPPED = {
    b"\x1f\x8b": "is compressed (gzip): unpack it",
    b"PK\x03\x04": "is a zip archive: unpack it",
    b"\x28\xb5\x2f\xfd": "is compressed (zstd): unpack it",
    b"BZh": "is compressed (bzip2): unpack it",
    b"\xfd7zXZ": "is compressed (xz): unpack it",
    b"7z\xbc\xaf": "is a 7z archive: unpack it",
    b"version https://git-lfs": "is the pointer of a file in Git LFS: get the file (git lfs pull)",
    b"PARE": "is an encrypted parquet file: write it without encryption",
    b"\x80": "looks like a pickle, which is never read: write the rows as parquet or JSONL",
    b"<": "holds HTML or XML, perhaps a page that was downloaded in place of the file",
}


def open_tables(path: str | Path) -> list[RowTable]:
    """Return the tables at a path, in order. Raises ValueError.

    A path is a file; a folder of shards or of ``datasets``, with ``:split`` behind it if it holds
    several splits; or ``hf://owner/name:split``.
    """
    if is_hub_name(path):
        from ovlt.data.hub_rows import hub_files  # here: the datasets library is optional

        return [ArrowTable(file) for file in hub_files(path)]
    return [open_table(file) for file in folder_files(path)]


def open_table(path: Path) -> RowTable:
    """Return the table in a file. Raises ValueError that says what the file is instead."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    if head.startswith(b"PAR1"):
        return ParquetTable(path)
    if head.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
        return ArrowTable(path)
    if path.suffix == ".parquet":
        what = _wrapped(head) or "does not start like one"
        raise ValueError(f"{path} is not a readable parquet file: it {what}")
    if any(head.startswith(mark) for mark, _ in MARKS) or head.lstrip()[:1] in (b"{", b"["):
        return json_table(path, head)
    if what := _wrapped(head):
        raise ValueError(f"{path} {what}")
    if path.suffix == ".jsonl" or (path.suffix == ".json" and not head.strip()):
        return json_table(path, head)
    if path.suffix == ".json":
        raise ValueError(f"{path} is not valid JSON: it starts with {head[:20]!r}")
    raise ValueError(
        f"{path}: rows are read from .parquet, .jsonl or .json, not {path.suffix!r}: write them as "
        "parquet, or as JSON objects, one on each line"
    )


def _wrapped(head: bytes) -> str:
    return next((what for start, what in _WRAPPED.items() if head.startswith(start)), "")


def read_table(path: str | Path, columns: Sequence[str] | None = None) -> Iterator[object]:
    """Yield the rows at a path, as the files have them.

    A row should be a dict, but JSON may hold anything: check it. A broken line of JSONL comes as a
    BadRow. ``columns`` limits what is read of a parquet file. Raises ValueError if a file cannot
    be read.
    """
    for table in open_tables(path):
        if isinstance(table, ParquetTable):
            yield from read_columns(table.path, columns)
        else:
            yield from (row for _, row in table.rows())


def column_names(path: str | Path) -> list[str]:
    """Return the columns of a parquet file, or the keys of the first record of JSON or JSONL.

    Raises ValueError as ``read_table`` does.
    """
    [table, *_] = open_tables(path)
    if isinstance(table, ArrowTable):
        return table.columns
    if isinstance(table, ParquetTable):
        try:
            return list(read_schema(table.path).names)
        except (ArrowException, OSError) as error:
            raise ValueError(f"{path} is not a readable parquet file: {error}") from None
    return next((list(row) for row in read_table(path) if isinstance(row, dict)), [])
