"""Levels of difficulty: z-scores, exact 1-D k-means, pass rates."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from ovlt.data.mixture.difficulty import (
    error_rates,
    kmeans_1d,
    main,
    question_level,
    source_levels,
    source_scores,
    z_scores,
)


def spread(values: list[float], labels: list[int]) -> float:
    clusters = [[v for v, c in zip(values, labels, strict=True) if c == k] for k in set(labels)]
    return sum(float(np.var(c)) * len(c) for c in clusters)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_kmeans_is_the_best_of_all_ranges(k: int) -> None:
    rng = np.random.default_rng(k)
    for n in range(k, 10):
        values = (1e8 + rng.normal(size=n)).tolist()  # a far mean must not blur it
        labels = kmeans_1d(values, k)
        order = np.argsort(values)
        best = min(
            spread([values[i] for i in order], np.searchsorted(cuts, range(n), "right").tolist())
            for cuts in itertools.combinations(range(1, n), k - 1)
        )
        assert spread(values, labels) == pytest.approx(best, rel=1e-6, abs=1e-9)
        assert [labels[i] for i in order] == sorted(labels)
        assert set(labels) == set(range(k))


def test_z_scores() -> None:
    scores = z_scores({"a": 1.0, "b": 2.0, "c": 6.0})
    assert sum(scores.values()) == pytest.approx(0)
    assert np.std(list(scores.values())) == pytest.approx(1)
    assert scores["c"] == pytest.approx(3 / np.std([1, 2, 6]))
    assert z_scores({"a": 2.0, "b": 2.0}) == {"a": 0.0, "b": 0.0}


def test_sources_fall_into_three_levels_by_both_measures() -> None:
    ratings = {"iconqa": 2.0, "tabmwp": 2.5, "clevr": 5.0, "geos": 8.5, "geometry3k": 8.0}
    errors = {"iconqa": 0.2, "tabmwp": 0.15, "clevr": 0.4, "geos": 0.7, "geometry3k": 0.75}
    levels = source_levels(ratings, errors)
    assert levels == {
        "iconqa": "easy",
        "tabmwp": "easy",
        "clevr": "medium",
        "geos": "hard",
        "geometry3k": "hard",
    }
    mean = (z_scores(ratings)["geos"] + z_scores(errors)["geos"]) / 2
    assert source_scores(ratings, errors)["geos"] == pytest.approx(mean)
    # a source with one measure only is placed by that one
    assert source_levels(ratings, {k: v for k, v in errors.items() if k != "clevr"}) == levels
    with pytest.raises(ValueError, match="give a rating or an error_rate to at least three"):
        source_levels({"a": 1.0, "b": 2.0}, {})


def test_a_question_by_its_pass_rate() -> None:
    rates = [0, 1 / 4, 1 / 3, 3 / 8, 5 / 8, 2 / 3, 1]
    expected = ["hard"] * 3 + ["medium"] * 2 + ["easy"] * 2
    assert [question_level(rate) for rate in rates] == expected
    with pytest.raises(ValueError, match=r"pass_rate 1.5 is not between 0 and 1"):
        question_level(1.5)


def test_error_rates_of_measured_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"source": source, "pass_rate": rate, "problem": "?"}
        for source, rates in {"a": [1, 0.5], "b": [0.25, 0.25], "c": [0.5, None]}.items()
        for rate in rates
    ]
    assert error_rates(rows) == {"a": (2, 0.25), "b": (2, 0.75), "c": (1, 0.5)}
    with pytest.raises(ValueError, match="no row has a number in a 'pass_rate' column"):
        error_rates([{"source": "a"}])
    path = tmp_path / "r.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    main([str(path)])
    assert "| a | 2 | 0.250 | easy | 1 | 1 | 0 |" in capsys.readouterr().out
