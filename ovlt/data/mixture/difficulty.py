"""How hard a source is, and how hard a question is.

By source, as OpenVLThinker's second version does: the z-score of a rating (there GPT-4o's, 1 to
10) and that of the base model's error rate, averaged, then 1-D k-means into easy, medium, hard.
By question: the share of a model's own samples that were right.

Print both for a file of rows with a pass_rate column:

    python -m ovlt.data.mixture.difficulty FILE
"""

from __future__ import annotations

import argparse
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ovlt.data.tables import read_table
from ovlt.system.files import read_json

LEVELS = ("easy", "medium", "hard")


def z_scores(values: Mapping[str, float]) -> dict[str, float]:
    """Return (value - mean) / population standard deviation; zeros if all values are equal."""
    if not values:
        return {}
    mean = math.fsum(values.values()) / len(values)
    std = math.sqrt(math.fsum((v - mean) ** 2 for v in values.values()) / len(values))
    return {name: (v - mean) / std if std else 0.0 for name, v in values.items()}


def kmeans_1d(values: Sequence[float], k: int) -> list[int]:
    """Return the cluster of each value, 0 for the lowest: least squares, and exact.

    In one dimension clusters are ranges of the sorted values, and dynamic programming over their
    ends finds the best ones in O(k n^2). Raises ValueError for fewer than k different values.
    """
    if len(set(values)) < k:
        raise ValueError(f"{k} clusters need {k} different values, not {sorted(set(values))}")
    order = sorted(range(len(values)), key=lambda i: values[i])
    mean = math.fsum(values) / len(values)
    centred = [values[i] - mean for i in order]  # so that large sums of squares do not cancel
    first, second = [0.0], [0.0]  # sums of the values, and of their squares, up to each place
    for v in centred:
        first.append(first[-1] + v)
        second.append(second[-1] + v * v)

    def cost(a: int, b: int) -> float:  # squared distances from the mean within [a, b)
        return second[b] - second[a] - (first[b] - first[a]) ** 2 / (b - a)

    n = len(values)
    best = [[math.inf] * (n + 1) for _ in range(k + 1)]
    start = [[0] * (n + 1) for _ in range(k + 1)]
    best[0][0] = 0.0
    for clusters in range(1, k + 1):
        for end in range(clusters, n + 1):
            for begin in range(clusters - 1, end):
                total = best[clusters - 1][begin] + cost(begin, end)
                if total < best[clusters][end]:
                    best[clusters][end], start[clusters][end] = total, begin
    labels, end = [0] * n, n
    for cluster in range(k, 0, -1):
        begin = start[cluster][end]
        for place in range(begin, end):
            labels[order[place]] = cluster - 1
        end = begin
    return labels


def source_scores(
    ratings: Mapping[str, float], error_rates: Mapping[str, float]
) -> dict[str, float]:
    """Return the mean of the z-scores that each source has; higher is harder."""
    parts = [z_scores(ratings), z_scores(error_rates)]
    scores = {}
    for name in dict.fromkeys([*ratings, *error_rates]):
        measures = [part[name] for part in parts if name in part]
        scores[name] = sum(measures) / len(measures)
    return scores


def source_levels(ratings: Mapping[str, float], error_rates: Mapping[str, float]) -> dict[str, str]:
    """Return easy, medium or hard for each source. Raises ValueError below three scores."""
    scores = source_scores(ratings, error_rates)
    try:
        labels = kmeans_1d(list(scores.values()), len(LEVELS))
    except ValueError as error:
        raise ValueError(
            f"three levels of difficulty cannot be told apart ({error}): give a rating or an "
            "error_rate to at least three sources"
        ) from None
    return {name: LEVELS[label] for name, label in zip(scores, labels, strict=True)}


def question_level(pass_rate: float) -> str:
    """Return easy from two thirds right, hard up to one third, medium between them."""
    if not 0 <= pass_rate <= 1:
        raise ValueError(f"pass_rate {pass_rate} is not between 0 and 1")
    return "easy" if pass_rate >= 2 / 3 else "hard" if pass_rate <= 1 / 3 else "medium"


def read_pass_rates(paths: Sequence[str]) -> dict[tuple[str, str], float]:
    """Read files that ``ovlt evaluate`` wrote and return {(source, id): share of right samples}.

    Without samples the share is that of the greedy answer, 0 or 1. If several files measure a
    question, the last one counts. Raises ValueError: a file is missing, is no evaluation, or
    measures two questions of one name.
    """
    rates: dict[tuple[str, str], float] = {}
    for path in paths:
        try:
            questions = read_json(Path(path))["questions"]
            shares = questions.get("sampled", questions["greedy"])
            names = list(zip(map(str, questions["source"]), map(str, questions["id"]), strict=True))
            measured = dict(zip(names, map(float, shares), strict=True))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path} is not the evaluation.json of ovlt evaluate ({type(error).__name__}: "
                f"{error}): measure a model with --evaluate.data=FILE OF QUESTIONS first"
            ) from None
        if len(measured) < len(names):
            source, id = Counter(names).most_common(1)[0][0]
            raise ValueError(
                f"{path} measures several questions of {source} with the id {id!r}, so there is no "
                "telling which is which: measure the model again, which gives each an id of its own"
            )
        rates |= measured
    return rates


def error_rates(rows: Iterable[Mapping[str, object]]) -> dict[str, tuple[int, float]]:
    """Return {source: (questions, error rate)} of rows with ``pass_rate``.

    Raises ValueError if no row has one.
    """
    count: Counter[str] = Counter()
    passed: defaultdict[str, float] = defaultdict(float)
    for row in rows:
        rate = row.get("pass_rate")
        if isinstance(rate, int | float):
            name = str(row.get("source") or "")
            count[name] += 1
            passed[name] += rate
    if not count:
        raise ValueError(
            "no row has a number in a 'pass_rate' column: measure a model with ovlt evaluate, and "
            "prepare the file with mixture.pass_rates"
        )
    return {name: (n, 1 - passed[name] / n) for name, n in count.items()}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m ovlt.data.mixture.difficulty",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", help="rows with the columns source and pass_rate")
    args = parser.parse_args(argv)
    try:
        rows = [
            {name: row.get(name) for name in ("source", "pass_rate")}
            for row in read_table(args.file)
            if isinstance(row, dict)
        ]
        rates = error_rates(rows)
        measured = {name: rate for name, (_, rate) in rates.items()}
        levels = source_levels({}, measured) if len(set(measured.values())) >= 3 else {}
    except ValueError as error:
        parser.error(str(error))
    by_level: dict[str, Counter[str]] = {name: Counter() for name in rates}
    for row in rows:
        if isinstance(row["pass_rate"], int | float):
            by_level[str(row["source"] or "")][question_level(row["pass_rate"])] += 1
    print("| source | questions | error rate | level | easy | medium | hard |")
    print("|---|---|---|---|---|---|---|")
    for name, (n, rate) in sorted(rates.items(), key=lambda item: item[1][1]):
        counts = " | ".join(str(by_level[name][level]) for level in LEVELS)
        print(f"| {name} | {n} | {rate:.3f} | {levels.get(name, '-')} | {counts} |")


if __name__ == "__main__":
    main()
