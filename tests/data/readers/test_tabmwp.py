"""TabMWP: records by problem id, and answers as they are graded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.source_files import image_file, json_file, questions, read_all

from ovlt.data.readers.tabmwp import normal_answer
from ovlt.reward.grading import grade


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        ("4,656", "4656"),
        ("1,522.81", "1522.81"),
        ("-1,000", "-1000"),
        ("8.20", "8.20"),  # money keeps its zeros
        ("5/18", "5/18"),
        ("\\frac{5}{18}", "5/18"),
        ("2:10 P.M.", "2:10 P.M."),
        ("1,2,3", "1,2,3"),  # no thousands: a list
        ("shortage", "shortage"),
    ],
)
def test_answers_are_normal_and_still_right(answer: str, normal: str) -> None:
    assert normal_answer(answer) == normal
    assert grade(answer, normal)[0]


def record(question: str, answer: Any, **changes: Any) -> dict[str, Any]:
    return {
        "question": question,
        "choices": None,
        "answer": answer,
        "unit": None,
        "table_title": None,
        "table": "a | b",
        "table_for_pd": {"a": ["1"]},
        "ques_type": "free_text",
        "ans_type": "integer_number",
        "grade": 5,
        "split": "train",
    } | changes


def test_tabmwp_native(tmp_path: Path) -> None:
    yes_no = ["yes", "no"]
    records = {
        "17": record("How many?", "4,656"),
        "18": record("How much?", "8.20", unit="$", ans_type="decimal_number"),
        "19": record("Is it linear?", "no", choices=yes_no, ans_type="boolean_text"),
        "20": record("Is it?", "maybe", choices=yes_no),
        "21": record("Which?", "a", choices=["a", "A "]),
        "22": record("How many?", None),
        "23": record("How many?", ["1"]),
    }
    for split in ("train", "dev", "dev1k"):
        json_file(tmp_path / f"problems_{split}.json", records if split == "train" else {})
    json_file(tmp_path / "splits.json", {"train": list(records)})
    image_file(tmp_path / "tables" / "17.png")
    rows, bad = read_all("tabmwp", tmp_path)
    assert questions(rows) == [
        ("How many?", "4656"),
        ("How much? (Unit: $)", "8.20"),
        ("Is it linear?\nChoices:\n(A) yes\n(B) no", "B"),
    ]
    assert [row["id"] for row in rows] == ["17", "18", "19"]
    assert [row["kind"] for row in rows] == ["integer_number", "decimal_number", "boolean_text"]
    assert rows[0]["images"] == [str(tmp_path / "tables" / "17.png")]
    assert bad == [
        "answer is none of the choices",
        "the right choice is listed twice",
        "no answer",
        "answer is a list, not a text or number",
    ]
    with pytest.raises(ValueError, match="has no rows of TabMWP"):
        read_all("tabmwp", tmp_path, split="dev")
