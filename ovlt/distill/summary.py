"""What came of a distillation: the funnel, pass rates by source, lengths, words of reflection."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from ovlt.evaluate.keywords import KEYWORDS, keyword_counts


def pass_at(k: int, samples: int, correct: int) -> float:
    """Probability that one of k samples is correct, without bias from ``samples`` >= k of them:
    1 - C(n - c, k) / C(n, k) (arXiv 2107.03374, eq. 1)."""
    if k > samples:
        raise ValueError(f"pass@{k} needs at least {k} samples of a question, not {samples}")
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def pass_rates(
    counts: Iterable[tuple[str, int, int]], ks: Sequence[int] = (1, 2, 4)
) -> dict[str, dict[str, float]]:
    """``(source, samples, correct)`` of each question -> by source and "all": questions, pass@k."""
    by_source: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for source, samples, correct in counts:
        for name in (source, "all"):
            by_source[name].append((samples, correct))
    table = {}
    for name, rows in sorted(by_source.items(), key=lambda item: (item[0] == "all", item[0])):
        fewest = min(samples for samples, _ in rows)
        table[name] = {"questions": float(len(rows))} | {
            f"pass@{k}": sum(pass_at(k, *row) for row in rows) / len(rows)
            for k in ks
            if k <= fewest
        }
    return table


def histogram(lengths: Sequence[int], bins: int = 10) -> list[tuple[int, int, int]]:
    """(from, up to, how many) of equal bins over lengths; empty for none."""
    if not lengths:
        return []
    width = max(1, -(-(max(lengths) + 1) // bins))
    found = Counter(length // width for length in lengths)
    return [(b * width, (b + 1) * width, found[b]) for b in range(max(found) + 1)]


def keyword_rates(texts: Sequence[str]) -> dict[str, float]:
    """Occurrences of each of KEYWORDS per text, whole words in any case."""
    totals = [sum(column) for column in zip(*map(keyword_counts, texts), strict=True)]
    return {
        word: total / max(1, len(texts))
        for word, total in zip(KEYWORDS, totals or [0] * len(KEYWORDS), strict=True)
    }


def lines(summary: dict[str, Any]) -> list[str]:
    """The summary for people."""
    text = ["funnel:"]
    text += [f"  {count:>8,}  {what}" for count, what in summary["funnel"]]
    if summary["dropped"]:
        text.append("dropped, by reason:")
        text += [f"  {count:>8,}  {reason}" for count, reason in summary["dropped"]]
    if summary["pass"]:
        columns = [name for name in summary["pass"]["all"] if name != "questions"]
        text.append("by source: questions, " + ", ".join(columns))
        text += [
            f"  {source}: {rates['questions']:.0f}, "
            + ", ".join(f"{rates[name]:.1%}" for name in columns if name in rates)
            for source, rates in summary["pass"].items()
        ]
    if summary["words"]:
        most = max(count for _, _, count in summary["words"])
        text.append("words of the reasoning that is kept:")
        text += [
            f"  {low:>6}-{high - 1:<6} {count:>7,} {'#' * round(40 * count / most)}"
            for low, high, count in summary["words"]
        ]
    if any(summary["keywords"].values()):
        rates = (f"{word} {rate:.2f}" for word, rate in summary["keywords"].items())
        text.append("in a trace that is kept, times of each word: " + ", ".join(rates))
    return text
