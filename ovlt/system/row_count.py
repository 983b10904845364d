"""The number of rows in a data file, without its rows."""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import IO


def num_rows(file: Path) -> int:
    """Count the rows of a data file, unread if the file says how many; 0 if there is no file.

    Raises ValueError if it cannot be read.
    """
    if not file.is_file():
        return 0
    if file.suffix == ".parquet":
        from pyarrow import ArrowException, parquet  # here: a plan without rows needs no pyarrow

        try:
            return int(parquet.read_metadata(file).num_rows)
        except (ArrowException, OSError) as error:
            raise ValueError(f"{file} is not a readable parquet file: {error}") from None
    with file.open("rb") as lines:
        if file.suffix != ".json" or not _starts_a_list(lines):
            return sum(1 for line in lines if line.removeprefix(codecs.BOM_UTF8).strip())
    try:
        return len(json.loads(file.read_bytes()))  # bytes: the mark of a Windows program is skipped
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from None


def _starts_a_list(file: IO[bytes]) -> bool:
    start = file.read(4096).removeprefix(codecs.BOM_UTF8).lstrip()
    file.seek(0)
    return start.startswith(b"[")
