"""AI2D, IconQA, ScienceQA."""

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

from ovlt.data.readers import BadRow
from ovlt.data.readers.rows import letter_at


def test_ai2ds_index_is_a_text(tmp_path: Path) -> None:
    answers = ["2", "0", "4", "leaf", None]
    path = parquet_file(
        tmp_path / "data" / "test-00000-of-00001.parquet",
        [
            {
                "question": "What is B?",
                "options": ["root", "stem", "leaf", "3"],
                "answer": a,
                "image": cell(i),
            }
            for i, a in enumerate(answers)
        ],
        {"question": TEXT, "options": TEXTS, "answer": TEXT, "image": IMAGE},
    )
    rows, bad = read_all("ai2d", path.parent)
    assert [row["answer"] for row in rows] == ["C", "A"]
    assert questions(rows)[0][0] == "What is B?\nChoices:\n(A) root\n(B) stem\n(C) leaf\n(D) 3"
    assert bad == [
        "answer is the index of no choice",
        "answer is not the index of a choice",
        "no answer",
    ]


@pytest.mark.parametrize("index", [-1, 4, "-1", True, 1.0, "two", [1]])
def test_an_index_of_no_choice_is_no_answer(index: Any) -> None:
    assert letter_at(3, list("abcd")) == letter_at(" 3", list("abcd")) == "D"
    with pytest.raises(
        BadRow, match=r"answer is (the index of no choice|not the index of a choice)"
    ):
        letter_at(index, list("abcd"))


def test_ai2d_native(tmp_path: Path) -> None:
    entry = {"questionId": "0.png-0", "answerTexts": ["a", "b"], "correctAnswer": 1}
    file = {
        "imageName": "0.png",
        "questions": {"Who eats?": entry, "Which letter?": entry | {"abcLabel": True}},
    }
    json_file(tmp_path / "questions" / "0.png.json", file)
    json_file(tmp_path / "questions" / "1.png.json", {"imageName": "1.png"})
    image_file(tmp_path / "images" / "0.png")
    [row], bad = read_all("ai2d", tmp_path)
    assert (row["answer"], row["id"]) == ("B", "0.png-0")
    assert [reason.split(",")[0] for reason in bad] == [
        "asks for the letters of the masked image",
        "question file has no imageName and questions",
    ]


def icon(kind: str, choices: Any, answer: Any) -> dict[str, Any]:
    return {"question": "Which?", "ques_type": kind, "choices": choices, "answer": answer}


def test_iconqa_native(tmp_path: Path) -> None:
    files = [f"choice_{i}.png" for i in range(3)]
    problems = {
        "3": icon("choose_img", files, 2),
        "4": icon("choose_txt", ["1,000", "2"], 0) | {"question": "How <image> many?"},
        "5": icon("fill_in_blank", None, "8"),
        "6": icon("choose_img", files, 0),
        "7": icon("choose_txt", ["a", "b"], "b"),
    }
    json_file(tmp_path / "problems.json", problems)
    splits = {"choose_img_train": [3], "choose_txt_train": ["4", "7"], "fill_in_blank_train": ["5"]}
    splits |= {"choose_img_val": ["6"], "choose_img_minitrain": ["3"]}
    json_file(tmp_path / "pid_splits.json", splits)
    image_file(tmp_path / "iconqa" / "train" / "choose_img" / "3" / "image.png")
    rows, bad = read_all("iconqa", tmp_path)
    assert [(row["id"], row["answer"]) for row in rows] == [("3", "C"), ("4", "A"), ("5", "8")]
    assert rows[0]["problem"] == ("<image>Which?\nChoices:\n(A) <image>\n(B) <image>\n(C) <image>")
    folder = tmp_path / "iconqa" / "train" / "choose_img" / "3"
    assert rows[0]["images"] == [str(folder / name) for name in ["image.png", *files]]
    assert rows[1]["problem"].count("<image>") == len(rows[1]["images"]) == 1
    assert rows[1]["choices"] == ["1,000", "2"]
    assert bad == ["answer is not the index of a choice"]
    mini, _ = read_all("iconqa", tmp_path, split="minitrain")
    assert mini == rows[:1]


def test_iconqa_of_the_hub(tmp_path: Path) -> None:
    """Options joined by commas, and columns for two images only."""

    def row(kind: str, choices: str | None, answer: str | None, images: int = 0) -> dict[str, Any]:
        return icon(kind, choices, answer) | {
            "question_id": f"{kind}-{choices}",
            "query_image": cell(0),
            "choice_image_0": cell(1) if images > 0 else None,
            "choice_image_1": cell(2) if images > 1 else None,
        }

    two, four = "choice_0.png,choice_1.png", "choice_0.png,choice_1.png,choice_2.png,choice_3.png"
    rows = [
        row("choose_img", two, "choice_1.png", 2),
        row("choose_img", four, "choice_0.png", 2),
        row("choose_txt", "certain,impossible", "impossible"),
        row("choose_txt", "1,000,2,000", "2,000"),
        row("fill_in_blank", None, "8"),
        row("choose_txt", "a,b", None),
    ]
    columns = dict.fromkeys(("question_id", "question", "choices", "answer", "ques_type"), TEXT)
    images = dict.fromkeys(("query_image", "choice_image_0", "choice_image_1"), IMAGE)
    path = parquet_file(
        tmp_path / "data" / "val-00000-of-00002.parquet", rows[:3], columns | images
    )
    parquet_file(path.with_name("val-00001-of-00002.parquet"), rows[3:], columns | images)
    good, bad = read_all("iconqa", path.parent)
    assert [(row["kind"], row["answer"]) for row in good] == [
        ("choose_img", "B"),
        ("choose_txt", "B"),
        ("fill_in_blank", "8"),
    ]
    assert good[0]["images"] == [cell(0), cell(1), cell(2)]
    assert bad == [
        "more image choices than the two columns hold",
        "answer is none of the comma-separated choices",
        "no answer (a test split)",
    ]


def test_scienceqa_has_an_image_for_half_of_its_questions(tmp_path: Path) -> None:
    record = {
        "question": "Which is colder?",
        "choices": ["sample A", "sample B"],
        "answer": 1,
        "hint": "Look at the particles.",
        "subject": "natural science",
        "lecture": "Long.",
        "solution": "Because.",
    }
    hub = parquet_file(
        tmp_path / "data" / "train-00000-of-00001-1028f23e353fbe3e.parquet",
        [record | {"image": None}, record | {"image": cell(1)}],
        {
            "image": IMAGE,
            "question": TEXT,
            "choices": TEXTS,
            "answer": pa.int8(),
            "hint": TEXT,
            "subject": TEXT,
            "lecture": TEXT,
            "solution": TEXT,
        },
    )
    expected = "Look at the particles.\nWhich is colder?\nChoices:\n(A) sample A\n(B) sample B"
    rows, bad = read_all("scienceqa", hub.parent)
    assert (questions(rows), bad) == ([(expected, "B")], ["no image"])
    assert rows[0]["kind"] == "natural science"

    native = tmp_path / "native"
    problems = {"1": record | {"image": None}, "2": record | {"image": "image.png"}}
    json_file(native / "problems.json", problems)
    json_file(native / "pid_splits.json", {"train": ["1", "2"], "minival": []})
    image = image_file(native / "images" / "train" / "2" / "image.png")
    rows, bad = read_all("scienceqa", native)
    assert (questions(rows), bad) == ([(expected, "B")], ["no image"])
    assert rows[0]["images"] == [str(image)]
