"""The 40 test vectors, whose verdicts the benchmarks' own code has given (vectors.tsv)."""

from __future__ import annotations

import csv
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from ovlt.benchmarks import hallusionbench, mathverse, vlmevalkit
from ovlt.benchmarks.items import Ask, Ruling, rule_on
from ovlt.benchmarks.registry import BENCHMARKS, style_named

SETTINGS = {"fast": "", "prefetch": "", "no judge": ""}  # the default of a rule

with (Path(__file__).parent / "vectors.tsv").open(encoding="utf-8") as file:
    VECTORS = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
RULED = [v for v in VECTORS if v["setting"] not in ("aggregate", "trunk6")]


def replies_of(vector: dict[str, str]) -> list[str]:
    replies = json.loads(vector["judge_reply"])
    return replies if isinstance(replies, list) else [] if replies is None else [replies]


def rule_of(vector: dict[str, str]) -> tuple[Ruling, int]:
    """The ruling on a vector, and how often the judge was asked; None is what an end replies."""
    rule = BENCHMARKS[vector["benchmark"]].rules()[style_named(vector["style"])]
    settings = [SETTINGS.get(vector["setting"], vector["setting"])]
    row, response = json.loads(vector["item"]), json.loads(vector["response"])
    replies: list[str | None] = []
    left: list[str | None] = [*replies_of(vector), None]
    while isinstance(result := rule_on(rule, row, response, replies, settings), Ask):
        replies.append(left.pop(0))
    return result, len(replies) - replies.count(None)


def verdict_of(ruling: Ruling) -> str:
    if ruling.by == "draw":
        return "random"
    return "judge" if ruling.right is None else str(int(ruling.right))


@pytest.mark.parametrize("vector", RULED, ids=lambda v: f"{v['id']} {v['rule']}")
def test_a_vector_gets_the_verdict_of_the_original_code(vector: dict[str, str]) -> None:
    ruling, calls = rule_of(vector)
    assert verdict_of(ruling) == vector["verdict"]
    assert calls == int(vector["judge_calls"])
    expected: Any = json.loads(vector["extracted"])
    if vector["benchmark"] == "mathvista" and vector["style"] == "official":
        assert [ruling.extracted, ruling.normalised] == expected
    else:
        assert ruling.extracted == expected


def test_all_forty_vectors_are_read() -> None:
    assert len(VECTORS) == 40
    assert len(RULED) == 38


def test_the_extraction_of_mathverse_sees_the_last_words_between_blanks() -> None:
    vector = next(v for v in VECTORS if v["setting"] == "trunk6")
    response = json.loads(vector["response"])
    row = json.loads(vector["item"])
    asked = rule_on(mathverse.official, row, response, (), ["trunk6"])
    assert asked == Ask("extract", json.loads(vector["extracted"]))


def test_figures_and_pairs_of_hallusionbench_are_counted_as_the_original_does() -> None:
    vector = next(v for v in VECTORS if v["setting"] == "aggregate")
    rows, expected = json.loads(vector["item"]), json.loads(vector["extracted"])
    values = [float(hallusionbench.is_right(row, row["c"])) for row in rows]
    tables = hallusionbench.HallusionBench().tables(rows, values)
    cells = {row.label: row for table in tables for row in table.rows}
    for label in ("aAcc", "fAcc", "qAcc", "easy", "hard"):
        right, total = map(int, expected[label].split("/"))
        first = next(r for t in tables for r in t.rows if r.label == label)
        assert (sum(first.units), len(first.units)) == (right, total), label
    test = next(table for table in tables if table.title == "consistency test")
    assert {row.label: sum(row.units) for row in test.rows} == expected["figure"]
    mean = sum(cells_value for cells_value in (tables[0].rows[i].value for i in range(3))) / 3
    whole = sum((Fraction(expected[m]) for m in ("aAcc", "fAcc", "qAcc")), Fraction()) / 3
    assert mean == pytest.approx(float(whole))
    assert cells["easy"].units == (1.0, 1.0, 1.0)


def test_the_option_matcher_looks_at_the_first_place_of_a_letter() -> None:
    options = ["12", "15", "18", "21"]
    assert vlmevalkit.match_option("B is my first thought, but five more words", options) == ""
    assert (
        vlmevalkit.match_option("The correct answer is **B**. Here is why it must be so", options)
        == "B"
    )
    assert vlmevalkit.match_option("it is 15", options) == "B"
