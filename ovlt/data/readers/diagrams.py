"""School diagrams: AI2D, IconQA, ScienceQA."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ovlt.data.json_stream import json_members
from ovlt.data.readers.layouts import Asked, Folder, Rows, Source, Table, attempt, pick
from ovlt.data.readers.rows import (
    IMAGE_TAG,
    Record,
    Row,
    checked_choices,
    letter_at,
    letter_of,
    plain,
    question_row,
    with_choices,
)
from ovlt.data.tables import BadRow

# --- AI2D --------------------------------------------------------------------------------------


def _ai2d_parquet(record: Record, id: str, asked: Asked) -> Iterator[Row]:
    choices = checked_choices(record["options"])
    letter = letter_at(record["answer"], choices)  # "0" .. "3", as text
    yield question_row(id, record["question"], letter, [record["image"]], choices=choices)


def _ai2d_folder(asked: Asked) -> Rows:
    for file in sorted((asked.path / "questions").glob("*.json")):
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
            image = str(asked.path / "images" / record["imageName"])
            asked_of = dict(record["questions"])
        except (ValueError, KeyError, TypeError):
            yield BadRow("question file has no imageName and questions")
            continue
        for number, (text, entry) in enumerate(asked_of.items()):
            question = {"text": text, "image": image, "entry": entry}
            yield from attempt(_ai2d_question, question, f"{file.stem}/{number}", asked)


def _ai2d_question(record: Record, id: str, asked: Asked) -> Iterator[Row]:
    entry = record["entry"]
    if entry.get("abcLabel"):
        raise BadRow("asks for the letters of the masked image, which AI2D's release does not hold")
    choices = checked_choices(entry["answerTexts"])
    letter = letter_at(entry["correctAnswer"], choices)
    yield question_row(
        str(entry.get("questionId", id)), record["text"], letter, [record["image"]], choices=choices
    )


# --- IconQA ------------------------------------------------------------------------------------


def _iconqa_folder(asked: Asked) -> Rows:
    """problems.json (records by id), pid_splits.json ("choose_img_train": ids), folders of PNGs."""
    path = asked.path
    splits = json.loads((path / "pid_splits.json").read_text(encoding="utf-8"))
    found = {name.rpartition("_")[2] for name in splits}
    split = pick(found, asked.split, ("train",), "split", path)
    where = {
        str(pid): (kind, name.rpartition("_")[2])
        for name, pids in splits.items()
        for kind in [name.rpartition("_")[0]]
        if name.rpartition("_")[2] == split
        for pid in pids
    }
    base = path / "iconqa" if (path / "iconqa").is_dir() else path
    for pid, record in json_members(path / "problems.json"):
        if pid not in where:
            continue
        kind, part = where[pid]
        # the mini splits are parts of the others, and lie in their folders
        folder = base / part.removeprefix("mini") / kind / pid
        yield from attempt(_iconqa_problem, record | {"folder": folder}, pid, asked)


def _iconqa_problem(record: Record, id: str, asked: Asked) -> Iterator[Row]:
    folder: Path = record["folder"]
    kind, question, image = record["ques_type"], record["question"], str(folder / "image.png")
    if kind == "fill_in_blank":
        yield question_row(id, question, record["answer"], [image], kind=kind)
        return
    choices = checked_choices(record["choices"])
    letter = letter_at(record["answer"], choices)
    if kind == "choose_img":
        images = [image, *(str(folder / name) for name in choices)]
        yield _image_choices(id, question, letter, images)
    else:
        yield question_row(id, question, letter, [image], choices=choices, kind=kind)


def _image_choices(id: str, question: Any, letter: str, images: list[Any]) -> Row:
    """A row whose options are images: the question's first, then one per option."""
    row = question_row(id, question, letter, images, kind="choose_img")
    row["problem"] = IMAGE_TAG + with_choices(plain(question), [IMAGE_TAG] * (len(images) - 1))
    return row


def _iconqa_parquet(record: Record, id: str, asked: Asked) -> Iterator[Row]:
    """``choices`` is one text joined by commas; only two images of options have columns."""
    kind, question, answer = record["ques_type"], record["question"], record["answer"]
    id, image = str(record.get("question_id", id)), record["query_image"]
    if answer is None:
        raise BadRow("no answer (a test split)")
    if kind == "fill_in_blank":
        yield question_row(id, question, answer, [image], kind=kind)
        return
    choices = [part.strip() for part in str(record["choices"] or "").split(",")]
    if kind == "choose_img":
        images = [record[f"choice_image_{i}"] for i in range(2)]
        if len(choices) != len(images) or None in images:
            raise BadRow("more image choices than the two columns hold")
        yield _image_choices(id, question, letter_of(answer, choices), [image, *images])
        return
    try:
        letter = letter_of(answer, choices)
    except BadRow:  # a comma within an option has cut it in two
        raise BadRow("answer is none of the comma-separated choices") from None
    yield question_row(id, question, letter, [image], choices=choices, kind=kind)


# --- ScienceQA ---------------------------------------------------------------------------------


def _scienceqa(record: Record, id: str, asked: Asked) -> Iterator[Row]:
    """Half of the questions have no image and are left out; a hint is the text asked about."""
    choices = checked_choices(record["choices"])
    question, hint = record["question"], record.get("hint")
    if isinstance(hint, str) and hint.strip() and isinstance(question, str):
        question = f"{hint.strip()}\n{question}"
    letter = letter_at(record["answer"], choices)
    yield question_row(
        id, question, letter, [record["image"]], choices=choices, kind=record.get("subject")
    )


def _scienceqa_folder(asked: Asked) -> Rows:
    path = asked.path
    splits = json.loads((path / "pid_splits.json").read_text(encoding="utf-8"))
    split = pick(splits, asked.split, ("train",), "split", path)
    wanted = {str(pid) for pid in splits[split]}
    for pid, record in json_members(path / "problems.json"):
        if pid not in wanted:
            continue
        name = record.get("image")
        folder = path / "images" / split.removeprefix("mini")
        image = str(folder / pid / name) if name else None
        yield from attempt(_scienceqa, record | {"image": image}, pid, asked)


AI2D = Source(
    "ai2d",
    "AI2D",
    (
        Folder("AI2D", ("questions/*.json", "images"), _ai2d_folder),
        Table("lmms-lab/ai2d", ("question", "options", "answer", "image"), _ai2d_parquet),
    ),
    ("ai2d(cauldron,llava_format)", "ai2d(gpt4v)", "ai2d(internvl)", "ai2d"),
    ("ai2d",),
)
ICONQA = Source(
    "iconqa",
    "IconQA",
    (
        Folder("IconQA", ("problems.json", "pid_splits.json"), _iconqa_folder),
        Table(
            "lmms-lab/ICON-QA",
            (
                "question",
                "choices",
                "answer",
                "query_image",
                "choice_image_0",
                "choice_image_1",
                "ques_type",
            ),
            _iconqa_parquet,
            ("question_id",),
        ),
    ),
    ("IconQA(MathV360K)", "iconqa(cauldron,llava_format)", "iconqa"),
    ("iconqa",),
)
SCIENCEQA = Source(
    "scienceqa",
    "ScienceQA",
    (
        Folder("ScienceQA", ("problems.json", "pid_splits.json", "images"), _scienceqa_folder),
        Table(
            "derek-thomas/ScienceQA",
            ("image", "question", "choices", "answer", "hint"),
            _scienceqa,
            ("subject",),
        ),
    ),
    ("scienceqa(cauldron,llava_format)", "scienceqa(nona_context)", "scienceqa"),
    ("scienceqa",),
)
