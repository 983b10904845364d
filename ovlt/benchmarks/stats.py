"""Intervals and paired differences for accuracies. The unit is always the question.

The n samples of one question are not independent draws of the model's ability: they share the
question. So sampled accuracy is first averaged inside each question, and intervals are taken over
questions; treating every sample as a trial of its own would make them up to sqrt(n) too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Z95 = 1.959963984540054  # two-sided 95 % point of the standard normal


def mean_ci95(values: Sequence[float]) -> tuple[float, float]:
    """``(mean, half_width)`` of the normal 95 % interval over questions.

    ``values``: one number in [0, 1] per question, e.g. the mean of its n samples. The half width is
    1.96 * s / sqrt(questions) with the unbiased s. A single question says nothing: its half width
    is 1, the whole range. Where every value is 0 or 1 use ``wilson_ci95``, which does not shrink
    to nothing when all questions are right. Raises ValueError on an empty list and on values
    outside [0, 1].
    """
    numbers = _checked(values, "values")
    return _normal_interval(numbers, whole_range=1.0)


def wilson_ci95(successes: int, n: int) -> tuple[float, float]:
    """``(low, high)`` of the Wilson score 95 % interval for ``successes`` out of ``n`` questions.

    Wilson (1927), JASA 22:209. Raises ValueError unless 0 <= successes <= n and n >= 1.
    """
    if int(n) != n or int(successes) != successes:
        raise ValueError(f"wilson_ci95 counts questions; got {successes!r} of {n!r}: pass integers")
    if n < 1:
        raise ValueError("wilson_ci95 needs at least one question; n is 0 or less")
    if not 0 <= successes <= n:
        raise ValueError(f"wilson_ci95: {successes} successes do not fit into {n} questions")
    rate, z2 = successes / n, Z95 * Z95
    centre = (rate + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(rate * (1 - rate) / n + z2 / (4 * n * n))
    # At the two ends the formula is exactly 0 or 1; only rounding would miss it.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return low, high


def paired_difference(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    """``(mean of a - b, half_width)``: normal 95 % interval over questions answered by both.

    ``a[i]`` and ``b[i]`` in [0, 1] belong to the same question, so how hard the questions are
    cancels; the interval is much narrower than that of two separate accuracies. A single question
    has half width 2, the whole range. Raises ValueError on unequal lengths and empty lists.
    """
    if len(a) != len(b):
        raise ValueError(
            f"paired_difference compares question by question, but got {len(a)} and {len(b)} "
            "values: pass both lists in the order of the same question ids"
        )
    left, right = _checked(a, "a"), _checked(b, "b")
    return _normal_interval([x - y for x, y in zip(left, right, strict=True)], whole_range=2.0)


def bootstrap_ci95(
    parts: Sequence[tuple[Sequence[float], Sequence[str]]], resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """``(low, high)`` of the percentile bootstrap 95 % interval for a mean of several accuracies.

    Each part holds its units and the cluster of each (none: every unit is its own). Clusters are
    drawn with replacement, and with one all its units in every part, because they share questions.
    Raises ValueError on an empty part.
    """
    if not parts or any(not units for units, _ in parts):
        raise ValueError("bootstrap_ci95: a part is empty: an interval needs at least one question")
    labels = [list(names) or [str(i) for i in range(len(units))] for units, names in parts]
    places = {name: i for i, name in enumerate(dict.fromkeys(n for part in labels for n in part))}
    sums, counts = (np.zeros((len(parts), len(places))) for _ in range(2))
    for part, ((units, _), names) in enumerate(zip(parts, labels, strict=True)):
        np.add.at(sums[part], [places[name] for name in names], units)
        np.add.at(counts[part], [places[name] for name in names], 1.0)
    random = np.random.default_rng(seed)
    weights = random.multinomial(len(places), [1 / len(places)] * len(places), resamples)
    totals = counts @ weights.T  # [parts, resamples]
    shares = np.divide(sums @ weights.T, totals, out=np.zeros_like(totals), where=totals > 0)
    low, high = np.quantile(shares.mean(axis=0), [0.025, 0.975])
    if low == high and low in (0.0, 1.0):  # all alike: the bootstrap sees no way to differ
        return wilson_ci95(int(low) * len(places), len(places))
    return float(low), float(high)


def mcnemar(only_a: int, only_b: int) -> float:
    """Return McNemar's two-sided p-value for questions that only one of two models gets right.

    Exact (binomial) up to a thousand such questions, the chi-squared with continuity correction
    beyond; 1 if there are none. McNemar (1947), Psychometrika 12:153.
    """
    total, few = only_a + only_b, min(only_a, only_b)
    if total == 0:
        return 1.0
    if total <= 1000:
        tail = sum(math.comb(total, k) for k in range(few + 1))
        return min(1.0, 2 * tail / 2**total)
    statistic = max(0.0, abs(only_a - only_b) - 1) ** 2 / total
    return math.erfc(math.sqrt(statistic / 2))


def pass_at_k(right: int, n: int, k: int) -> float:
    """Return the unbiased estimate that one of k samples is right, given ``right`` of n (k <= n).

    Chen et al., arXiv 2107.03374, equation 1.
    """
    if not 0 <= right <= n or not 1 <= k <= n:
        raise ValueError(f"pass_at_k: {right} right of {n} samples, k = {k}: give 1 <= k <= n")
    return 1.0 - math.comb(n - right, k) / math.comb(n, k)


def _normal_interval(numbers: list[float], whole_range: float) -> tuple[float, float]:
    count = len(numbers)
    mean = math.fsum(numbers) / count
    if count == 1:
        return mean, whole_range
    variance = math.fsum((x - mean) ** 2 for x in numbers) / (count - 1)
    return mean, Z95 * math.sqrt(variance / count)


def _checked(values: Sequence[float], name: str) -> list[float]:
    numbers = [float(x) for x in values]
    if not numbers:
        raise ValueError(f"{name} is empty: an interval needs at least one question")
    for position, x in enumerate(numbers):
        if not 0.0 <= x <= 1.0:  # also refuses NaN
            raise ValueError(
                f"{name}[{position}] is {x}, but a question's accuracy lies in [0, 1]: "
                "pass fractions, not percent or counts"
            )
    return numbers
