"""HallusionBench: 1,129 yes/no questions, 951 with an image (arXiv 2310.14566).

Facts: tianyi-lab/HallusionBench at 744007c, utils.py. A judge says whether the prediction conflicts
with the reference; aAcc counts questions, fAcc figures whose questions are all right, qAcc
questions that are right on all their figures. "Overall" in reports of Qwen and OpenCompass is the
mean of the three; OpenVLThinker prints plain accuracy on the image questions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

from ovlt.benchmarks import openvlthinker, vlmevalkit
from ovlt.benchmarks.columns import text_of
from ovlt.benchmarks.items import (
    Ask,
    BenchmarkItem,
    BenchmarkPrompt,
    BenchmarkRow,
    BenchmarkTask,
    PlainTruth,
    Rule,
    RuleRun,
    Ruling,
    ScoreRow,
    ScoreTable,
    Split,
    StyleName,
)

_WITH_IMAGE = {
    "VD": {"video": 170, "illusion": 144, "math": 108, "ocr": 89, "figure": 80},
    "VS": {"chart": 130, "table": 112, "map": 64, "ocr": 54},
}
_ALL_VS = {"chart": 206, "table": 155, "map": 96, "ocr": 81}


def _counts(parts: Mapping[str, Mapping[str, int]], yes: int) -> dict[tuple[str, str], int]:
    total = sum(sum(part.values()) for part in parts.values())
    return {
        ("", ""): total,
        ("answer", "yes"): yes,
        ("answer", "no"): total - yes,
        **{("category", name): sum(part.values()) for name, part in parts.items()},
        **{
            ("subcategory", f"{name} {sub}"): n
            for name, part in parts.items()
            for sub, n in part.items()
        },
    }


_ALL = {"VD": _WITH_IMAGE["VD"], "VS": _ALL_VS}


class HallusionBench(BenchmarkTask):
    """HallusionBench: the image questions, or all with those without an image."""

    name: ClassVar[str] = "hallusionbench"
    title: ClassVar[str] = "HallusionBench"
    hub: ClassVar[str] = "lmms-lab/HallusionBench"
    splits: ClassVar[Mapping[str, Split]] = {
        "image": Split(
            "default",
            "image",
            (("image",), ("HallusionBench",)),
            _counts(_WITH_IMAGE, 401),
            only=("visual_input", ("1", "2")),
        ),
        "all": Split(
            "default",
            "image+non_image",
            (("image", "non_image"), ("HallusionBench",)),
            _counts(_ALL, 484),
        ),
    }
    columns: ClassVar[tuple[str, ...]] = (
        "category", "subcategory", "visual_input", "set_id", "figure_id", "question_id", "question",
        "gt_answer", "gt_answer_details",
    )  # fmt: skip
    image_columns: ClassVar[tuple[str, ...]] = ("image|filename",)
    settings: ClassVar[Mapping[str, str]] = {
        "yes_no": 'vlmevalkit: add " Please answer yes or no." (its prompt for Qwen2-VL)'
    }

    def row_id(self, row: BenchmarkRow) -> str:
        keys = ("category", "subcategory", "visual_input", "set_id", "figure_id", "question_id")
        return "_".join(str(row[key]) for key in keys)

    def answer(self, row: BenchmarkRow) -> str:
        return text_of(row, "gt_answer")

    def prompt(
        self, item: BenchmarkItem, style: StyleName, settings: frozenset[str]
    ) -> BenchmarkPrompt:
        question = text_of(item.row, "question")
        if style == "openvlthinker":
            question = openvlthinker.yes_or_no(question)
        elif style == "vlmevalkit" and "yes_no" in settings:
            question += " Please answer yes or no."
        return BenchmarkPrompt.images_first(item.images, question)

    def rules(self) -> Mapping[StyleName, Rule]:
        return {"official": official, "openvlthinker": by_tags, "vlmevalkit": by_words}

    def plain_truth(self, row: BenchmarkRow) -> PlainTruth | None:
        return PlainTruth("Yes" if text_of(row, "gt_answer") == "1" else "No", yes_no=True)

    def labels(self, row: BenchmarkRow) -> Mapping[str, tuple[str, ...]]:
        category = text_of(row, "category")
        return {
            "category": (category,),
            "subcategory": (f"{category} {text_of(row, 'subcategory')}",),
            "answer": ("yes" if text_of(row, "gt_answer") == "1" else "no",),
        }

    def tables(self, rows: Sequence[BenchmarkRow], values: Sequence[float]) -> list[ScoreTable]:
        metrics = (accuracies(rows, values),)
        parts: dict[str, list[int]] = {}
        for i, row in enumerate(rows):
            parts.setdefault(text_of(row, "category"), []).append(i)
        by_category = [
            ScoreTable(f"{name}: {table.title}", table.rows, table.mean)
            for name, at in sorted(parts.items())
            for table in [accuracies([rows[i] for i in at], [values[i] for i in at])]
        ]
        with_image = [i for i, row in enumerate(rows) if text_of(row, "visual_input") != "0"]
        plain = ScoreRow("accuracy", tuple(values[i] for i in with_image))
        title = "accuracy on the image questions, as OpenVLThinker prints"
        tables = [
            *metrics,
            ScoreTable(title, (plain,) if with_image else ()),
            *by_category,
            *super().tables(rows, values)[1:],
            ScoreTable("pairs by difficulty", _difficulty(rows, values)),
            ScoreTable("consistency test", _consistency(rows, values), measure="share of figures"),
        ]
        return [table for table in tables if table.rows]


def figure_key(row: BenchmarkRow) -> tuple[str, ...] | None:
    """Return the figure of a row; None for a VS question without one."""
    if text_of(row, "category") == "VS" and text_of(row, "figure_id") == "0":
        return None
    return tuple(text_of(row, key) for key in ("category", "subcategory", "set_id", "figure_id"))


def pair_key(row: BenchmarkRow) -> tuple[str, ...]:
    """Return the question of a row, which is asked of several figures."""
    return tuple(text_of(row, key) for key in ("category", "subcategory", "set_id", "question_id"))


def all_right(
    rows: Sequence[BenchmarkRow],
    values: Sequence[float],
    key: Callable[[BenchmarkRow], tuple[str, ...] | None],
) -> dict[tuple[str, ...], float]:
    """Return the smallest value of each group: 1 if all its questions are right."""
    groups: dict[tuple[str, ...], float] = {}
    for row, value in zip(rows, values, strict=True):
        if (name := key(row)) is not None:
            groups[name] = min(value, groups.get(name, 1.0))
    return groups


def _set_of(key: tuple[str, ...]) -> str:
    """Category, subcategory and set: figures and questions of one set are not independent."""
    return " ".join(key[:3])


def accuracies(rows: Sequence[BenchmarkRow], values: Sequence[float]) -> ScoreTable:
    """Return aAcc, fAcc and qAcc; the table's number is their mean."""
    sets = tuple(_set_of(pair_key(row)) for row in rows)
    figures, pairs = all_right(rows, values, figure_key), all_right(rows, values, pair_key)
    metrics = (
        ScoreRow("aAcc", tuple(values), sets),
        ScoreRow("fAcc", tuple(figures.values()), tuple(map(_set_of, figures))),
        ScoreRow("qAcc", tuple(pairs.values()), tuple(map(_set_of, pairs))),
    )
    return ScoreTable("aAcc, fAcc, qAcc", tuple(m for m in metrics if m.units), mean="mean")


