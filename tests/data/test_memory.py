"""J: the bytes and pixels of images do not stay in memory, however many rows a file has."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.tiny import tiny_folder
from pyarrow import ipc

# Reads files as the loops do, all rows and then some of them again, and prints for each how much
# memory it took on top of what there was, in MiB.
MEASURE = """
import gc, sys
from ovlt.data.sources import Limits, bad_images, load_conversations, load_questions, to_prompt
from ovlt.model.load import open_folder

def memory(field):  # not getrusage, whose peak starts with that of the parent process
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) >> 10 for line in lines if line.startswith(field))

model, *files = sys.argv[1:]
chat = open_folder(model).chat
limits = Limits(factor=28, min_pixels=3136, max_pixels=100352, max_tokens=4000)
for path in files:
    gc.collect()
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak starts anew
    before = memory("VmRSS")
    load = load_conversations if "conversations" in path else load_questions
    rows = load(path, chat, limits).require(0)
    assert not bad_images(rows[: len(rows) // 8], limits, 2)
    for index in range(0, len(rows), len(rows) // 100):
        assert to_prompt(rows[index], limits).images
    print(memory("VmHWM") - before)
"""
SIZE = 140  # sides of an image; 59 kB as a PNG of noise


def image(number: int) -> bytes:
    """Return a BMP, which is written quickly: its header, and noise."""
    rng = np.random.default_rng(number)
    head = b"BM" + (54 + 3 * SIZE**2).to_bytes(4, "little") + bytes(4) + (54).to_bytes(4, "little")
    sides = SIZE.to_bytes(4, "little") * 2 + b"\x01\x00\x18\x00" + bytes(24)
    return head + (40).to_bytes(4, "little") + sides + rng.bytes(3 * SIZE**2)


IMAGES = [image(number) for number in range(8)]


def write(path: Path, kind: str, count: int) -> None:
    """Write rows with 59 kB of image each; equal images are few, so that the file is small."""
    words = "so " * 100
    turns = [
        {"role": "user", "content": "<image>?"},
        {"role": "assistant", "content": f"<think>{words}</think>3"},
    ]
    more = (
        {"messages": turns} if kind == "conversations" else {"problem": "<image>?", "answer": "3"}
    )
    if path.suffix in (".jsonl", ".json"):
        uris = ["data:image/bmp;base64," + base64.b64encode(data).decode() for data in IMAGES]
        rows = (json.dumps({**more, "images": [uris[i % 8]], "n": i}) for i in range(count))
        with path.open("w") as file:
            if path.suffix == ".jsonl":
                file.writelines(row + "\n" for row in rows)
            else:
                file.write("[" + next(rows))
                file.writelines("," + row for row in rows)
                file.write("]")
        return
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    base = pa.array(IMAGES, pa.binary())
    schema = pa.Table.from_pylist([{**more, "n": 0}]).schema.append(
        pa.field("images", pa.list_(struct))
    )
    is_parquet = path.suffix == ".parquet"
    opened = pq.ParquetWriter(path, schema) if is_parquet else ipc.new_stream(str(path), schema)
    with opened as writer:
        cells = pa.StructArray.from_arrays(
            [base.take(pa.array(np.arange(count) % 8)), pa.nulls(count, pa.string())],
            fields=list(struct),
        )
        lists = pa.ListArray.from_arrays(pa.array(np.arange(count + 1), pa.int32()), cells)
        table = pa.Table.from_pylist([{**more, "n": i} for i in range(count)])
        table = table.append_column("images", lists).cast(schema)
        if is_parquet:
            writer.write_table(table, row_group_size=count)  # one group, as pyarrow's default is
        else:
            writer.write_table(table, max_chunksize=100)


@pytest.mark.slow
def test_images_within_rows_stay_in_their_file(tmp_path: Path) -> None:
    """Of 1,200 more rows with 67 MiB more of images, each may take a few KiB."""
    tiny_folder(tmp_path / "model")
    names = ["q.parquet", "q.arrow", "q.jsonl", "q.json", "conversations.parquet"]
    paths = []
    for name in names:
        for count in (200, 1_400):
            path = tmp_path / f"{count}{name}"
            write(path, "conversations" if "conversations" in name else "questions", count)
            paths.append(str(path))
    # What stays in memory stays in each of three processes; what an allocator keeps is chance.
    tries: list[list[int]] = []
    while len(tries) < 3:
        tries.append(growths(tmp_path, paths))
        least = {name: min(growth) for name, *growth in zip(names, *tries, strict=True)}
        if max(least.values()) < 40:
            return
    pytest.fail(f"MiB that each file took in each process: {names} {tries}")


def growths(home: Path, paths: list[str]) -> list[int]:
    """Return, for each pair of files, the MiB that the longer takes more than the shorter."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(home / "model"), paths[0], *paths],
        env=os.environ | {"OVLT_CACHE": str(home / "scratch")},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    # The first read of a process takes 60 MiB for the libraries: it is done twice.
    figures = list(map(int, done.stdout.split()))[1:]
    return [longer - shorter for shorter, longer in zip(figures[::2], figures[1::2], strict=True)]
