"""Rules of one benchmark each, where the vectors do not reach."""

from __future__ import annotations

from typing import Any

import pytest
from helpers import benchmark_files as files

from ovlt.benchmarks import emma, mathvision, mmmu_pro, vlmevalkit
from ovlt.benchmarks.answers import boxed, distance, number_in_words, without_thoughts
from ovlt.benchmarks.items import STYLES, Ask, PlainTruth, Ruling, rule_on
from ovlt.benchmarks.openvlthinker import extract, truth_of
from ovlt.benchmarks.plain import plain_verdict
from ovlt.benchmarks.registry import BENCHMARKS, style_named


def ruled(name: str, style: str, row: dict[str, Any], response: str, *replies: str) -> Ruling:
    given: list[str | None] = [*replies, None]
    rule = BENCHMARKS[name].rules()[style_named(style)]
    for count in range(len(given) + 1):
        result = rule_on(rule, row, response, given[:count])
        if isinstance(result, Ruling):
            return result
    raise AssertionError("the rule asks more than it is answered")


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_has_a_rule_for_every_style(name: str) -> None:
    assert set(BENCHMARKS[name].rules()) == set(STYLES)


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("A. The first", "A"),
        ("(B)", ""),
        ("I get \\boxed{\\text{C}}", "C"),
        ("\\boxed{A} or \\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("The correct answer is\nD.\nBecause", "d"),
        ("3.5", "3.5"),
        ("nothing", ""),
    ],
)
def test_emmas_fast_rules_extract(response: str, letter: str) -> None:
    assert emma.extract(response) == letter


def test_emma_reads_numbers_in_words_and_doubled_options() -> None:
    row = {"type": "Open-ended", "options": [], "answer": "21"}
    assert ruled("emma", "official", row, "\\boxed{twenty-one squares}").right
    assert not ruled("emma", "official", row, "\\boxed{21 squares}").right
    doubled = {"type": "Multiple choice", "options": ["1", "2", "2"], "answer": "b"}
    assert ruled("emma", "official", doubled, "\\boxed{B}").right
    assert ruled("emma", "official", doubled, "\\boxed{2}").right
    assert not ruled("emma", "official", doubled, "\\boxed{C}").right
    assert not ruled("emma", "official", doubled, "  ").right


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("two million twenty three thousand and forty nine", 2023049), ("one hundred", 100),
        ("two million five thousand", 2006005),
        ("two point five", 2.5), ("point", 0), ("seven", 7), ("12", 12), ("twelve dogs", 12),
        ("cats", None), ("thousand two thousand", None), ("thousand million", None),
    ],
)  # fmt: skip
def test_number_words_are_read_as_word2number_does(text: str, value: float | None) -> None:
    assert number_in_words(text) == value


def test_math_v_finds_option_text_tuples_and_the_form_feed_answer() -> None:
    rows = {row["id"]: row for row in files.MATHVISION}
    assert ruled("mathvision", "official", rows["6"], "so it is \\boxed{60°}").right
    # an option with a degree sign has no value, even for the same angle
    row = rows["6"] | {"answer": "B"}
    assert not ruled("mathvision", "official", row, "\\boxed{45^{\\circ}}").right
    assert ruled("mathvision", "official", rows["4"], "A").right
    assert mathvision.is_equal("(3,-4)", "(3.0,-8/2)") is False  # "-4" and "-4.0"
    assert mathvision.is_equal("(3,-4)", "(6-3,-4)")
    assert mathvision.is_equal("7/3", "\\frac{7}{3}")
    assert mathvision.extract("\\boxed{\\frac{1}{2}} units") == "\\frac{1}{2}}"[:-1]
    assert mathvision.extract("The answer should be 5 apples. So.") == "5apples"


def test_mathvista_compares_a_doubled_choice_by_text_and_a_zero_as_any_number() -> None:
    first, letters, zero = files.MATHVISTA[:3]
    assert ruled("mathvista", "official", first, "the last", "D").right
    assert ruled("mathvista", "official", first, "the third", "C").right
    assert not ruled("mathvista", "vlmevalkit", first, "D").right  # letters are compared there
    assert ruled("mathvista", "official", letters, "C").right
    assert ruled("mathvista", "official", zero, "0").right
    assert ruled("mathvista", "vlmevalkit", zero, "0").by == "nobody"
    assert ruled("mathvista", "vlmevalkit", zero, "0", "0").right
    assert ruled("mathvista", "official", files.MATHVISTA[3], "x", "-4.26").normalised == "-4.3"


