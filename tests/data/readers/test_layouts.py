"""The layout at a path is recognised; an unknown one is described, not guessed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.source_files import (
    IMAGE,
    IMAGES,
    TEXT,
    TEXTS,
    cell,
    image_file,
    json_file,
    parquet_file,
    read_all,
)

from ovlt.data.json_stream import json_list, json_members
from ovlt.data.readers import SOURCES, layouts, open_source


def test_an_unknown_layout_is_told_by_its_columns(tmp_path: Path) -> None:
    columns = {"picture": IMAGE, "question": TEXT, "options": TEXTS, "label": TEXT}
    parquet_file(tmp_path / "data" / "train-00000-of-00001.parquet", [], columns)
    with pytest.raises(ValueError) as caught:
        read_all("ai2d", tmp_path)
    message = str(caught.value)
    assert f"AI2D: {tmp_path} has train-00000-of-00001.parquet" in message
    assert "with columns picture, question, options, label" in message
    assert "lmms-lab/ai2d: columns question, options, answer, image" in message
    assert "a folder with questions/*.json, images" in message


def test_an_unknown_layout_is_told_by_its_files(tmp_path: Path) -> None:
    image_file(tmp_path / "pictures" / "1.png")
    (tmp_path / "questions.csv").write_text("a,b")
    with pytest.raises(ValueError, match=r"MapQA: .* holds pictures/, questions.csv\. Layouts"):
        read_all("mapqa", tmp_path)
    with pytest.raises(ValueError, match=r"holds a file of type '\.csv'"):
        read_all("mapqa", tmp_path / "questions.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds nothing"):
        read_all("mapqa", tmp_path / "empty")
    with pytest.raises(ValueError, match=r"nothing at .*; give the folder or file it lies in"):
        read_all("mapqa", tmp_path / "gone")
    with pytest.raises(ValueError, match="unknown source 'mapaq': choose among figureqa, geos"):
        open_source("mapaq", tmp_path)


def test_broken_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "train-00000-of-00001.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match=r"train-00000-of-00001.parquet is not a readable parquet"):
        read_all("ai2d", tmp_path)
    folder = tmp_path / "figureqa"
    image_file(folder / "png" / "0.png")
    (folder / "qa_pairs.json").write_text('{"qa_pairs": [{"question_string": "a"}, {"ques')
    with pytest.raises(ValueError, match=r"qa_pairs.json is not valid JSON"):
        read_all("figureqa", folder)
    (folder / "qa_pairs.json").write_text('{"questions": [], "info": {}}')
    with pytest.raises(ValueError, match="has no list 'qa_pairs'; its keys are questions, info"):
        read_all("figureqa", folder)


def test_shards_splits_and_the_hubs_cache(tmp_path: Path) -> None:
    columns = {"problem": TEXT, "answer": TEXT, "images": IMAGES}
    snapshot = tmp_path / "datasets--a--b" / "snapshots" / "0a1b"
    for split, n in (("train", 2), ("validation", 1)):
        for shard in range(n):
            row = {"problem": f"{split} {shard}", "answer": "1", "images": [cell(shard)]}
            parquet_file(
                snapshot / "data" / f"{split}-{shard:05d}-of-{n:05d}.parquet", [row], columns
            )
    rows, _ = read_all("geometry3k", tmp_path / "datasets--a--b")
    assert [row["problem"] for row in rows] == ["<image>train 0", "<image>train 1"]
    rows, _ = read_all("geometry3k", snapshot, split="validation")
    assert [row["problem"] for row in rows] == ["<image>validation 0"]
    with pytest.raises(ValueError, match="no split 'test'; it has train, validation"):
        read_all("geometry3k", snapshot, split="test")


def test_easyr1_rows_pass_as_they_are(tmp_path: Path) -> None:
    lines: list[Any] = [
        {"problem": "a <image> b <image>", "answer": 3, "images": ["1.png", "2.png"]},
        {"problem": "no images", "answer": "x", "images": None, "source": "s", "pass_rate": 0.5},
        {"problem": "<image>", "answer": "x", "images": []},
        {"problem": "a", "answer": None, "images": []},
        [],
        {"problem": "a", "images": []},
    ]
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n{\n")
    rows, bad = read_all("questions", path)
    assert rows[0]["problem"] == "a <image> b <image>"
    assert rows[0]["answer"] == "3"
    assert rows[0]["images"] == [str(tmp_path / "1.png"), str(tmp_path / "2.png")]
    assert (rows[1]["source"], rows[1]["pass_rate"], rows[1]["images"]) == ("s", 0.5, [])
    assert bad == [
        "1 <image> tags but 0 images",
        "no answer",
        "row is not an object",
        "record has no 'answer'",
        "line is not valid JSON",
    ]


@pytest.mark.parametrize(
    ("source", "files"),
    [
        ("scienceqa", {"pid_splits.json": {"train": ["1"]}, "problems.json": {"1": ["no object"]}}),
        (
            "iconqa",
            {"pid_splits.json": {"choose_txt_train": ["1"]}, "problems.json": {"1": ["no object"]}},
        ),
        ("tabmwp", {"problems_train.json": {"1": "no object"}}),
        ("ai2d", {"questions/1.json": {"imageName": "1.png", "questions": {"Q?": 3}}}),
    ],
)
def test_a_record_that_is_no_object_is_a_bad_row(
    tmp_path: Path, source: str, files: dict[str, Any]
) -> None:
    for name, content in files.items():
        json_file(tmp_path / name, content)
    (tmp_path / "images").mkdir()
    (tmp_path / "tables").mkdir()
    assert read_all(source, tmp_path) == ([], ["record has an unexpected shape"])


def test_every_source_says_what_it_reads() -> None:
    assert len(SOURCES) == 19
    for source in SOURCES.values():
        for layout in layouts(source):
            assert layout.expects.startswith(layout.name)


# --- large JSON files ----------------------------------------------------------------------------


@pytest.mark.parametrize("spread", [0, 3_000_000])
def test_json_is_read_item_by_item(tmp_path: Path, spread: int) -> None:
    """Also if an item is larger than what is read at once, and if two reads cut an item in two."""
    items: list[Any] = ["x" * spread, 12, -3.5e2, True, None, {"a": ["]", "\\", "é"]}, [[]], "}"]
    items += [i * 7 for i in range(spread // 8)]  # numbers that two reads cut in two
    path = json_file(tmp_path / "a.json", items)
    assert list(json_list(path)) == items
    file = {"info": {"list": [1, {}]}, "empty": [], "list": items, "after": 1}
    path = json_file(tmp_path / "b.json", file)
    assert list(json_list(path, "list")) == items
    assert list(json_list(path, "empty")) == []
    assert dict(json_members(path)) == file
    path.write_text("\n [ 1 ,\n 2 ]\n")
    assert list(json_list(path)) == [1, 2]
    path.write_text("{}")
    assert list(json_members(path)) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "at its start: "),
        ("[1, 2", "in item 2: "),
        ("[1 2]", "in item 1: "),
        ("[1,]", "in item 1: "),
        ("[", "in item 0: "),
        ("[1] [2]", "after its end: "),
        ("[NaN]", "in item 0: "),
        ("[1e999]", "in item 0: .*overflow"),
        ("[" + "9" * 5000 + "]", "in item 0: .*overflow"),
        ('["\udcff"]', "in item 0: "),  # broken UTF-8
        ("[0, " + "[" * 100_000, "in item 1: nested deeper than 500"),
        ("[" + '{"a":' * 100_000, "in item 0: nested deeper than 500"),
        ('[{"b": {"a": 1, "a": 2}}]', "in item 0: the key 'a' appears twice"),
    ],
    ids=lambda value: value[:20],
)
def test_broken_or_hostile_json_is_named_with_its_place(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=f"a.json is not valid JSON: {message}"):
        list(json_list(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1', "under the key 'a': "),
        ('{"a": 1, "b": [1, }', "under the key 'b': "),
        ('{"a": 1, "a": 2}', "under the key 'a': the key 'a' appears twice"),
        ('{"a": 1} 2', "after its end: "),
    ],
)
def test_a_broken_object_is_named_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"a.json is not valid JSON: {message}"):
        list(json_members(path))
    with pytest.raises(ValueError, match=r"a\.json must hold a JSON list of rows"):
        list(json_list(path))


# --- memory --------------------------------------------------------------------------------------

MEASURE = """
import sys
from pathlib import Path
from ovlt.data.readers import read
n = sum(1 for _ in read(sys.argv[1], sys.argv[2]))
status = Path("/proc/self/status").read_text()  # ru_maxrss would count the parent before exec
print(n, int(status.partition("VmHWM:")[2].split()[0]) // 1024)
"""


def peak_mib(source: str, path: Path) -> tuple[int, int]:
    """Return (rows, peak resident MiB) of a process that only reads."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, source, str(path)],
        check=True,
        capture_output=True,
        text=True,
    )
    rows, peak = map(int, done.stdout.split())
    return rows, peak


