"""VizWiz's ten answers; A-OKVQA."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from helpers.source_files import (
    IMAGE,
    TEXT,
    TEXTS,
    cell,
    image_file,
    json_file,
    parquet_file,
    questions,
    read_all,
)

from ovlt.data.readers import BadRow
from ovlt.data.readers.photos import majority


def test_the_majority_is_the_answer() -> None:
    assert majority(["Coke", "coke ", "diet  coke", "Coke"]) == "coke"
    assert majority(["b"] * 3 + ["a"] * 3 + ["c"] * 4) == "c"
    assert majority(["b", "a"] * 5) == "b"  # a tie: the first
    assert majority(["x"]) == "x"
    with pytest.raises(BadRow, match="fewer than 3 people agree"):
        majority(["a", "a", *"bcdefghi"])
    with pytest.raises(BadRow, match="most call it unanswerable"):
        majority(["unanswerable"] * 6 + ["soup"] * 4)


def test_vizwiz_of_the_hub_and_native(tmp_path: Path) -> None:
    answers = [["soup"] * 7 + ["can"] * 3, ["unanswerable"] * 10, None, []]
    rows = [
        {
            "question_id": f"v{i}",
            "image": cell(i),
            "question": "What is this?",
            "answers": a,
            "category": "other",
        }
        for i, a in enumerate(answers)
    ]
    columns = {"question_id": TEXT, "image": IMAGE, "question": TEXT, "answers": TEXTS}
    parquet_file(
        tmp_path / "hub" / "data" / "val-00000-of-00001.parquet", rows, columns | {"category": TEXT}
    )
    parquet_file(tmp_path / "hub" / "data" / "test-00000-of-00001.parquet", rows[2:3], columns)
    with pytest.raises(ValueError, match=r'splits test, val: say which with split = "..."'):
        read_all("vizwiz", tmp_path / "hub")
    good, bad = read_all("vizwiz", tmp_path / "hub", split="val")
    assert [(row["id"], row["answer"], row["kind"]) for row in good] == [("v0", "soup", "other")]
    assert bad == [
        "most call it unanswerable",
        "no answer (a test split)",
        "answers are not a list",
    ]

    native = {
        "image": "VizWiz_train_00000000.jpg",
        "question": "What is this?",
        "answers": [{"answer": "Soup", "answer_confidence": "yes"}] * 10,
        "answer_type": "other",
        "answerable": 1,
    }
    json_file(tmp_path / "native" / "Annotations" / "train.json", [native])
    [row], bad = read_all("vizwiz", tmp_path / "native")
    assert row["answer"] == "soup"
    assert not bad
    expected = tmp_path / "native" / "train" / "VizWiz_train_00000000.jpg"
    assert row["images"] == [str(expected)]


def test_aokvqa_of_the_hub_and_native(tmp_path: Path) -> None:
    record = {
        "question_id": "22jb",
        "question": "What is in the mouth?",
        "choices": ["toothpick", "food", "straw", "cigarette"],
        "correct_choice_idx": 3,
        "direct_answers": str(["cigarette"] * 10),
        "rationales": ["He smokes."],
    }
    columns = {
        "image": IMAGE,
        "question_id": TEXT,
        "question": TEXT,
        "choices": TEXTS,
        "correct_choice_idx": pa.int8(),
        "direct_answers": TEXT,
        "rationales": TEXTS,
    }
    hub = parquet_file(
        tmp_path / "data" / "train-00000-of-00001.parquet",
        [record | {"image": cell(0)}, record | {"image": cell(1), "correct_choice_idx": None}],
        columns,
    )
    [row], bad = read_all("aokvqa", hub.parent)
    assert questions([row]) == [
        (
            "What is in the mouth?\nChoices:\n(A) toothpick\n(B) food\n(C) straw\n(D) cigarette",
            "D",
        )
    ]
    assert bad == ["no answer"]

    native = tmp_path / "native"
    json_file(native / "aokvqa_v1p0_train.json", [record | {"image_id": 299207, "split": "train"}])
    with pytest.raises(ValueError, match="no folder train2017: A-OKVQA's images are COCO 2017's"):
        read_all("aokvqa", native)
    image = image_file(native / "train2017" / "000000299207.jpg")
    [row], _ = read_all("aokvqa", native)
    assert (row["answer"], row["images"], row["id"]) == ("D", [str(image)], "22jb")
