"""Geometry3K; UniGeo's and GeoQA's pickles; GeoQA as R1-V has it."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
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
    questions,
    read_all,
)


def problem(id: int, answer: str = "C", **changes: Any) -> dict[str, Any]:
    return {
        "problem_text": "Find x in \\odot A .",
        "annotat_text": "Find $x$ in $\\odot A$.",
        "choices": ["3", "4", "5", "6"],
        "precise_value": [3.0, 4.0, 5.0, None],
        "answer": answer,
        "problem_type_graph": ["Circle"],
        "problem_type_goal": ["Length"],
        "id": id,
        "data_type": "train",
    } | changes


def test_geometry3k_native(tmp_path: Path) -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"answer": "E"},
        {"choices": ["3", "4", "5", "5 "]},
        {"choices": ["5", "5", "6", "4"]},
        {"annotat_text": ""},
        {"answer": 2},
    ]
    for id, change in enumerate(changes):
        json_file(tmp_path / "train" / str(id) / "data.json", problem(id, **change))
        image_file(tmp_path / "train" / str(id) / "img_diagram.png", id)
    json_file(tmp_path / "test" / "2401" / "data.json", problem(2401, "D"))
    image_file(tmp_path / "test" / "2401" / "img_diagram.png")
    rows, bad = read_all("geometry3k", tmp_path)
    options = "\nChoices:\n(A) 3\n(B) 4\n(C) 5\n(D) 6"
    assert questions(rows)[0] == ("Find $x$ in $\\odot A$." + options, "C")
    assert rows[0]["choices"] == ["3", "4", "5", "6"]
    assert rows[0]["images"] == [str(tmp_path / "train" / "0" / "img_diagram.png")]
    # a wrong option may be listed twice; the right one twice would have two letters
    assert [row["id"] for row in rows] == ["0", "3", "4"]
    assert questions(rows)[2][0].startswith("Find x in \\odot A .")
    assert bad == [
        "answer is the index of no choice",
        "the right choice is listed twice",
        "answer is not a letter",
    ]
    assert [row["id"] for row in read_all("geometry3k", tmp_path / "train")[0]] == ["0", "3", "4"]
    assert read_all("geometry3k", tmp_path, split="test")[0][0]["answer"] == "D"


def test_geometry3k_of_the_hub_in_both_revisions(tmp_path: Path) -> None:
    choices = ["\\frac{1}{2}", "4", "5", "6"]
    rows = [
        {
            "images": [cell(i)],
            "problem": "<image>Find $x$.",
            "answer": "4",
            "id": 40 + i,
            "choices": choices,
            "ground_truth": letter,
        }
        for i, letter in enumerate(["B", "C", None])
    ]
    columns: dict[str, Any] = {"images": IMAGES, "problem": TEXT, "answer": TEXT}
    old = parquet_file(tmp_path / "old" / "train-00000-of-00001.parquet", rows[:1], columns)
    columns |= {"id": pa.int64(), "choices": TEXTS, "ground_truth": TEXT}
    new = parquet_file(tmp_path / "new" / "train-00000-of-00001.parquet", rows, columns)
    good, bad = read_all("geometry3k", new.parent)
    assert [(row["id"], row["answer"]) for row in good] == [("40", "B")]
    assert good[0]["problem"].count("<image>") == 1
    assert bad == ["ground_truth is not the letter of the answer", "answer is not a letter"]
    assert questions(read_all("geometry3k", old.parent)[0]) == [("Find $x$.", "4")]


class Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return (open, ("/tmp/ovlt-was-here", "w"))


@pytest.mark.parametrize("name", ["unigeo", "geoqa"])
def test_pickles_are_refused_unopened(tmp_path: Path, name: str) -> None:
    (tmp_path / "calculation_train.pk").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError, match="holds pickles, which run the code within them"):
        read_all(name, tmp_path)
    assert not Path("/tmp/ovlt-was-here").exists()


def test_geoqa_of_r1v(tmp_path: Path) -> None:
    solutions = ["<answer> 145° </answer>", "<answer>2√3\n</answer>", "145"]
    path = parquet_file(
        tmp_path / "train.parquet",
        [
            {"image": cell(i), "problem": "What is angle A?", "solution": s}
            for i, s in enumerate(solutions)
        ],
        {"image": IMAGE, "problem": TEXT, "solution": TEXT},
    )
    rows, bad = read_all("geoqa", path)
    assert [row["answer"] for row in rows] == ["145°", "2√3"]
    assert bad == ["solution has no <answer> tags"]
