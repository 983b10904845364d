"""Pass rates, lengths and words of a distillation."""

from __future__ import annotations

import itertools

import pytest

from ovlt.distill.summary import histogram, keyword_rates, lines, pass_at, pass_rates
from ovlt.evaluate.keywords import KEYWORDS


@pytest.mark.parametrize(("n", "c"), [(4, 0), (4, 1), (4, 4), (7, 3)])
@pytest.mark.parametrize("k", [1, 2, 4])
def test_pass_at_k_is_the_mean_over_all_choices(n: int, c: int, k: int) -> None:
    right = [i < c for i in range(n)]
    choices = list(itertools.combinations(right, k))
    assert pass_at(k, n, c) == pytest.approx(sum(map(any, choices)) / len(choices))


def test_pass_at_more_than_was_sampled_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 8 samples"):
        pass_at(8, 4, 2)


def test_pass_rates_by_source_and_over_all() -> None:
    table = pass_rates([("maps", 4, 4), ("charts", 4, 0), ("charts", 4, 1)])
    assert list(table) == ["charts", "maps", "all"]
    assert table["charts"] == {"questions": 2, "pass@1": 0.125, "pass@2": 0.25, "pass@4": 0.5}
    assert table["all"]["pass@1"] == pytest.approx(5 / 12)
    assert list(pass_rates([("x", 2, 1)])["x"]) == ["questions", "pass@1", "pass@2"]


def test_histogram_holds_every_length_once() -> None:
    lengths = [0, 3, 9, 10, 57, 99]
    bins = histogram(lengths)
    assert sum(count for _, _, count in bins) == len(lengths)
    for low, high, count in bins:
        assert count == sum(low <= length < high for length in lengths)
    assert histogram([]) == []
    assert histogram([5]) == [(0, 1, 0), *[(i, i + 1, int(i == 5)) for i in range(1, 6)]]


def test_keywords_are_whole_words_in_any_case() -> None:
    rates = keyword_rates(["Wait. But wait, the waiter checks.", "Check."])
    assert rates == dict.fromkeys(KEYWORDS, 0.0) | {"wait": 1.0, "check": 0.5}
    assert keyword_rates([]) == dict.fromkeys(KEYWORDS, 0.0)


def test_the_lines_for_people_say_all_of_it() -> None:
    figures = {
        "funnel": [(1300, "questions"), (2, "kept")],
        "dropped": [(1298, "no sample is correct")],
        "pass": pass_rates([("maps", 4, 1)]),
        "words": histogram([3, 5]),
        "keywords": keyword_rates(["Wait, wait."]),
    }
    text = "\n".join(lines(figures))
    for part in (
        "maybe 0.00",
        "wait 2.00",
        "1,300  questions",
        "1,298  no sample",
        "maps: 1, 25.0%, 50.0%, 100.0%",
        "##",
    ):
        assert part in text
