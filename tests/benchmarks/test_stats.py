"""Intervals cover what they claim to cover, and misuse is answered with the mend."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ovlt.benchmarks.stats import mean_ci95, paired_difference, wilson_ci95


def test_mean_interval_by_hand():
    mean, half = mean_ci95([0.0, 0.5, 1.0, 0.5])
    assert mean == 0.5
    assert half == pytest.approx(1.959964 * math.sqrt(1 / 6) / 2)
    assert mean_ci95([0.25]) == (0.25, 1.0)
    assert mean_ci95(np.float32([1, 1, 1]))[1] == 0.0


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [  # the roots p of (p - k/n)^2 = z^2 p (1 - p) / n
        (7, 10, 0.396778, 0.892209),
        (0, 17, 0.0, 0.184318),
        (17, 17, 0.815682, 1.0),
        (1, 1, 0.206549, 1.0),
    ],
)
def test_wilson_by_hand(successes, n, low, high):
    got = wilson_ci95(successes, n)
    assert got == pytest.approx((low, high), abs=1e-6)
    assert 0 <= got[0] <= successes / n <= got[1] <= 1


def test_intervals_cover_the_truth():
    rng = np.random.default_rng(0)
    questions, runs, truth = 57, 2000, 0.83
    hits = rng.binomial(questions, truth, runs)
    intervals = [wilson_ci95(k, questions) for k in hits.tolist()]
    inside = np.mean([low <= truth <= high for low, high in intervals])
    assert 0.93 < inside < 0.98
    skill = rng.beta(4, 2, (runs, questions))  # questions differ; 4 samples of each
    means = rng.binomial(4, skill) / 4
    inside = np.mean([abs(m - 4 / 6) <= h for m, h in (mean_ci95(row) for row in means.tolist())])
    assert 0.925 < inside < 0.97


def test_pairing_cancels_the_questions():
    rng = np.random.default_rng(1)
    hard = rng.random(301)
    a, b = np.clip(hard + 0.05, 0, 1).tolist(), hard.tolist()
    mean, half = paired_difference(a, b)
    assert mean == pytest.approx(np.mean(a) - np.mean(b))
    assert half < 0.2 * mean_ci95(a)[1]
    back, same = paired_difference(b, a)
    assert (back, same) == pytest.approx((-mean, half))
    assert paired_difference([1], [0]) == (1.0, 2.0)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: mean_ci95([]), "empty"),
        (lambda: mean_ci95([0.5, float("nan")]), r"values\[1\]"),
        (lambda: mean_ci95([62.5]), "not percent"),
        (lambda: paired_difference([1, 0], [1]), "same question ids"),
        (lambda: paired_difference([], []), "empty"),
        (lambda: wilson_ci95(0, 0), "at least one"),
        (lambda: wilson_ci95(5, 4), "do not fit"),
        (lambda: wilson_ci95(-1, 4), "do not fit"),
        (lambda: wilson_ci95(0.5, 4), "integers"),
    ],
)
def test_misuse_is_explained(call, says):
    with pytest.raises(ValueError, match=says):
        call()
