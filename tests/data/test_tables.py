"""Rows wherever they lie: layouts of JSON, folders of shards; and one row read again."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.row_forms import png
from pyarrow import ipc

from ovlt.data import column_tables
from ovlt.data.tables import open_tables, read_table
from ovlt.system.row_count import num_rows
from ovlt.system.scratch import Scratch

ROWS: list[dict[str, Any]] = [{"problem": f"{i}?", "answer": str(i), "ü": [i]} for i in range(5)]
IMAGE = pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))


def compact(row: object) -> str:
    return json.dumps(row, ensure_ascii=False)


LAYOUTS = {
    "lines": "\n".join(map(compact, ROWS)) + "\n",
    "lines without an end": "\n".join(map(compact, ROWS)),
    "blank lines": "\n\n" + "\n\n".join(map(compact, ROWS)) + "\n\n",
    "list": json.dumps(ROWS),
    "indented list": json.dumps(ROWS, indent=2),
    "list of lines": "[\n" + ",\n".join(map(compact, ROWS)) + "\n]\n",
    "indented objects": "\n".join(json.dumps(row, indent=4) for row in ROWS),
}


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".txt", ""])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_json_is_read_whatever_its_name_marks_and_line_ends(
    tmp_path: Path, layout: str, suffix: str
) -> None:
    """D3, D6"""
    path = tmp_path / f"rows{suffix}"
    for mark in ("", "\ufeff"):
        for end in ("\n", "\r\n"):
            path.write_bytes((mark + LAYOUTS[layout].replace("\n", end)).encode())
            assert list(read_table(path)) == ROWS
            [table] = open_tables(path)
            places = [place for place, _ in table.rows()]
            assert [table.read(place) for place in reversed(places)] == ROWS[::-1]
    if layout != "indented objects":  # Notepad's and PowerShell's encoding
        path.write_bytes(LAYOUTS[layout].encode("utf-16"))
        assert list(read_table(path)) == ROWS


def test_a_broken_line_of_jsonl_is_one_bad_row_wherever_it_is(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    for lines in ([b'{"a": 1', b'{"a": 2}'], [b'{"a": 2}', b'{"a": 1'], [b'{"a":1,"a":2}', b"{}"]):
        path.write_bytes(b"\n".join(lines))
        kinds = [type(row).__name__ for row in read_table(path)]
        assert sorted(kinds) == ["BadRow", "dict"]


@pytest.mark.parametrize(
    ("start", "cure"),
    [
        (b"\x1f\x8b\x08rest", "gzip.*unpack"),
        (b"PK\x03\x04rest", "zip archive"),
        (b"version https://git-lfs.github.com/spec/v1\noid x", "git lfs pull"),
        (b"\x80\x04\x95rest", "pickle, which is never read"),
        (b"<!doctype html>", "HTML"),
        (b"problem,answer\n1,2", "parquet, or as JSON objects"),
    ],
)
def test_a_file_that_is_no_rows_says_what_it_is(tmp_path: Path, start: bytes, cure: str) -> None:
    for name in ("rows", "rows.csv"):
        (tmp_path / name).write_bytes(start)
        with pytest.raises(ValueError, match=f"{name}.*{cure}"):
            list(read_table(tmp_path / name))


# --- folders -----------------------------------------------------------------------------------


def write_arrow(path: Path, rows: list[dict[str, Any]]) -> None:
    table = pa.Table.from_pylist(rows)
    with ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


def test_shards_of_a_split_are_read_in_order(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for number in range(3):
        table = pa.Table.from_pylist(ROWS[2 * number : 2 * number + 2])
        pq.write_table(table, data / f"train-{number:05d}-of-00003.parquet")
    assert list(read_table(tmp_path)) == ROWS
    assert list(read_table(f"{tmp_path}:train")) == ROWS
    pq.write_table(pa.Table.from_pylist(ROWS[:1]), data / "test-00000-of-00001.parquet")
    with pytest.raises(ValueError, match=rf"splits test, train: name one, as in {tmp_path}:test"):
        list(read_table(tmp_path))
    assert list(read_table(f"{tmp_path}:test")) == ROWS[:1]
    with pytest.raises(ValueError, match="no split 'val'; it has test, train"):
        list(read_table(f"{tmp_path}:val"))


def test_what_the_datasets_library_saved_is_read_without_it(tmp_path: Path) -> None:
    """The library writes in a process of its own; reading needs pyarrow alone."""
    code = (
        "import sys, datasets as d; from PIL import Image\n"
        "rows = {'problem': ['a', 'b', 'c'], 'answer': ['1', '2', '3'],\n"
        "        'images': [[Image.new('RGB', (56, 56), n)] for n in ('red', 'blue', 'green')]}\n"
        "one = d.Dataset.from_dict(rows)\n"
        "one.save_to_disk(sys.argv[1] + '/one', num_shards=2)\n"
        "d.DatasetDict(train=one, test=one.select([2])).save_to_disk(sys.argv[1] + '/two')\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True)
    rows = [row for row in read_table(tmp_path / "one") if isinstance(row, dict)]
    assert [row["problem"] for row in rows] == ["a", "b", "c"]
    assert all(row["images"][0]["bytes"][:4] == b"\x89PNG" for row in rows)
    assert len(list(read_table(f"{tmp_path}/two:test"))) == 1
    with pytest.raises(ValueError, match="splits train, test"):
        list(read_table(tmp_path / "two"))
    next((tmp_path / "one").glob("data-00001*")).unlink()
    with pytest.raises(ValueError, match=r"lacks data-00001-of-00002\.arrow"):
        list(read_table(tmp_path / "one"))


# --- one row again -----------------------------------------------------------------------------


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OVLT_CACHE", str(tmp_path / "scratch"))
    return tmp_path / "scratch"


def image_rows(count: int) -> list[dict[str, Any]]:
    return [
        {"problem": f"{i}?", "answer": "3", "images": [{"bytes": png(i), "path": None}]}
        for i in range(count)
    ]


@pytest.mark.parametrize("kind", ["small groups", "one group", "stream", "feather", "lines"])
def test_any_row_is_read_again_by_threads(tmp_path: Path, kind: str, scratch: Path) -> None:
    rows = image_rows(600)
    path = tmp_path / "rows"
    if "group" in kind:
        size = 50 if kind == "small groups" else None
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=size)
    elif kind == "stream":
        write_arrow(path, rows)
    elif kind == "feather":
        table = pa.Table.from_pylist(rows)
        with ipc.new_file(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=100)
    else:
        rows = [{**row, "images": ["no"]} for row in rows]
        path.write_text("\n".join(map(json.dumps, rows)))
    [table] = open_tables(path)
    places = [place for place, _ in table.rows()]
    wrong = []

    def check(first: int) -> None:
        wrong.extend(i for i in range(first, 600, 7) if table.read(places[i]) != rows[i])

    threads = [threading.Thread(target=check, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    unpacked = list(scratch.glob("*.parquet")) if scratch.exists() else []
    assert len(unpacked) == (kind == "one group")
    path.write_bytes(b"other" + path.read_bytes())
    with pytest.raises(ValueError, match="rows changed while it was in use: start again"):
        table.read(places[0])


def test_groups_that_were_read_are_held_within_a_limit(tmp_path: Path) -> None:
    held = column_tables._HeldGroups(10_000)
    read: list[int] = []
    for number in (*range(9), 8, 3, 8):
        group = pa.table({"x": pa.array([b"x" * (1_000 + 500 * number)])})

        def once(number: int = number, group: pa.Table = group) -> pa.Table:
            read.append(number)
            return group

        assert held.get((tmp_path, number), once).equals(group)
        sizes = [table.nbytes for table in held._groups.values()]
        assert sum(sizes) == held._bytes <= 10_000
    assert read == [*range(9), 3]  # the last ones were held


def test_a_scratch_folder_without_room_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("OVLT_CACHE", str(tmp_path / "file"))
    pq.write_table(pa.Table.from_pylist(image_rows(300)), tmp_path / "q.parquet")
    [table] = open_tables(tmp_path / "q.parquet")
    with pytest.raises(ValueError, match=r"OVLT_CACHE = .*cannot be written"):
        table.read(0)


def test_bytes_are_put_aside_in_memory_and_then_on_disk(scratch: Path) -> None:
    aside = Scratch(most_in_memory=100)
    pieces = [aside.put(bytes([i]) * i) for i in range(40)]
    assert [piece.read() for piece in pieces] == [bytes([i]) * i for i in range(40)]
    assert not list(scratch.iterdir())  # the file has no name


def test_rows_are_counted_in_any_layout(tmp_path: Path) -> None:
    for name, text in LAYOUTS.items():
        (tmp_path / "a.json").write_text("\ufeff" + text)
        if name != "indented objects":
            assert num_rows(tmp_path / "a.json") == len(ROWS)
    (tmp_path / "a.json").write_text("[")
    with pytest.raises(ValueError, match=r"a\.json is not valid JSON"):
        num_rows(tmp_path / "a.json")
    (tmp_path / "a.parquet").write_text("x")
    with pytest.raises(ValueError, match=r"a\.parquet is not a readable parquet file"):
        num_rows(tmp_path / "a.parquet")
