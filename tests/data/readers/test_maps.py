"""MapQA: sets of values, numbers with commas, ranges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.source_files import image_file, json_file, read_all

from ovlt.reward.grading import grade

RANGE = "1,231,000-4,782,400"


def test_mapqa_native(tmp_path: Path) -> None:
    answers: list[Any] = ["4,656", ["Texas", "New York"], [RANGE, "12"], [], None, [["Ohio"]]]
    records = [
        {
            "question_id": i,
            "map_id": "map_0.png",
            "question_type": "retrieval",
            "question_template_id": "DR1",
            "question": "What is the value of Texas ?",
            "answer": answer,
        }
        for i, answer in enumerate(answers)
    ]
    for subset in ("MapQA_U", "MapQA_S"):
        for split in ("train", "dev"):
            json_file(tmp_path / subset / "questions" / f"{split}-QA.json", records)
        image_file(tmp_path / subset / "images" / "map_0.png")
    with pytest.raises(ValueError, match="subsets MapQA_S, MapQA_U: say which with subset"):
        read_all("mapqa", tmp_path)
    rows, bad = read_all("mapqa", tmp_path, subset="MapQA_U")
    assert rows == read_all("mapqa", tmp_path / "MapQA_U")[0]
    assert [row["answer"] for row in rows] == ["4,656", "Texas; New York", f"{RANGE}; 12"]
    assert bad == ["no answer", "no answer", "answer is a list, not a text or number"]
    assert rows[0]["problem"] == "<image>What is the value of Texas?"
    assert rows[0]["kind"] == "retrieval"
    assert rows[0]["images"] == [str(tmp_path / "MapQA_U" / "images" / "map_0.png")]


def test_sets_are_graded_without_order() -> None:
    assert grade("New York, Texas", "Texas; New York")[0]
    assert not grade("Texas", "Texas; New York")[0]
    assert grade(f"12; {RANGE}", f"{RANGE}; 12")[0]
    assert not grade("1,231,000-4,782,401", RANGE)[0]
