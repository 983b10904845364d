"""Charts: FigureQA, ChartQA, DVQA.

FigureQA's native folder has one record per question and answers 0 / 1; its copy on the Hugging Face
hub has one row per image with a list of questions. Its test partitions have no answers. The fields
of ChartQA and DVQA are those that public loaders read; they have not been compared with the files.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ovlt.data.json_stream import json_list
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
from ovlt.data.readers.rows import QuestionRow, Record, question_row
from ovlt.data.tables import BadRow

# The subject of each of FigureQA's question ids, 0 to 14.
FIGUREQA_KINDS = (
    "minimum",
    "maximum",
    "less",
    "greater",
    "low median",
    "high median",
    "minimum area",
    "maximum area",
    "smoothest",
    "roughest",
    "global minimum",
    "global maximum",
    "less",
    "greater",
    "intersect",
)


def _figureqa_folder(part: SourcePart) -> RowStream:
    path = part.path
    if not (path / "qa_pairs.json").is_file():
        parts = [file.parent.name for file in path.glob("*/qa_pairs.json")]
        path = path / pick(parts, part.split, ("train1",), "split", path)

    def convert(record: Record, id: str, part: SourcePart) -> Iterator[QuestionRow]:
        answer, number = record.get("answer"), record.get("question_id")
        if answer is None:
            raise BadRow("no answer (a test partition)")
        if answer not in (0, 1):
            raise BadRow("answer is neither 0 nor 1")
        image = path / "png" / f"{record['image_index']}.png"
        kind = FIGUREQA_KINDS[number] if isinstance(number, int) and 0 <= number < 15 else ""
        yield question_row(
            id, record["question_string"], "Yes" if answer else "No", [str(image)], kind=kind
        )

    for index, record in enumerate(json_list(path / "qa_pairs.json", "qa_pairs")):
        yield from attempt(convert, record, f"{path.name}/{index}", part)


def _figureqa_image(record: Record, id: str, part: SourcePart) -> Iterator[QuestionRow | BadRow]:
    questions = record["qa"]
    if not isinstance(questions, list):
        raise BadRow("'qa' is not a list")
    for number, pair in enumerate(questions):
        try:
            yield question_row(
                f"{id}/{number}", pair["question"], _yes_no(pair["answer"]), [record["image"]]
            )
        except BadRow as bad:
            yield bad


def _yes_no(answer: object) -> str:
    text = str(answer).strip().rstrip(".").casefold()
    words = {"1": "Yes", "0": "No", "yes": "Yes", "no": "No", "true": "Yes", "false": "No"}
    if text not in words:
        raise BadRow("answer is neither yes nor no")
    return words[text]


def _chartqa_folder(part: SourcePart) -> RowStream:
    parts = [folder.parent.name for folder in part.path.glob("*/png")]
    path = part.path / pick(parts, part.split, ("train",), "split", part.path)

    def convert(record: Record, id: str, part: SourcePart) -> Iterator[QuestionRow]:
        image = str(path / "png" / record["imgname"])
        yield question_row(id, record["query"], record["label"], [image], kind=record["kind"])

    for file in sorted(path.glob("*.json")):
        kind = file.stem.split("_")[-1]  # train_human.json, train_augmented.json
        for index, record in enumerate(json_list(file)):
            query = extended(record, kind=kind)
            yield from attempt(convert, query, f"{file.stem}/{index}", part)


def _chartqa_query(record: Record, id: str, part: SourcePart) -> Iterator[QuestionRow]:
    label = record["label"]
    if isinstance(label, list):
        if len(label) != 1:
            raise BadRow("label is not one answer")
        label = label[0]
    kind = record.get("human_or_machine", record.get("type"))
    named = {0: "human", 1: "augmented", "0": "human", "1": "augmented"}
    yield question_row(
        id, record["query"], label, [record["image"]], kind=named.get(kind, kind or "")
    )


def _question_answer(record: Record, id: str, part: SourcePart) -> Iterator[QuestionRow]:
    yield question_row(
        id, record["question"], record["answer"], [record["image"]], kind=record.get("type")
    )


def _dvqa_folder(part: SourcePart) -> RowStream:
    files = {file.stem.removesuffix("_qa"): file for file in part.path.glob("*_qa.json")}
    split = pick(files, part.split, ("train",), "split", part.path)
    images = part.path / "images"
    if (images / "images").is_dir():  # the archive was unpacked into a folder of its own name
        images = images / "images"

    def convert(record: Record, id: str, part: SourcePart) -> Iterator[QuestionRow]:
        name = Path(record["image"])
        yield question_row(
            id,
            record["question"],
            record["answer"],
            [str(images / name)],
            kind=record.get("template_id"),
        )

    for index, record in enumerate(json_list(files[split])):
        yield from attempt(convert, record, f"{split}/{index}", part)


FIGUREQA = Source(
    "figureqa",
    "FigureQA",
    (
        FolderLayout("FigureQA, one partition", ("qa_pairs.json", "png"), _figureqa_folder),
        FolderLayout("FigureQA, all partitions", ("*/qa_pairs.json", "*/png"), _figureqa_folder),
        TableLayout("vikhyatk/figureqa", ("image", "qa"), _figureqa_image),
    ),
    ("FigureQA(MathV360K)", "figureqa(cauldron,llava_format)", "figureqa"),
    ("figureqa",),
)
CHARTQA = Source(
    "chartqa",
    "ChartQA",
    (
        FolderLayout("ChartQA Dataset", ("*/png", "*/*_human.json"), _chartqa_folder),
        TableLayout(
            "HuggingFaceM4/ChartQA",
            ("image", "query", "label"),
            _chartqa_query,
            ("human_or_machine", "type"),
        ),
        TableLayout(
            "lmms-lab/ChartQA", ("image", "question", "answer"), _question_answer, ("type",)
        ),
    ),
    ("chartqa(cauldron,llava_format)", "chartqa"),
    ("chartqa",),
)
DVQA = Source(
    "dvqa",
    "DVQA",
    (
        FolderLayout("DVQA", ("*_qa.json", "images"), _dvqa_folder),
        TableLayout("DVQA, parquet", ("image", "question", "answer"), _question_answer),
    ),
    ("dvqa(cauldron,llava_format)", "dvqa"),
    ("dvqa",),
)