@pytest.mark.slow
def test_a_hundred_thousand_rows_of_images_take_little_memory(tmp_path: Path) -> None:
    """2.3 GB of image cells; small on disk, since a dictionary keeps equal ones once."""
    data = pa.array([np.random.default_rng(i).bytes(23_000) for i in range(7)], pa.binary())
    schema = pa.schema([("images", IMAGES), ("problem", TEXT), ("answer", TEXT)])
    n, group = 100_000, 10_000
    with pq.ParquetWriter(tmp_path / "train.parquet", schema) as writer:
        for start in range(0, n, group):
            cells = pa.StructArray.from_arrays(
                [data.take(pa.array(np.arange(group) % 7)), pa.nulls(group, TEXT)],
                fields=list(IMAGE),
            )
            images = pa.ListArray.from_arrays(pa.array(np.arange(group + 1), pa.int32()), cells)
            problems = pa.array([f"How many in {start + i}?" for i in range(group)])
            answers = pa.array(["3"] * group)
            writer.write_table(pa.table([images, problems, answers], schema=schema))
    rows, peak = peak_mib("geometry3k", tmp_path)
    assert rows == n
    assert peak < 400


@pytest.mark.slow
def test_a_row_group_of_any_size_is_read_piece_by_piece(tmp_path: Path) -> None:
    """One row group of 400 MB that does not compress: other writers make them of gigabytes."""
    n, size = 20_000, 20_000
    rng = np.random.default_rng(0)
    rows = [
        {"problem": f"Q{i}?", "answer": "3", "images": [{"bytes": rng.bytes(size), "path": None}]}
        for i in range(n)
    ]
    columns = {"images": IMAGES, "problem": TEXT, "answer": TEXT}
    parquet_file(tmp_path / "train.parquet", rows, columns)
    count, peak = peak_mib("geometry3k", tmp_path)
    assert count == n
    assert peak < 400


def test_fifty_thousand_records_of_json_take_little_memory(tmp_path: Path) -> None:
    """CLEVR's question files hold programs, here as texts: 250 MB of JSON, more as objects."""
    record = json.dumps({"question": "Q?", "answer": "3", "program": ["filter_color" * 12] * 33})
    (tmp_path / "images").mkdir()
    path = tmp_path / "questions" / "CLEVR_train_questions.json"
    path.parent.mkdir()
    with path.open("w") as file:
        file.write('{"info": {}, "questions": [')
        for i in range(50_000):
            file.write("," * bool(i) + f'{{"image_filename": "CLEVR_{i}.png", ' + record[1:])
        file.write("]}")
    rows, peak = peak_mib("clevr", tmp_path)
    assert rows == 50_000
    assert peak < 200  # 65 MiB without a file
