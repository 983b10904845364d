"""Rows become files whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ovlt.data.tables import read_table
from ovlt.data.writers import FileRow, write_rows

COLUMNS = {"problem": "text", "images": "images"}


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_a_file_stays_as_it_was_when_its_new_rows_break_off(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows.{suffix}"
    assert write_rows([{"problem": "old", "images": []}], path, COLUMNS) == 1

    def broken() -> Iterator[FileRow]:
        yield {"problem": "new", "images": []}
        raise ValueError("a source changed")

    with pytest.raises(ValueError, match="a source changed"):
        write_rows(broken(), path, COLUMNS)
    assert list(read_table(path)) == [{"problem": "old", "images": []}]
    assert list(tmp_path.iterdir()) == [path]


def test_an_unknown_kind_of_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"end its name in .parquet or .jsonl"):
        write_rows([], tmp_path / "rows.csv", COLUMNS)
