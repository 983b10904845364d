"""Chat turns taken apart: instructions, options in every notation, answers within sentences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from helpers.source_files import (
    IMAGE,
    IMAGES,
    TEXT,
    cell,
    image_file,
    json_file,
    parquet_file,
    questions,
    read_all,
)

from ovlt.data.readers import BadRow
from ovlt.data.readers.conversations import bare_question, parse_turn

LETTER_HINT = (
    "Hint: Please answer the question and provide the correct option letter, "
    "e.g., A, B, C, D, at the end."
)
INTEGER_HINT = (
    "Hint: Please answer the question requiring an integer answer and provide the final value, "
    "e.g., 1, 2, 3, at the end."
)
DIRECT = "Answer with the option's letter from the given choices directly."
GEO170K = (
    "First perform reasoning, then finally select the question from the choices in the following "
    "format: Answer: xxx."
)
AOKVQA = (
    "Select the accurate answer and provide explanation: 'Answer: answer\nRationale: rationale.'"
)
TURNS: dict[str, tuple[str, str, tuple[str, str, list[str]]]] = {
    "MathV360K": (
        f"<image>\n{LETTER_HINT}\nQuestion: Is Teal the maximum?\nChoices:\n(A) yes\n(B) no",
        "The answer is B",
        ("Is Teal the maximum?", "B", ["yes", "no"]),
    ),
    "MathV360K on one line": (
        f"{LETTER_HINT} Question: The area is Choices: (A) 1/3 (B) 2/5 (C) 7/15",
        "The answer is C",
        ("The area is", "C", ["1/3", "2/5", "7/15"]),
    ),
    "MathV360K, a number with a unit": (
        f"<image>\n{INTEGER_HINT}\nQuestion: How much? (Unit: $)",
        "The answer is 4,656.",
        ("How much? (Unit: $)", "4,656", []),
    ),
    "cauldron, letters": (
        "Question: What eats?\nChoices:\nA. a fox\nB. a hen\nAnswer with the letter.",
        "Answer: B",
        ("What eats?", "B", ["a fox", "a hen"]),
    ),
    "cauldron, ScienceQA": (
        "Lecture: A. is.\nQuestion: Which?\nHint: H.\nChoices:\nA. x\nB. y\nAnswer briefly.",
        "Answer: A",
        ("Lecture: A. is.\nWhich?\nHint: H.", "A", ["x", "y"]),
    ),
    "cauldron, FigureQA": ("Is Teal low?\nAnswer yes or no.", "Yes.", ("Is Teal low?", "Yes", [])),
    "cauldron, short": ("How many?\nKeep it brief.", "3.", ("How many?", "3", [])),
    "cauldron, A-OKVQA": (
        f"What is it?\n{AOKVQA}\nOptions: Toothpick, food, cigarette.",
        "Answer: cigarette.\nRationale: He is smoking.",
        ("What is it?", "C", ["Toothpick", "food", "cigarette"]),
    ),
    "LLaVA": (
        f"<image>\nWhat eats?\nA. fox\nB. hen\n{DIRECT}",
        "B",
        ("What eats?", "B", ["fox", "hen"]),
    ),
    "Geo170K": (
        f"<image>\n{GEO170K}\nQuestion:Angle 1 is ()\nChoices:\nA:50°\nB:40°\nC:30°",
        "As AB is parallel to CD, it is 40°. Therefore, the answer is option B.\nAnswer:B",
        ("Angle 1 is ()", "B", ["50°", "40°", "30°"]),
    ),
    "a clock time keeps its stop": ("When?", "The answer is 2:10 P.M.", ("When?", "2:10 P.M.", [])),
    "tags": ("How many?", "<think>x</think> <answer> 3 </answer>", ("How many?", "3", [])),
    "option letters within options": (
        "Q?\nChoices:\n(A) Vitamin B. is\n(B) good",
        "(B) good",
        ("Q?", "B", ["Vitamin B. is", "good"]),
    ),
    "the option's text": (
        "Q?\nChoices:\n(A) Red fox\n(B) hen",
        "red  fox",
        ("Q?", "A", ["Red fox", "hen"]),
    ),
    "options that are letters in another order": (
        "Q?\nChoices:\n(A) B\n(B) A",
        "The answer is A",
        ("Q?", "B", ["B", "A"]),
    ),
}


@pytest.mark.parametrize("name", TURNS)
def test_a_turn_is_taken_apart(name: str) -> None:
    human, reply, expected = TURNS[name]
    assert parse_turn(human, reply) == expected


@pytest.mark.parametrize(
    ("human", "reply", "reason"),
    [
        ("Q?\nChoices:\n(A) 3\n(B) 5", "C", "reply names none of the choices"),
        ("Q?\nChoices:\n(A) 3\n(B) 5", "A. 5", "reply names none of the choices"),
        ("Q?\nChoices:\n(A) 3\n(B) 3", "A", "the right choice is listed twice"),
        ("Q?\nChoices:\nred\nblue", "red", "choices in an unknown notation"),
        ("What is shown?", "A long text " * 5, "reply is prose, not an answer"),
        ("What is shown?", " . ", "no answer"),
    ],
)
def test_a_turn_without_a_verifiable_answer(human: str, reply: str, reason: str) -> None:
    with pytest.raises(BadRow, match=reason):
        parse_turn(human, reply)


def test_the_bare_question() -> None:
    for name in ("MathV360K", "LLaVA", "cauldron, letters", "MathV360K on one line"):
        human, _, (question, _, _) = TURNS[name]
        assert bare_question(human) == question
    assert bare_question("Q?\nChoices:\nred") == "Q?\nChoices:\nred"


def turn(human: Any, reply: Any) -> list[dict[str, Any]]:
    return [{"from": "human", "value": human}, {"from": "gpt", "value": reply}]


TURN = pa.struct([("from", TEXT), ("value", TEXT)])
LLAVA = {"id": TEXT, "image": IMAGE, "conversations": pa.list_(TURN), "data_source": TEXT}


def test_llava_onevision_subsets(tmp_path: Path) -> None:
    """The whole repository as it is downloaded: a folder for each subset."""
    conversations = [
        turn("<image>\nHow many?", "The answer is 3"),
        turn("<image>\nHow many?", "3.") + turn("And red?", "1"),
        turn("Tell me.", "word " * 30) + turn("And blue?", "2"),
        turn("Hello", "hi"),
        [{"from": "gpt", "value": "hi"}, {"from": "human", "value": "hi"}],
        [],
    ]
    rows = [
        {"id": f"r{i}", "image": cell(i), "conversations": c, "data_source": "GEOS(MathV360K)"}
        for i, c in enumerate(conversations)
    ]
    rows[3]["image"] = None
    shard = "train-00000-of-00001.parquet"
    parquet_file(tmp_path / "GEOS(MathV360K)" / shard, rows, LLAVA)
    parquet_file(tmp_path / "ai2d(gpt4v)" / shard, rows[:1], LLAVA)
    parquet_file(tmp_path / "ai2d(internvl)" / shard, rows[:1], LLAVA)
    good, bad = read_all("geos", tmp_path)
    assert questions(good) == [("How many?", "3")] * 2 + [("And red?", "1"), ("And blue?", "2")]
    assert [row["id"] for row in good] == ["r0/0", "r1/0", "r1/1", "r2/1"]
    assert all(row["problem"].startswith("<image>") for row in good)
    assert good[2]["images"] == [cell(1)]
    assert bad == [
        "reply is prose, not an answer",
        "no image",
        "turns do not alternate between human and gpt",
        "no conversation of human and gpt",
    ]
    assert read_all("geos", tmp_path / "GEOS(MathV360K)")[0] == good
    with pytest.raises(ValueError, match=r"several subsets of AI2D: ai2d\(gpt4v\), ai2d\(internvl"):
        read_all("ai2d", tmp_path)
    assert len(read_all("ai2d", tmp_path, subset="ai2d(internvl)")[0]) == 1
    with pytest.raises(ValueError, match="has subsets"):
        read_all("mapqa", tmp_path)


def test_mathv360k_holds_all_sources_in_one_file(tmp_path: Path) -> None:
    records: list[dict[str, Any]] = [
        {
            "id": "a",
            "image": "FigureQA/images/1.png",
            "conversations": turn("Q?", "The answer is 1"),
        },
        {"id": "b", "image": "GEOS/images/1.png", "conversations": turn("R?", "The answer is 2")},
        {"id": "c", "conversations": turn("S?", "The answer is 3")},
    ]
    file = json_file(tmp_path / "train_samples_all_tuning.json", records)
    image = image_file(tmp_path / "data_images" / "GEOS" / "images" / "1.png")
    for path in (tmp_path, file):
        [row], bad = read_all("geos", path)
        assert (row["id"], row["answer"], row["images"]) == ("b/0", "2", [str(image)])
        assert bad == ["record has no 'image'"]


def test_the_cauldron_asks_several_questions_per_image(tmp_path: Path) -> None:
    texts = pa.list_(pa.struct([("user", TEXT), ("assistant", TEXT), ("source", TEXT)]))
    path = parquet_file(
        tmp_path / "figureqa" / "train-00000-of-00013.parquet",
        [
            {
                "images": [cell(1)],
                "texts": [
                    {"user": f"q{i}?\nAnswer yes or no.", "assistant": a, "source": "FigureQA"}
                    for i, a in enumerate(["Yes.", "No."])
                ],
            },
            {"images": [], "texts": [{"user": "q?", "assistant": "Yes.", "source": ""}]},
        ],
        {"images": IMAGES, "texts": texts},
    )
    rows, bad = read_all("figureqa", path.parent.parent)
    assert questions(rows) == [("q0?", "Yes"), ("q1?", "No")]
    assert bad == ["no image"]
