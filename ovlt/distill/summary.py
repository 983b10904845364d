"""The figures of a distillation: the funnel, pass rates by source, lengths, words of reasoning."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import TypedDict

from ovlt.evaluate.keywords import KEYWORDS, keyword_counts

# The key "pass" is a keyword of Python, so this is not a class body.
Summary = TypedDict(
    "Summary",
    {
        "funnel": list[tuple[int, str]],  # questions that came so far, and what they have
        "dropped": list[tuple[int, str]],  # questions by the reason, the most frequent first
        "pass": dict[str, dict[str, float]],  # of pass_rates
        "words": list[tuple[int, int, int]],  # of histogram, over the traces that are kept
        "keywords": dict[str, float],  # of keyword_rates, over the traces that are kept
    },
)


def pass_at(k: int, samples: int, correct: int) -> float:
    """Return the unbiased estimate of the probability that one of k samples is correct.

    With ``samples`` n >= k of which c are correct it is 1 - C(n - c, k) / C(n, k)
    (arXiv 2107.03374, eq. 1). Raises ValueError for n < k.
    """
    if k > samples:
        raise ValueError(f"pass@{k} needs at least {k} samples of a question, not {samples}")
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def pass_rates(
    counts: Iterable[tuple[str, int, int]], ks: Sequence[int] = (1, 2, 4)
) -> dict[str, dict[str, float]]:
    """Return the number of questions and each pass@k by source, and for "all" last.

    ``counts`` holds (source, samples, correct) of each question. A k above the fewest samples of a
    question is left out.
    """
    by_source: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for source, samples, correct in counts:
        for name in (source, "all"):
            by_source[name].append((samples, correct))
    table: dict[str, dict[str, float]] = {}
    for name, rows in sorted(by_source.items(), key=lambda item: (item[0] == "all", item[0])):
        fewest = min(samples for samples, _ in rows)
        table[name] = {"questions": float(len(rows))} | {
            f"pass@{k}": sum(pass_at(k, *row) for row in rows) / len(rows)
            for k in ks
            if k <= fewest
        }
    return table


def histogram(lengths: Sequence[int], bins: int = 10) -> list[tuple[int, int, int]]:
    """Return (from, up to, how many) of equal bins over the lengths; empty for none."""
    if not lengths:
        return []
    width = max(1, -(-(max(lengths) + 1) // bins))
    counts = Counter(length // width for length in lengths)
    return [(b * width, (b + 1) * width, counts[b]) for b in range(max(counts) + 1)]


def keyword_rates(texts: Sequence[str]) -> dict[str, float]:
    """Return the occurrences of each of KEYWORDS per text, whole words in any case."""
    totals = [sum(column) for column in zip(*map(keyword_counts, texts), strict=True)]
    return {
        word: total / max(1, len(texts))
        for word, total in zip(KEYWORDS, totals or [0] * len(KEYWORDS), strict=True)
    }


def lines(summary: Summary) -> list[str]:
    """Return the summary as text for people."""
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