def _difficulty(rows: Sequence[BenchmarkRow], values: Sequence[float]) -> tuple[ScoreRow, ...]:
    """Return the pairs of the questions without and with an edited figure."""
    result: list[ScoreRow] = []
    for label, hard in (("easy", False), ("hard", True)):
        at = [i for i, row in enumerate(rows) if (text_of(row, "visual_input") == "2") == hard]
        if at:
            pairs = all_right([rows[i] for i in at], [values[i] for i in at], pair_key)
            result.append(ScoreRow(label, tuple(pairs.values())))
    return tuple(result)


def _consistency(rows: Sequence[BenchmarkRow], values: Sequence[float]) -> tuple[ScoreRow, ...]:
    """Return the shares of figures whose questions are all, partly and never right."""
    groups: dict[tuple[str, ...], list[float]] = {}
    for row, value in zip(rows, values, strict=True):
        if (name := figure_key(row)) is not None:
            groups.setdefault(name, []).append(value)
    kinds = [
        "correct" if min(group) == 1 else "wrong" if max(group) == 0 else "inconsistent"
        for group in groups.values()
    ]
    return tuple(
        ScoreRow(label, tuple(float(kind == label) for kind in kinds))
        for label in ("correct", "inconsistent", "wrong")
        if kinds
    )


def is_right(row: BenchmarkRow, code: str) -> bool:
    """Whether the judge's code (0, 1, 2 for unclear) is right: unclear is, without a figure."""
    return code == "1" or (code == "2" and figure_key(row) is None)


def official(row: BenchmarkRow, response: str, settings: frozenset[str]) -> RuleRun:
    """Rule by the judge: "incorrect" in its reply is looked for before "correct"."""
    reply = yield Ask("conflict")
    if reply is None:
        return Ruling(None, None, "no judge", "nobody")
    text = reply.lower()
    code = "0" if "incorrect" in text else "1" if "correct" in text else "2"
    return Ruling(is_right(row, code), code, "judge", "judge")


def by_tags(row: BenchmarkRow, response: str, settings: frozenset[str]) -> RuleRun:
    """Style openvlthinker: Yes or No in answer tags."""
    truth = "Yes" if text_of(row, "gt_answer") == "1" else "No"
    return openvlthinker.rule_for(openvlthinker.truth_in(row, truth), response)
    yield  # a generator that asks nothing


def by_words(row: BenchmarkRow, response: str, settings: frozenset[str]) -> RuleRun:
    """Style vlmevalkit: exactly one of the words yes and no; else the judge; else wrong."""
    truth = "Yes" if text_of(row, "gt_answer") == "1" else "No"
    stated = vlmevalkit.yes_no(response)
    if stated != "Unknown":
        return Ruling(stated == truth, stated, "yes or no")
    for _ in range(vlmevalkit.TRIES):
        reply = yield Ask("yes_or_no")
        if reply is None:  # the harness then counts Unknown as wrong
            return Ruling(False, stated, "neither yes nor no, no judge", "nobody")
        if (stated := vlmevalkit.yes_no(reply)) != "Unknown":
            return Ruling(stated == truth, stated, "judge", "judge")
    return Ruling(False, "Unknown", "the judge never said yes or no", "judge")
