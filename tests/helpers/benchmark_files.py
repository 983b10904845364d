"""Small files of each benchmark in its true schema, with the traps that the real ones hold."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image
from pyarrow import parquet

Rows = list[dict[str, Any]]


def picture(number: int, side: int = 56) -> dict[str, Any]:
    """An image cell: a plain square, of another grey for each number."""
    file = io.BytesIO()
    grey = np.full((side, side, 3), 40 + 20 * (number % 10), np.uint8)
    Image.fromarray(grey).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def _mathvista(pid: str, kind: str, answer: str, **more: Any) -> dict[str, Any]:
    choices = more.pop("choices", None)
    metadata = {
        "category": "general-vqa", "context": "bar chart", "grade": "not applicable",
        "img_height": 56, "img_width": 56, "language": "english",
        "skills": ["arithmetic reasoning"],
        "source": "IconQA",
        "split": "testmini", "task": "figure question answering",
    }  # fmt: skip
    return {
        "pid": pid, "question": f"How many, in {pid}?\r\n", "image": f"images/{pid}.jpg",
        "decoded_image": picture(int(pid)), "choices": choices, "unit": None, "precision": None,
        "answer": answer, "question_type": "multi_choice" if choices else "free_form",
        "answer_type": kind, "metadata": metadata, "query": f"Hint: one.\nQuestion: {pid}",
    } | more  # fmt: skip


MATHVISTA: Rows = [
    _mathvista("1", "text", "18", choices=["16", "17", "18", "18"]),
    _mathvista("2", "text", "C", choices=["A", "B", "C", "D"]),
    _mathvista("3", "integer", "0", unit="years"),
    _mathvista("4", "float", "-4.3", precision=1.0),
    _mathvista("5", "list", "[2007, 2008]"),
]


def _mathverse(index: str, number: int, version: str, answer: str) -> dict[str, Any]:
    vision = version == "Vision Only"
    return {
        "sample_index": str(number), "problem_index": index, "problem_version": version,
        "question": "" if vision else f"Find angle {index}.\nChoices:\nA:30\nB:60",
        "image": None if version == "Text Only" else picture(number), "answer": answer,
        "question_type": "multi-choice",
        "metadata": {
            "split": "testmini", "source": "GeoQA", "subject": "Solid Geometry", "subfield": "Area",
        },
        "query_wo": "According to the question shown in the image, answer." if vision else "wo",
        "query_cot": "First conduct reasoning.",
    }  # fmt: skip


_VERSIONS = ("Text Dominant", "Text Lite", "Vision Intensive", "Vision Dominant", "Vision Only")
MATHVERSE: Rows = [
    *(_mathverse("1", i, version, "(C)") for i, version in enumerate(_VERSIONS, 1)),
    _mathverse("2", 6, "Text Lite", "False"),
    _mathverse("3", 7, "Text Lite", "C\nD"),
]
MATHVERSE_TEXT: Rows = [_mathverse("1", 1, "Text Only", "(C)")]


def _mathvision(
    name: str, question: str, answer: str, options: Sequence[str] = ()
) -> dict[str, Any]:
    return {
        "id": name, "question": question, "options": list(options), "image": f"images/{name}.jpg",
        "decoded_image": picture(int(name)), "answer": answer, "solution": None, "level": 2,
        "subject": "solid geometry",
    }  # fmt: skip


MATHVISION: Rows = [
    _mathvision("4", "How many faces?", "A", "ABCDE"),
    _mathvision("5", "Which is next? <image1>", "B", ["<image2>", "<image3>", "x", "y", "z"]),
    _mathvision(
        "6", "<image1> <image2> <image3> What angle?", "C", ["30^\\circ", "45°", "60°", "1", "2"]
    ),
    _mathvision("2830", "What share?", "\x0crac{36}{13}"),
    _mathvision("2521", "How many?", "11 "),
]


def _emma(
    pid: str, subject: str, kind: str, answer: str, images: int, **more: Any
) -> dict[str, Any]:
    cells = {f"image_{i}": picture(i) if i <= images else None for i in range(1, 6)}
    return {
        "pid": pid, "question": "<image_1> Which one?", "options": None, "answer": answer, **cells,
        "solution": None, "subject": subject, "task": "", "category": "Path Tracing",
        "source": "new", "type": kind, "context": "",
    } | more  # fmt: skip


EMMA: dict[str, Rows] = {
    "Math": [_emma("Math_1", "Math", "Open-ended", "3.5", 2, options=[])],
    "Physics": [
        _emma("phy_1", "Physics", "Multiple Choice", "b", 1, options=["1", "2", "2"],
              context="Ice.")
    ],
    "Chemistry": [
        _emma("chem_115", "Chemistry", "Multiple choice", "L", 1,
              options=[f"o{i}" for i in range(12)], question="<image_1> and again <image_1>"),
        _emma("chem_1173", "Chemistry", "Open-ended", "['$MgS$', 'MgS']", 0, question="Name it."),
    ],
    "Coding": [
        _emma("coding_1", "Coding", "Multiple Choice", "A", 5, task="Code Choose Vis",
              options=[f"<image_{i}>" for i in (2, 3, 4, 5)],
              category="3D;Axis & Scale;Alignment, Orientation, & Position")
    ],
}  # fmt: skip


def _hallusion(
    category: str, figure: str, question: str, visual: str, answer: str
) -> dict[str, Any]:
    return {
        "category": category, "subcategory": "ocr", "visual_input": visual, "set_id": "0",
        "figure_id": figure, "sample_note": "", "question_id": question,
        "question": f"Is it {question}? Yes or no", "gt_answer": answer,
        "gt_answer_details": "It is.", "filename": f"./{category}/ocr/0_{figure}.png",
        "image": picture(int(figure)) if visual != "0" else None,
    }  # fmt: skip


HALLUSION: Rows = [
    _hallusion("VD", "0", "0", "1", "1"),
    _hallusion("VD", "1", "0", "2", "0"),
    _hallusion("VS", "1", "0", "1", "1"),
    _hallusion("VS", "1", "1", "1", "0"),
]
HALLUSION_TEXT: Rows = [_hallusion("VS", "0", "0", "0", "1")]


def _mmmu(name: str, question: str, options: str, answer: str, images: int) -> dict[str, Any]:
    cells = {f"image_{i}": picture(i) if i <= images else None for i in range(1, 8)}
    return {
        "id": name, "question": question, "options": options, "explanation": "?", **cells,
        "img_type": "['Plots']", "answer": answer, "topic_difficulty": "Easy", "subject": "Music",
    }  # fmt: skip


MMMU: Rows = [
    _mmmu(
        "test_Computer_Science_61", "Which? <image 1>", str([f"o{i}" for i in range(12)]), "F", 1
    ),
    _mmmu("validation_Accounting_29", "<image 1> Sum?", "[['x', 'y']]", "B", 1),
    _mmmu("test_Geography_144", "<image 1>", "['B', 'A', 'C']", "C", 1),
    _mmmu(
        "test_Music_1", "<image 2> then <image 1>, again <image 2>", "['<image 3>', 'none']", "A", 3
    ),
]
MMMU_VISION: Rows = [
    {"id": row["id"], "image": picture(3), "options": row["options"], "answer": row["answer"],
     "subject": row["subject"]}
    for row in MMMU
]  # fmt: skip


def write(rows: Rows, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.Table.from_pylist(rows), path)


def write_all(root: Path) -> Path:
    """Every benchmark as people have it: a folder per repository, files named as on the Hub."""
    shard = "-00000-of-00001.parquet"
    write(MATHVISTA, root / f"MathVista/data/testmini{shard}")
    write(MATHVERSE, root / "MathVerse/testmini.parquet")
    write(MATHVERSE_TEXT, root / "MathVerse/testmini_text_only.parquet")
    write(MATHVISION, root / f"MathVision/data/test{shard}")
    write(MATHVISION[:2], root / f"MathVision/data/testmini{shard}")
    for subject, rows in EMMA.items():
        write(rows, root / f"EMMA/{subject}/test{shard}")
        write(rows, root / f"EMMA-mini/{subject}/test{shard}")
    write(HALLUSION, root / f"HallusionBench/data/image{shard}")
    write(HALLUSION_TEXT, root / f"HallusionBench/data/non_image{shard}")
    write(MMMU, root / f"MMMU_Pro/standard (10 options)/test{shard}")
    write(MMMU, root / f"MMMU_Pro/standard (4 options)/test{shard}")
    write(MMMU_VISION, root / f"MMMU_Pro/vision/test{shard}")
    return root
