"""The same content, however a row spells it; what looks meant and is not read is refused."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from helpers.row_forms import Spelling, png, write_columns, write_text
from helpers.tiny import tiny_folder

from ovlt.data.image_refs import ImageRef
from ovlt.data.images import load_image
from ovlt.data.sources import (
    Limits,
    Rows,
    bad_images,
    load_conversations,
    load_questions,
    to_prompt,
    to_sample,
)
from ovlt.model.chat import Chat

LIMITS = Limits(factor=28, min_pixels=3136, max_pixels=100352, max_tokens=1000)


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Chat:
    return tiny_folder(tmp_path_factory.mktemp("forms") / "model").chat


def lines(folder: Path, *rows: Any) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def pixels(data: bytes) -> np.ndarray:
    return load_image(ImageRef(data=data), LIMITS)


# --- generated: any spelling gives the same tokens, labels, images, answer ---------------------


@pytest.mark.parametrize("seed", range(60))
def test_a_question_is_the_same_in_every_form(tmp_path: Path, chat: Chat, seed: int) -> None:
    random = Random(f"question {seed}")
    binary = random.random() < 0.4
    spell = Spelling(random, tmp_path)
    rows, expected = [], []
    several = random.choice(["images", "image", "Images", "image_1", "decoded_image"])
    text_key = random.choice(["problem", "question", "Problem", "query", "prompt", "messages"])
    turns_form = text_key == "messages" or (text_key == "prompt" and random.random() < 0.7)
    has_system = random.random() < 0.4
    for number in range(4):
        count = random.randint(0, 2)
        images = [spell.image(binary=binary) for _ in range(count)]
        tags = "<image>" * count
        text = random.choice([f"{tags}How many in {number}?", f"See {tags} how many {number}?"])
        if random.random() < 0.5 and not turns_form:
            text = text.replace("<image>", "")
        system = f"Be brief {number}." if has_system else ""
        row: dict[str, Any] = {text_key: text, "answer": str(number), "level": number}
        forms = [form for _, form in images]
        if turns_form:
            turns = [("system", system)] * has_system + [("user", text)]
            row[text_key] = [{"role": role, "content": content} for role, content in turns]
        elif has_system:
            row["system"] = system
        if several == "image_1":
            row |= {f"image_{i}": forms[i] if i < count else None for i in range(2)}
        elif several == "images" or not binary:
            row[several] = forms if count != 1 or random.random() < 0.5 or binary else forms[0]
        else:
            row[several] = forms
        rows.append(row)
        messages = [{"role": "system", "content": system}] * has_system
        messages.append({"role": "user", "content": text})
        expected.append((messages, [data for data, _ in images], str(number), number))
    path = (write_columns if binary else write_text)(random, tmp_path, rows)
    loaded = load_questions(path, chat, LIMITS).require(0)
    assert bad_images(loaded, LIMITS, 2) == {}
    for row, (messages, images, answer, level) in zip(loaded, expected, strict=True):
        prompt = to_prompt(row, LIMITS)
        arrays = [pixels(data) for data in images]
        assert all(map(np.array_equal, prompt.images, arrays))
        assert len(prompt.images) == len(arrays)
        assert prompt.token_ids.tolist() == chat.dialogue_ids(messages, row.grids).tolist()
        assert (prompt.answer, prompt.question) == (answer, messages[-1]["content"])
        assert dict(prompt.extra) == {"level": level}


@pytest.mark.parametrize("seed", range(60))
def test_a_conversation_is_the_same_in_every_form(tmp_path: Path, chat: Chat, seed: int) -> None:
    random = Random(f"conversation {seed}")
    binary = random.random() < 0.3
    spell = Spelling(random, tmp_path)
    column = random.choice(["messages", "conversations", "Conversations", "dialogue", "chat"])
    rows, expected = [], []
    for number in range(3):
        turns, images = [], []
        system = random.random() < 0.5
        if system:
            turns.append(("system", f"You see bars {number}."))
        for exchange in range(random.randint(1, 3)):
            count = random.randint(0, 2)
            images += [spell.image(binary=binary) for _ in range(count)]
            turns.append(("user", "<image>" * count + f"Ask {exchange}\n <image> "[: 6 + exchange]))
            turns.append(("assistant", f"<think>{exchange}</think> {number}"))
        forms = [form for _, form in images]
        row: dict[str, Any] = {}
        by_column = system and random.random() < 0.5
        shown = turns[1:] if by_column else turns
        row[column], inline = spell.turns(shown, [] if binary else forms)
        if binary:  # a struct of parquet has one type in all rows
            row[column] = [{"role": role, "content": text} for role, text in shown]
        row |= {"system": turns[0][1] if by_column else None, "images": [] if inline else forms}
        rows.append(row)
        expected.append((turns, [data for data, _ in images]))
    path = (write_columns if binary else write_text)(random, tmp_path, rows)
    loaded = load_conversations(path, chat, LIMITS).require(0)
    for row, (turns, images) in zip(loaded, expected, strict=True):
        sample = to_sample(row, LIMITS)
        messages = [{"role": role, "content": text} for role, text in turns]
        ids, mask = chat.conversation_ids(messages, row.grids)
        assert sample.token_ids.tolist() == ids.tolist()
        assert sample.loss_mask.tolist() == mask.tolist()
        arrays = [pixels(data) for data in images]
        assert len(sample.prompt.images) == len(arrays)
        assert all(map(np.array_equal, sample.prompt.images, arrays))


# --- single forms ------------------------------------------------------------------------------


def read_one(load: Any, path: Path, chat: Chat) -> Any:
    [row] = load(path, chat, LIMITS).require(0)
    return row


def test_an_image_column_by_its_other_name_is_seen(tmp_path: Path, chat: Chat) -> None:
    """D1: R1-V, LLaVA and TRL call it `image`; the model must not be trained blind."""
    (tmp_path / "1.png").write_bytes(png(1))
    for name in ("image", "images", "img", "image_path", "image_paths", "file_name", "picture"):
        row = {"problem": "How many?", "answer": "3", name: "1.png"}
        assert len(read_one(load_questions, lines(tmp_path, row), chat).grids) == 1
        talk = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "3"}]
        row = {"messages": talk, name: ["1.png"]}
        assert len(read_one(load_conversations, lines(tmp_path, row), chat).grids) == 1


SINGLE_EXCHANGES = [
    {"prompt": "How many?", "completion": "3"},
    {"prompt": "How many?", "response": "3"},
    {"instruction": "How many?", "input": "", "output": "3"},
    {"instruction": "How", "input": "many?", "output": "3", "history": []},
    {"query": "How many?", "response": "3"},
    {
        "prompt": [{"role": "user", "content": "How many?"}],
        "completion": [{"role": "assistant", "content": "3"}],
    },
    {"messages": [["How many?", "3"]]},
    {"messages": [{"user": "How many?", "assistant": "3"}]},
    {"conversations": [{"from": "human", "value": "How many?"}, {"from": "gpt", "value": "3"}]},
    {"messages": {"role": ["user", "assistant"], "content": ["How many?", "3"]}},
]


@pytest.mark.parametrize("row", SINGLE_EXCHANGES)
def test_a_single_exchange_in_two_columns(tmp_path: Path, chat: Chat, row: dict[str, Any]) -> None:
    loaded = read_one(load_conversations, lines(tmp_path, row), chat)
    text = "How\nmany?" if row.get("input") else "How many?"
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": "3"}]
    assert loaded.token_ids.tolist() == chat.conversation_ids(messages, [])[0].tolist()


@pytest.mark.parametrize(
    "marks",
    [
        [{"weight": 1}, {"weight": 0}, {}, {"weight": 1}],
        [{"loss": False}, {"loss": False}, {"loss": None}, {"loss": True}],
        [{}, {"train": False}, {}, {"train": True}],
        [{}, {"weight": 0.0}, {}, {}],
    ],
)
def test_turns_that_are_not_to_be_learned_carry_no_loss(
    tmp_path: Path, chat: Chat, marks: list[dict[str, Any]]
) -> None:
    texts = [("user", "a"), ("assistant", "no"), ("user", "b"), ("assistant", "yes")]
    turns = [
        {"role": role, "content": text, **mark}
        for (role, text), mark in zip(texts, marks, strict=True)
    ]
    row = read_one(load_conversations, lines(tmp_path, {"messages": turns}), chat)
    assert chat.decode(row.token_ids[row.loss_mask]) == "yes"


def test_verl_and_r1v_rows(tmp_path: Path, chat: Chat) -> None:
    verl = {
        "data_source": "geo",
        "prompt": [{"role": "user", "content": "How many?"}],
        "reward_model": {"style": "rule", "ground_truth": "3"},
        "extra_info": {"index": 7},
    }
    r1v = {"problem": "How many?", "solution": "<answer> 3 </answer>"}
    one, two = load_questions(lines(tmp_path, verl, r1v), chat, LIMITS).require(0)
    assert (one.answer, one.source, two.answer) == ("3", "geo", "3")
    assert dict(one.content().extra) == {"extra_info": {"index": 7}}


def test_every_further_column_reaches_the_reward(tmp_path: Path, chat: Chat) -> None:
    more = {"level": 3, "caption": "two bars", "boxes": [[1, 2.5]], "meta": {"a": None}, "Ünï": "x"}
    (tmp_path / "1.png").write_bytes(png(1))
    row = {"problem": "?", "answer": "3", "image": "1.png", "id": "a", "kind": "k", **more}
    for path in (
        lines(tmp_path, row),
        write_text(Random(1), tmp_path, [row]),
        write_columns(Random(2), tmp_path, [row]),
    ):
        assert dict(to_prompt(read_one(load_questions, path, chat), LIMITS).extra) == more


# --- what looks meant and is not read ----------------------------------------------------------

MEANT_IN_BOTH = {
    "videos": ["a.mp4"],
    "video": "a.mp4",
    "audio": {"bytes": "x", "path": "a.wav"},
    "audios": ["a.wav"],
    "video_path": "a.mp4",
    "loss": 0.5,
    "weight": 0,
    "tools": [{"name": "f"}],
    "figure": "1.png",
    "imgaes": ["x"],
    "thumb": "data:image/png;base64,AAAA",
    "sytem": "Be brief.",
}
MEANT_IN_QUESTIONS = {
    "messages": [{"role": "user", "content": "?"}],
    "conversations": [{"from": "human", "value": "?"}],
    "history": [["a", "b"]],
    "options": ["3", "4"],  # beside the answer "A"
}
MEANT_IN_CONVERSATIONS = {
    "conversations": [{"from": "human", "value": "other"}, {"from": "gpt", "value": "3"}],
    "prompt": "Another question?",
    "response": "Another reply",
    "rejected": "no",
    "loss_mask": [0, 1],
    "input_ids": [1, 2],
}


@pytest.mark.parametrize("name", [*MEANT_IN_BOTH, *MEANT_IN_QUESTIONS])
def test_a_column_of_questions_that_looks_meant_is_refused_by_name(
    tmp_path: Path, chat: Chat, name: str
) -> None:
    value = (MEANT_IN_BOTH | MEANT_IN_QUESTIONS)[name]
    row = {"problem": "How many?", "answer": "A", name: value}
    loaded = load_questions(lines(tmp_path, row), chat, LIMITS)
    with pytest.raises(ValueError, match=f"'{name}'"):
        loaded.require(0.5)
    assert len(load_questions(lines(tmp_path, row), chat, LIMITS, ignore=[name])) == 1
    empty = {**row, name: [] if isinstance(value, list) else None}
    assert len(load_questions(lines(tmp_path, empty), chat, LIMITS)) == 1


@pytest.mark.parametrize("name", [*MEANT_IN_BOTH, *MEANT_IN_CONVERSATIONS])
def test_a_column_of_conversations_that_looks_meant_is_refused_by_name(
    tmp_path: Path, chat: Chat, name: str
) -> None:
    value = (MEANT_IN_BOTH | MEANT_IN_CONVERSATIONS)[name]
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "3"}]
    row = {"messages": turns, name: value}
    loaded = load_conversations(lines(tmp_path, row), chat, LIMITS)
    with pytest.raises(ValueError, match=f"'{name}'"):
        loaded.require(0.5)
    assert len(load_conversations(lines(tmp_path, row), chat, LIMITS, ignore=[name])) == 1


@pytest.mark.parametrize(
    ("turn", "reason"),
    [
        ({"role": "tool", "content": "3"}, "role 'tool'"),
        ({"from": "function_call", "value": "{}"}, "role 'function_call'"),
        ({"role": "assistant", "content": "3", "tool_calls": [{"id": 1}]}, "'tool_calls'"),
        ({"role": "assistant", "content": "3", "reasoning_content": "so"}, "'reasoning_content'"),
        ({"role": "assistant", "content": "3", "weight": 0.5}, "'weight'"),
        ({"role": "user", "content": "3", "train": True}, "'train'"),
        ({"role": "user", "content": [{"type": "video", "video": "a.mp4"}]}, "type 'video'"),
        ({"role": "user", "content": [{"type": "input_audio", "data": "x"}]}, "type 'input_audio'"),
        ({"role": "user", "content": [{"type": "image", "max_pixels": 9}]}, "'max_pixels'"),
        ({"role": "user", "content": [7]}, "neither text nor image"),
        ({"role": "user", "content": None}, "known role or a text"),
        ({"role": 3, "content": "x"}, "known role or a text"),
        ("hello", "known role or a text"),
    ],
)
def test_a_turn_that_is_not_read_says_why(
    tmp_path: Path, chat: Chat, turn: Any, reason: str
) -> None:
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "3"}, turn]
    with pytest.raises(ValueError, match=reason):
        load_conversations(lines(tmp_path, {"messages": turns}), chat, LIMITS).require(0.9)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (
            {"problem": "?", "image": "1.png", "images": ["2.png"]},
            "'image' and 'images'|'images' and 'image'",
        ),
        ({"image": "1.png", "Image": "1.png"}, "one but for case"),
        ({"problem": "?", "image_1": "1.png", "images": ["1.png"]}, "'images' and 'image_1'"),
        ({"system": "a", "prompt": [{"role": "system", "content": "b"}]}, "last turn of 'prompt'"),
        ({"question": "a?", "query": "b?"}, "'question' and 'query'"),
        ({}, "no 'problem' text.*its columns are answer"),
        (
            {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "3"}]},
            "last turn of 'messages' is not the user's",
        ),
        ({"problem": "?", "image": "http://a.b/c.png"}, r"not fetched.*http://a.b/c.png"),
        ({"problem": "?", "image": "s3://b/c.png"}, r"\(s3:\).*not fetched"),
        ({"problem": "?", "image": "data:image/png;base64,%%%"}, "base64 of an image is broken"),
        ({"problem": "?", "image": "data:image/png,abc"}, "is not base64"),
        ({"problem": "?", "image": "none.png"}, r"image file is missing \(first: row 0.*none.png"),
        ({"problem": "?", "image": "."}, "is a folder"),
    ],
)
def test_two_readings_or_none_are_refused_by_name(
    tmp_path: Path, chat: Chat, row: dict[str, Any], reason: str
) -> None:
    for name in ("1.png", "2.png"):
        (tmp_path / name).write_bytes(png(int(name[0])))
    with pytest.raises(ValueError, match=reason):
        load_questions(lines(tmp_path, {"answer": "3", **row}), chat, LIMITS).require(0.9)


def test_the_first_bad_row_is_named_with_its_id_and_the_path_that_was_tried(
    tmp_path: Path, chat: Chat
) -> None:
    """D5"""
    (tmp_path / "1.png").write_bytes(png(1))
    rows = [{"problem": "?", "answer": "3", "image": "1.png"}] * 3
    rows += [{"problem": "?", "answer": "3", "image": f"no{i}.png", "id": f"x{i}"} for i in (7, 8)]
    loaded = load_questions(lines(tmp_path, *rows), chat, LIMITS)
    place = f"(first: row 3, id 'x7', {tmp_path / 'no7.png'})"
    assert f"2 x image file is missing {place}" in loaded.report()


def test_ids_that_repeat_are_told_apart_by_their_place(tmp_path: Path, chat: Chat) -> None:
    rows = [{"problem": f"{i}?", "answer": "3", "id": "same"} for i in range(3)]
    rows.append({"problem": "4?", "answer": "3", "id": "same", "source": "other"})
    loaded = load_questions(lines(tmp_path, *rows), chat, LIMITS)
    assert [row.id for row in loaded] == ["same", "same#1", "same#2", "same"]
    assert "2 ids repeat" in loaded.report()


def test_the_name_of_an_image_within_a_row_is_not_taken_for_another_file(
    tmp_path: Path, chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reward opens the paths that it is given."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "1.png").write_bytes(png(1))
    row = {"problem": "?", "answer": "3", "images": [{"bytes": png(2), "path": "1.png"}]}
    path = write_columns(Random(1), tmp_path, [row])
    assert to_prompt(read_one(load_questions, path, chat), LIMITS).image_paths == ("",)
    assert to_prompt(
        read_one(load_questions, lines(tmp_path, {**row, "images": ["1.png"]}), chat), LIMITS
    ).image_paths == (str(tmp_path / "1.png"),)


def test_rows_of_one_struct_in_parquet_have_columns_of_null(tmp_path: Path, chat: Chat) -> None:
    """Parquet gives every row every column, and every part every key."""
    turns = [
        {
            "role": "user",
            "content": [
                {"type": "image", "text": None, "image_url": {"url": None}},
                {"type": "text", "text": "How many?", "image_url": None},
            ],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "3", "image_url": None}]},
    ]
    row = {"messages": turns, "images": [{"bytes": png(1), "path": None}], "videos": None}
    row["audio"] = {"bytes": None, "path": None}
    path = write_columns(Random(1), tmp_path, [row])
    sample = to_sample(read_one(load_conversations, path, chat), LIMITS)
    messages = [
        {"role": "user", "content": "<image>How many?"},
        {"role": "assistant", "content": "3"},
    ]
    grids = [(1, *(side // 14 for side in sample.prompt.images[0].shape[:2]))]
    assert sample.token_ids.tolist() == chat.conversation_ids(messages, grids)[0].tolist()


def test_a_file_without_good_rows_is_a_sentence(tmp_path: Path, chat: Chat) -> None:
    rows = Rows("x", [])
    with pytest.raises(ValueError, match="has no rows"):
        rows.require(1)
