"""CLEVR, CLEVR-Math, counting, Super-CLEVR."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
from helpers.source_files import (
    IMAGE,
    IMAGES,
    TEXT,
    cell,
    json_file,
    parquet_file,
    questions,
    read_all,
)


def question(image: str, text: str, answer: Any, **changes: Any) -> dict[str, Any]:
    return {
        "split": "new",
        "image_filename": image,
        "image_index": 0,
        "question": text,
        "program": [{"inputs": [], "function": "scene", "value_inputs": []}],
        "answer": answer,
        "template_filename": "zero_hop.json",
        "question_family_index": 4,
    } | changes


def test_super_clevrs_answers_of_three_json_types(tmp_path: Path) -> None:
    """True equals 1 for Python; the file means yes by one and a count by the other."""
    answers: list[Any] = [True, 1, False, 0, "articulated bus", 12, None, 2.5]
    records = [
        question(f"superCLEVR_new_{i:06d}.png", f"q{i}?", answer)
        for i, answer in enumerate(answers)
    ]
    records += [
        question(f"superCLEVR_new_{n:06d}.png", f"part {n}", 3) for n in (19_999, 20_000, 25_000)
    ]
    (tmp_path / "images").mkdir()
    file = {"info": {"license": "CC BY 4.0"}, "questions": records}
    json_file(tmp_path / "superCLEVR_questions_30k.json", file)
    json_file(tmp_path / "superCLEVR_questions_30k_NoRedundant.json", file | {"questions": []})
    rows, bad = read_all("super_clevr", tmp_path)
    assert [row["answer"] for row in rows] == [
        *("Yes", "1", "No", "0", "articulated bus", "12", "2.5", "3")
    ]
    assert bad == ["no answer (a test split)"]
    assert rows[0]["images"] == [str(tmp_path / "images" / "superCLEVR_new_000000.png")]
    assert questions(rows)[-1][0] == "part 19999"
    assert questions(read_all("super_clevr", tmp_path, split="val")[0]) == [("part 20000", "3")]
    assert questions(read_all("super_clevr", tmp_path, split="test")[0]) == [("part 25000", "3")]


def test_clevr_native(tmp_path: Path) -> None:
    for split, answer in (("train", "cube"), ("val", "3")):
        record = question(f"CLEVR_{split}_000001.png", "What shape?", answer)
        file = {"info": {"split": split}, "questions": [record]}
        json_file(tmp_path / "questions" / f"CLEVR_{split}_questions.json", file)
    record = question("CLEVR_test_000001.png", "What shape?", None)
    del record["answer"]
    file = {"info": {}, "questions": [record]}
    json_file(tmp_path / "questions" / "CLEVR_test_questions.json", file)
    (tmp_path / "images").mkdir()
    [row], _ = read_all("clevr", tmp_path)
    assert (row["answer"], Path(row["images"][0]).parent.name) == ("cube", "train")
    assert read_all("clevr", tmp_path, split="val")[0][0]["answer"] == "3"
    assert read_all("clevr", tmp_path, split="test") == ([], ["no answer (a test split)"])


def test_clevr_math_in_both_parquet_forms(tmp_path: Path) -> None:
    row = {
        "template": "subtraction-multihop",
        "id": "CLEVR_0.png",
        "question": "How many are left?",
    }
    loader = parquet_file(
        tmp_path / "a" / "train-00000-of-00001.parquet",
        [row | {"image": cell(0), "label": 0}],
        {"template": TEXT, "id": TEXT, "question": TEXT, "image": IMAGE, "label": pa.int64()},
    )
    [got], _ = read_all("clevr_math", loader)
    assert (got["answer"], got["kind"]) == ("0", "subtraction-multihop")
    plain = parquet_file(
        tmp_path / "b" / "train-00000-of-00001.parquet",
        [{"images": [cell(0)], "problem": "<image>How many are left?", "answer": "4"}],
        {"images": IMAGES, "problem": TEXT, "answer": TEXT},
    )
    assert questions(read_all("clevr_math", plain)[0]) == [("How many are left?", "4")]


def test_r1vs_counting_sets(tmp_path: Path) -> None:
    train = parquet_file(
        tmp_path / "train-00000-of-00001.parquet",
        [{"image": cell(0), "problem": "How many items?", "solution": "<answer> 3 </answer>"}],
        {"image": IMAGE, "problem": TEXT, "solution": TEXT},
    )
    assert questions(read_all("counting", train)[0]) == [("How many items?", "3")]
    test = tmp_path / "superclevr_test200.jsonl"
    test.write_text('{"image_path": "images/a.png", "question": "How many?", "ground_truth": 7}\n')
    [row], _ = read_all("counting", test)
    assert (row["answer"], row["images"]) == ("7", [str(tmp_path / "images" / "a.png")])