def test_mmmu_pro_draws_by_the_id_and_never_reaches_an_option_that_is_not_there() -> None:
    twelve, nested, letters, _ = files.MMMU
    assert ruled("mmmu-pro", "official", twelve, "Answer: F").right
    draws = {ruled("mmmu-pro", "official", letters, "no idea").normalised for _ in range(5)}
    assert len(draws) == 1
    assert draws <= {"A", "B", "C"}
    assert ruled("mmmu-pro", "official", nested, "Answer: B").right is False
    assert mmmu_pro.parse("(A) first, then (C), so (B)", ["x", "y", "z"]) == "B"
    assert mmmu_pro.parse("it is certainly the banana, I am sure", ["kiwi", "banana"]) == "B"
    assert mmmu_pro.last_line("Steps.\nAnswer: $B\n") == "B"
    assert mmmu_pro.last_line("Steps.\nAnswer: B or C") == " B or C"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("Yes, it is.", "Yes"), ("'Yes'", "Unknown"), ("no", "No"), ("yes and no", "Unknown"),
        ("yes:", "Unknown"), (". " * 40 + "yes.", "Unknown"), ("It is not so", "Unknown"),
    ],
)  # fmt: skip
def test_the_yes_no_rule_keeps_its_quirks(text: str, word: str) -> None:
    assert vlmevalkit.yes_no(text) == word


def test_answer_tags_are_read_as_the_paper_does() -> None:
    assert extract("<answer>A</answer> or <answer> B </answer>") == "B"
    assert extract("thoughts</answer> more</answer>") == "thoughts"
    assert extract("<answer>B") == "Failed to extract."
    assert truth_of("18", ["16", "17", "18", "18"]) == "C"
    assert truth_of("z", list("abcdefghijkz")) == "z"  # beyond J there is no letter
    row = {"gt_answer": "1"}
    assert ruled("hallusionbench", "openvlthinker", row, "<answer>yes</answer>").right


def test_the_judge_of_the_paper_reads_yes_after_judgement() -> None:
    row = {"answer": "B"}
    text = "<answer>B)</answer>"
    assert ruled("mathverse", "openvlthinker", row, text, "Same.\nJudgement: Yes").right
    assert ruled("mathverse", "openvlthinker", row, text, "No").right is False
    assert ruled("mathverse", "openvlthinker", row, text, "I think yes").right is None
    assert ruled("mathverse", "openvlthinker", row, "<answer>B</answer>").right


def test_emmas_open_answers_are_judged_between_marks() -> None:
    row = {"type": "Open-ended", "options": None, "answer": "3"}
    good = "[Begin Correctness]Yes[End Correctness][Begin Reason]same[End Reason]"
    assert ruled("emma", "vlmevalkit", row, "three", "what?", good).right
    assert ruled("emma", "vlmevalkit", row, "three", "a", "b", "c").right is False


def test_thoughts_end_at_the_last_tag() -> None:
    assert without_thoughts("<think>a</think>b</think> c") == " c"
    assert without_thoughts("<think>never closed") == "<think>never closed"
    assert boxed("\\boxed{a{b}c} \\boxed{open") == ["a{b}c"]
    assert distance("kitten", "sitting") == 3


@pytest.mark.parametrize(
    ("truth", "response", "verdict"),
    [
        (PlainTruth("B", ("12", "15")), "So \\boxed{15}", True),
        (PlainTruth("B", ("12", "15")), "<answer>(A) 12</answer>", False),
        (PlainTruth("B", ("12", "15")), "It may be the first or the second, or both.", None),
        (PlainTruth("12"), "Therefore\nAnswer: 12.0 ", True),
        (PlainTruth("12"), "\\boxed{12^{\\circ}}", True),
        (PlainTruth("12"), "\\boxed{x}", None),
        (PlainTruth("C", is_letter=True), "C", True),
        (PlainTruth("Yes", yes_no=True), "**Yes**", True),
        (PlainTruth("No", yes_no=True), "Perhaps.", None),
    ],
)  # fmt: skip
def test_plain_verdicts_abstain_unless_an_answer_is_plain(
    truth: PlainTruth, response: str, verdict: bool | None
) -> None:
    assert plain_verdict(truth, response) is verdict


def test_a_rule_that_asks_is_run_again_with_the_replies() -> None:
    rule = BENCHMARKS["hallusionbench"].rules()["official"]
    row = {"category": "VS", "figure_id": "0", "gt_answer": "1"}
    assert rule_on(rule, row, "None.") == Ask("conflict")
    unclear = rule_on(rule, row, "None.", ["unclear"])
    assert isinstance(unclear, Ruling)
    assert unclear.right  # without a figure, not knowing is right
