"""Geometry: Geometry3K, GEOS, UniGeo, GeoQA.

GEOS can be had only through MathV360K and what is derived from it. UniGeo's and GeoQA's own files
are pickles, which run whatever code they hold when they are opened: they are refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ovlt.data.json_stream import json_object
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
    LETTERS,
    QuestionRow,
    Record,
    answer_text,
    checked_choices,
    letter_at,
    question_row,
)
from ovlt.data.tables import BadRow


def _geometry3k_folder(part: SourcePart) -> RowStream:
    path = part.path
    if not any(path.glob("*/data.json")):
        splits = [folder.name for folder in path.iterdir() if any(folder.glob("*/data.json"))]
        path = path / pick(splits, part.split, ("train",), "split", path)
    for folder in sorted(path.iterdir(), key=lambda f: (len(f.name), f.name)):
        if not (folder / "data.json").is_file():
            continue
        try:
            record = json_object(folder / "data.json")
        except ValueError:
            yield BadRow("data.json is not valid JSON")
            continue
        problem = extended(record, folder=folder)
        yield from attempt(_geometry3k_problem, problem, folder.name, part)


def _geometry3k_problem(record: Record, id: str, part: SourcePart) -> Iterator[QuestionRow]:
    folder: Path = record["folder"]
    choices = checked_choices(record["choices"])
    kinds = record.get("problem_type_goal") or []
    # annotat_text is the text corrected by hand; problem_text is the output of an OCR
    yield question_row(
        id,
        record.get("annotat_text") or record["problem_text"],
        _letter(record["answer"], choices),
        [str(folder / "img_diagram.png")],
        choices=choices,
        kind=kinds[0] if isinstance(kinds, list) and kinds else "",
    )


def _letter(letter: object, choices: list[str]) -> str:
    if not isinstance(letter, str) or len(letter) != 1 or letter not in LETTERS:
        raise BadRow("answer is not a letter")
    return letter_at(LETTERS.index(letter), choices)


def _geometry3k_parquet(record: Record, id: str, part: SourcePart) -> Iterator[QuestionRow]:
    choices = checked_choices(record["choices"])
    letter = _letter(record["ground_truth"], choices)
    if choices[LETTERS.index(letter)] != answer_text(record["answer"]):
        raise BadRow("ground_truth is not the letter of the answer")
    name = record.get("id")
    yield question_row(
        id if name is None else str(name),
        record["problem"],
        letter,
        record["images"] or [],
        choices=choices,
    )


def _refuse_pickles(part: SourcePart) -> RowStream:
    raise ValueError(
        f"{part.path} holds pickles, which run the code within them when they are opened. Use the "
        "copies in LLaVA-OneVision-Data, MathV360K or R1-V instead"
    )
    yield  # makes it a generator, as every reader is


_PICKLES = (
    FolderLayout("pickles (refused)", ("*.pk",), _refuse_pickles),
    FolderLayout("pickles (refused)", ("*.pkl",), _refuse_pickles),
)

GEOMETRY3K = Source(
    "geometry3k",
    "Geometry3K",
    (
        FolderLayout(
            "Geometry3K, one split", ("*/data.json", "*/img_diagram.png"), _geometry3k_folder
        ),
        FolderLayout("Geometry3K", ("*/*/data.json", "*/*/img_diagram.png"), _geometry3k_folder),
        TableLayout(
            "hiyouga/geometry3k",
            ("images", "problem", "answer", "choices", "ground_truth"),
            _geometry3k_parquet,
            optional=("id",),
        ),
    ),
    (
        "Geometry3K(MathV360K)",
        "geo3k",
        "intergps(cauldron,llava_format)",
        "intergps",
    ),
    ("geometry3k",),
)
GEOS = Source("geos", "GEOS", (), ("GEOS(MathV360K)",), ("geos",))
UNIGEO = Source("unigeo", "UniGeo", _PICKLES, ("UniGeo(MathV360K)", "unigeo"), ("unigeo",))
GEOQA = Source(
    "geoqa",
    "GeoQA",
    _PICKLES,
    ("GeoQA+(MathV360K)", "geo170k(qa)"),
    ("geoqa+", "geoqa", "geo170k", "geoqa_plus"),
)
