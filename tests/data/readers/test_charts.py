"""FigureQA, ChartQA, DVQA: native folders and the hub's copies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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


def figure(question: str, answer: int | None, image: int, number: int = 0) -> dict[str, Any]:
    record = {
        "question_string": question,
        "question_id": number,
        "color1_name": "Teal",
        "color1_id": 3,
        "color1_rgb": [0, 128, 128],
        "color2_name": "--None--",
        "color2_id": -1,
        "color2_rgb": [-1, -1, -1],
        "image_index": image,
    }
    return record if answer is None else record | {"answer": answer}


def figureqa(folder: Path, records: list[dict[str, Any]]) -> Path:
    file = {"qa_pairs": records, "total_distinct_questions": 2, "total_distinct_colors": 1}
    json_file(folder / "qa_pairs.json", file)
    for record in records:
        image_file(folder / "png" / f"{record['image_index']}.png", record["image_index"])
    return folder


def test_figureqa_asks_each_question_and_names_its_image(tmp_path: Path) -> None:
    folder = figureqa(
        tmp_path / "train1",
        [
            figure("Is Teal the minimum?", 1, 7),
            figure("Does Teal intersect Red?", 0, 7, 14),
            figure("Is Teal the roughest?", 2, 8, 9),
        ],
    )
    rows, bad = read_all("figureqa", folder)
    assert questions(rows) == [("Is Teal the minimum?", "Yes"), ("Does Teal intersect Red?", "No")]
    assert [row["kind"] for row in rows] == ["minimum", "intersect"]
    assert rows[0]["images"] == rows[1]["images"] == [str(folder / "png" / "7.png")]
    assert rows[0]["problem"] == "<image>Is Teal the minimum?"
    assert len({row["id"] for row in rows}) == 2
    assert {row["source"] for row in rows} == {"figureqa"}
    assert bad == ["answer is neither 0 nor 1"]


def test_figureqas_test_partitions_have_no_answers(tmp_path: Path) -> None:
    figureqa(tmp_path / "train1", [figure("Is Teal the minimum?", 1, 0)])
    figureqa(tmp_path / "no_annot_test1", [figure("Is Red the maximum?", None, 0)])
    assert questions(read_all("figureqa", tmp_path)[0]) == [("Is Teal the minimum?", "Yes")]
    rows, bad = read_all("figureqa", tmp_path, split="no_annot_test1")
    assert (rows, bad) == ([], ["no answer (a test partition)"])
    with pytest.raises(ValueError, match="no split 'train2'; it has no_annot_test1, train1"):
        read_all("figureqa", tmp_path, split="train2")


def test_figureqa_with_one_row_per_image(tmp_path: Path) -> None:
    pair = pa.struct([("question", TEXT), ("answer", TEXT)])
    path = parquet_file(
        tmp_path / "data" / "train-00000-of-00001.parquet",
        [
            {
                "image": cell(1),
                "qa": [
                    {"question": "Is Teal the minimum?", "answer": "Yes."},
                    {"question": "Is Red the maximum?", "answer": "0"},
                    {"question": "Which one?", "answer": "Teal"},
                ],
            },
            {"image": None, "qa": [{"question": "Is Red less?", "answer": "No"}]},
        ],
        {"image": IMAGE, "qa": pa.list_(pair)},
    )
    rows, bad = read_all("figureqa", path.parent.parent)
    assert questions(rows) == [("Is Teal the minimum?", "Yes"), ("Is Red the maximum?", "No")]
    assert rows[0]["images"] == [cell(1)]
    assert bad == ["answer is neither yes nor no", "no image"]


def test_chartqa_native_and_parquet(tmp_path: Path) -> None:
    native = tmp_path / "native"
    for part, answer in (("human", "14"), ("augmented", "Blue")):
        record = {"imgname": "a.png", "query": f"What, {part}?", "label": answer}
        json_file(native / "train" / f"train_{part}.json", [record])
    image_file(native / "train" / "png" / "a.png")
    rows, _ = read_all("chartqa", native)
    assert [(r["kind"], r["answer"]) for r in rows] == [("augmented", "Blue"), ("human", "14")]
    assert rows[0]["images"] == [str(native / "train" / "png" / "a.png")]

    labels = [["14"], ["1", "2"], [], ["0.57"]]
    parquet = parquet_file(
        tmp_path / "hub" / "data" / "train-00000-of-00001-ab12.parquet",
        [
            {"image": cell(i), "query": f"q{i}?", "label": label, "human_or_machine": i % 2}
            for i, label in enumerate(labels)
        ],
        {"image": IMAGE, "query": TEXT, "label": TEXTS, "human_or_machine": pa.int64()},
    )
    rows, bad = read_all("chartqa", parquet.parent)
    assert questions(rows) == [("q0?", "14"), ("q3?", "0.57")]
    assert [row["kind"] for row in rows] == ["human", "augmented"]
    assert bad == ["label is not one answer"] * 2


def test_dvqa_native(tmp_path: Path) -> None:
    record = {
        "question": "What is the label of the second bar?",
        "question_id": 120000013,
        "template_id": "data",
        "answer": "bond",
        "image": "bar_train_00200000.png",
        "answer_bbox": [295.4, 379.8, 54.5, 35.0],
    }
    for split in ("train", "val_easy"):
        json_file(tmp_path / f"{split}_qa.json", [record | {"answer": split}])
    image_file(tmp_path / "images" / record["image"])
    rows, _ = read_all("dvqa", tmp_path)
    assert [(r["answer"], r["kind"]) for r in rows] == [("train", "data")]
    assert Path(rows[0]["images"][0]).is_file()
    assert read_all("dvqa", tmp_path, split="val_easy")[0][0]["answer"] == "val_easy"
