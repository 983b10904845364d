"""School diagrams: AI2D, IconQA, ScienceQA."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ovlt.data.json_stream import json_members, json_object
from ovlt.data.readers.layouts import (
    FolderLayout,
    RowStream,
    Source,
    SourcePart,
    TableLayout,
    attempt,
    extended,
    pick,
)
from ovlt.data.readers.rows import (
    IMAGE_TAG,
    QuestionRow,
    Record,
    checked_choices,
    letter_at,
    letter_of,
    plain,
    question_row,
    with_choices,
)
from ovlt.data.tables import BadRow


def _ai2d_parquet(record: Record, id: str, part: SourcePart) -> Iterator[QuestionRow]:
    choices = checked_choices(record["options"])
    letter = letter_at(record["answer"], choices)  # "0" .. "3", as text
    yield question_row(id, record["question"], letter, [record["image"]], choices=choices)


def _ai2d_folder(part: SourcePart) -> RowStream:
    for file in sorted((part.path / "questions").glob("*.json")):
        try:
            record = json_object(file)
        except ValueError:
            record = {}
        name, questions = record.get("imageName"), record.get("questions")
        if not isinstance(name, str) or not isinstance(questions, dict):
            yield BadRow("question file has no imageName and questions")
            continue
        image = str(part.path / "images" / name)
        for number, (text, entry) in enumerate(questions.items()):
            question = {"text": text, "image": image, "entry": entry}
            yield from attempt(_ai2d_question, question, f"{file.stem}/{number}", part)


def _ai2d_question(record: Record, id: str, part: SourcePart) -> Iterator[QuestionRow]:
    entry = record["entry"]
    if entry.get("abcLabel"):
        raise BadRow("asks for the letters of the masked image, which AI2D's release does not hold")
    choices = checked_choices(entry["answerTexts"])
    letter = letter_at(entry["correctAnswer"], choices)
    yield question_row(
        str(entry.get("questionId", id)), record["text"], letter, [record["image"]], choices=choices
    )


def _iconqa_folder(part: SourcePart) -> RowStream:
    """problems.json (records by id), pid_splits.json ("choose_img_train": ids), folders of PNGs."""
    path = part.path
    splits = _splits(path)
    names = {name.rpartition("_")[2] for name in splits}
    split = pick(names, part.split, ("train",), "split", path)
    kind_of = {
        pid: kind
        for name, pids in splits.items()
        for kind, _, split_of in [name.rpartition("_")]
        if split_of == split
        for pid in pids
    }
    base = path / "iconqa" if (path / "iconqa").is_dir() else path
    base /= split.removeprefix("mini")  # the mini splits lie in the folders of the full ones
    for pid, record in json_members(path / "problems.json"):
        if pid in kind_of:
            problem = extended(record, folder=base / kind_of[pid] / pid)
            yield from attempt(_iconqa_problem, problem, pid, part)


def _splits(path: Path) -> dict[str, list[str]]:
    """Return pid_splits.json of a folder: name of a split -> ids. Raises ValueError."""
    file = path / "pid_splits.json"
    splits = {}
    for name, pids in json_members(file):
        if not isinstance(pids, list):
            raise ValueError(f"{file} has no list of ids under '{name}'")
        splits[name] = [str(pid) for pid in pids]
    return splits


def _iconqa_problem(record: Record, id: str, part: SourcePart) -> Iterator[QuestionRow]:
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


def _image_choices(id: str, question: object, letter: str, images: list[object]) -> QuestionRow:
    """Return a row whose options are images: the question's first, then one per option."""
    row = question_row(id, question, letter, images, kind="choose_img")
    row["problem"] = IMAGE_TAG + with_choices(plain(str(question)), [IMAGE_TAG] * (len(images) - 1))
    return row


def _iconqa_parquet(record: Record, id: str, part: SourcePart) -> Iterator[QuestionRow]:
    """``choices`` is one text joined by commas; images of options have only two columns."""
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
    except BadRow:  # a comma within an option cuts it in two
        raise BadRow("answer is none of the comma-separated choices") from None
    yield question_row(id, question, letter, [image], choices=choices, kind=kind)


def _scienceqa(record: Record, id: str, part: SourcePart) -> Iterator[QuestionRow]:
    """Half of the questions have no image and are left out; a hint is the text in question."""
    choices = checked_choices(record["choices"])
    question, hint = record["question"], record.get("hint")
    if isinstance(hint, str) and hint.strip() and isinstance(question, str):
        question = f"{hint.strip()}\n{question}"
    letter = letter_at(record["answer"], choices)
    yield question_row(
        id, question, letter, [record["image"]], choices=choices, kind=record.get("subject")
    )


def _scienceqa_folder(part: SourcePart) -> RowStream:
    path = part.path
    splits = _splits(path)
    split = pick(splits, part.split, ("train",), "split", path)
    pids = set(splits[split])
    folder = path / "images" / split.removeprefix("mini")
    for pid, record in json_members(path / "problems.json"):
        if pid in pids:
            name = record.get("image") if isinstance(record, dict) else None
            image = str(folder / pid / str(name)) if name else None
            yield from attempt(_scienceqa, extended(record, image=image), pid, part)


AI2D = Source(
    "ai2d",
    "AI2D",
    (
        FolderLayout("AI2D", ("questions/*.json", "images"), _ai2d_folder),
        TableLayout("lmms-lab/ai2d", ("question", "options", "answer", "image"), _ai2d_parquet),
    ),
    ("ai2d(cauldron,llava_format)", "ai2d(gpt4v)", "ai2d(internvl)", "ai2d"),
    ("ai2d",),
)
ICONQA = Source(
    "iconqa",
    "IconQA",
    (
        FolderLayout("IconQA", ("problems.json", "pid_splits.json"), _iconqa_folder),
        TableLayout(
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
        FolderLayout(
            "ScienceQA", ("problems.json", "pid_splits.json", "images"), _scienceqa_folder
        ),
        TableLayout(
            "derek-thomas/ScienceQA",
            ("image", "question", "choices", "answer", "hint"),
            _scienceqa,
            ("subject",),
        ),
    ),
    ("scienceqa(cauldron,llava_format)", "scienceqa(nona_context)", "scienceqa"),
    ("scienceqa",),
)
