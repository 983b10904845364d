"""Tables, intervals, samples, comparisons, and published scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ovlt.benchmarks.compare import compare, side_by_side
from ovlt.benchmarks.items import Ruling, ScoreRow, ScoreTable
from ovlt.benchmarks.published import PUBLISHED, expected
from ovlt.benchmarks.registry import BENCHMARKS
from ovlt.benchmarks.results import (
    ScoredItem,
    ScoredSample,
    read_head,
    read_items,
    samples_summary,
    tables_of,
    write_result,
)
from ovlt.benchmarks.stats import bootstrap_ci95, mcnemar, pass_at_k


def item(name: str, *rights: bool, **row: str) -> ScoredItem:
    ruling = {r: Ruling(r, "x", "test") for r in (True, False)}
    samples = tuple(ScoredSample("text <b>", 3, True, ruling[right]) for right in rights)
    return ScoredItem(name, {"answer": "A", "subject": "logic", "level": 1} | row, samples)


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    items = [item("1", True), item("2", False), ScoredItem("3", {"answer": "A"}, (), "too long")]
    tables = write_result(tmp_path, BENCHMARKS["mathvision"], items, {"style": "official"})
    assert read_items(tmp_path) == items
    assert tables[0].number == pytest.approx(1 / 3)
    page = (tmp_path / "result.md").read_text()
    assert "| logic | 50.0 |" in page
    assert "rule 2, not asked 1" in page


def test_with_several_samples_a_figure_needs_all_its_questions_in_the_same_sample() -> None:
    row = {"category": "VD", "subcategory": "ocr", "set_id": "0", "figure_id": "1",
           "visual_input": "1", "gt_answer": "1"}  # fmt: skip
    items = [
        item("a", True, False, question_id="0", **row),
        item("b", False, True, question_id="1", **row),
    ]
    table = tables_of(BENCHMARKS["hallusionbench"], items)[0]
    values = {line.label: line.value for line in table.rows}
    assert values == {"aAcc": 0.5, "fAcc": 0.0, "qAcc": 0.5}


def test_the_consistency_test_of_hallusionbench_stands_in_page_and_json(tmp_path: Path) -> None:
    figures = {"0": (True, True), "1": (True, False), "2": (False, False), "3": (False, True)}
    items = [
        item(f"{figure}{question}", right, category="VD", subcategory="ocr", set_id="0",
             figure_id=figure, question_id=str(question), visual_input="1", gt_answer="1")
        for figure, rights in figures.items()
        for question, right in enumerate(rights)
    ]  # fmt: skip
    write_result(tmp_path, BENCHMARKS["hallusionbench"], items, {})
    tables = read_head(tmp_path)["tables"]
    assert isinstance(tables, list)
    (test,) = (table for table in tables if table["title"] == "consistency test")
    shares = {row["label"]: row["value"] for row in test["rows"]}
    assert shares == {"correct": 0.25, "inconsistent": 0.5, "wrong": 0.25}
    page = (tmp_path / "result.md").read_text()
    assert "## consistency test\n\n| | share of figures |" in page
    assert "| inconsistent | 50.0 |" in page


def test_tables_of_hallusionbench_that_no_question_belongs_to_are_left_out(tmp_path: Path) -> None:
    row = {"category": "VS", "subcategory": "chart", "set_id": "0", "figure_id": "0",
           "question_id": "0", "visual_input": "0", "gt_answer": "1"}  # fmt: skip
    write_result(tmp_path, BENCHMARKS["hallusionbench"], [item("a", True, **row)], {})
    page = (tmp_path / "result.md").read_text()
    assert "aAcc, fAcc, qAcc" in page
    assert "image questions" not in page
    assert "consistency test" not in page


def test_pass_at_k_and_mean_at_k_are_over_questions() -> None:
    items = [item("1", True, False, False, False), item("2", False, False, False, False)]
    figures = samples_summary(items)
    assert figures["mean@4"][0] == pytest.approx(0.125)
    assert figures["pass@4"][0] == pytest.approx(0.5)
    assert figures["pass@2"][0] == pytest.approx(0.25)
    assert pass_at_k(1, 4, 2) == pytest.approx(0.5)
    assert samples_summary([item("1", True)]) == {}


def test_mcnemar_is_exact() -> None:
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(5, 0) == pytest.approx(2 / 32)
    assert mcnemar(3, 3) == 1.0
    assert mcnemar(700, 500) == pytest.approx(mcnemar(500, 700))
    assert mcnemar(700, 500) < 1e-6


def test_two_results_are_compared_on_the_questions_they_share() -> None:
    a = [item(str(i), i < 8) for i in range(10)]
    b = [item(str(i), i < 5) for i in range(1, 11)]
    pair = compare(a, b)
    assert (pair.questions, pair.only_a, pair.only_b) == (9, 3, 0)
    assert "McNemar p = 0.25" in pair.sentence()
    with pytest.raises(ValueError, match="share no question"):
        compare(a, [item("x", True)])
    with pytest.raises(ValueError, match="another label"):
        compare(a, [item("1", True, answer="B")])


def test_styles_are_shown_side_by_side_with_the_questions_on_which_they_part() -> None:
    one, two = [item("1", True), item("2", True)], [item("1", True), item("2", False)]
    page = side_by_side({"official": one, "vlmevalkit": two})
    assert "They part on 1 of 2 questions." in page
    assert "| 2 | A | right: x | wrong: x |" in page


def test_the_interval_of_a_mean_covers_the_truth_when_units_come_in_clusters() -> None:
    random, covered = np.random.default_rng(0), 0
    for _ in range(200):
        rates = random.beta(2, 2, 150)  # clusters of five questions that share their difficulty
        units = (random.random((150, 5)) < rates[:, None]).astype(float)
        names = tuple(str(i) for i in range(150) for _ in range(5))
        pairs = units.min(axis=1)
        own = tuple(str(i) for i in range(150))
        low, high = bootstrap_ci95(
            [(tuple(units.ravel()), names), (tuple(pairs), own)], resamples=400
        )
        shares = random.beta(2, 2, 100000)
        truth = (shares.mean() + (shares**5).mean()) / 2
        covered += low <= truth <= high
    assert covered >= 180


def test_a_table_whose_number_is_a_mean_says_so() -> None:
    table = ScoreTable("t", (ScoreRow("a", (1.0, 0.0)), ScoreRow("b", (1.0, 1.0))), mean="mean")
    assert table.number == 0.75
    low, high = ScoreTable("t", (ScoreRow("a", (0.0,) * 4),), mean="mean").interval
    assert low == 0.0
    assert high > 0.3  # four questions say little


def test_a_published_score_is_reproduced_within_its_interval_and_allowance() -> None:
    [line] = expected("Qwen2.5-VL-3B", "mathvista", "testmini", "official", {"accuracy": 0.60})
    assert line.startswith("reproduced: mathvista accuracy 60.0 %, published 62.3 %")
    assert "3 points for another harness" in line
    same, vendor = expected(
        "qwen2.5-vl-7b", "mathvista", "testmini", "openvlthinker", {"accuracy": 0.64}
    )
    assert same.startswith("NOT reproduced")
    assert vendor.startswith("reproduced")


def test_hallusionbenchs_mean_is_never_compared_with_its_accuracy() -> None:
    lines = expected("qwen2.5-vl-7b", "hallusionbench", "image", "official", {"mean": 0.53})
    assert len(lines) == 1
    assert "published 52.9 %" in lines[0]


def test_published_splits_exist() -> None:
    for scores in PUBLISHED.values():
        for score in scores:
            assert score.split in (*BENCHMARKS[score.benchmark].splits, "overall")
