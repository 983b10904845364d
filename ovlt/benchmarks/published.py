"""Published scores of base models, and whether a result reproduces one (``--expect``).

A measured number agrees if it lies within the published one's binomial 95 % interval plus what the
source leaves unsaid: nothing for the same harness and settings, three points for a vendor's report.
Different metrics (HallusionBench accuracy and its mean) are never compared.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from ovlt.benchmarks.stats import wilson_ci95

_VENDOR = 0.03


@dataclass(frozen=True)
class PublishedScore:
    """One printed number: percent of ``of`` questions, and how far another harness may lie off."""

    benchmark: str
    split: str
    percent: float
    of: int
    source: str
    metric: str = "accuracy"
    style: str = ""  # whose harness measured it, "" if unsaid
    allowance: float = _VENDOR


_QWEN25 = "Qwen2.5-VL report, Table 3"
_PAPER = "OpenVLThinker, Table 1 (its harness: greedy, 2,048 tokens, boxed suffix)"
_QWEN3 = "Qwen3-VL report, Table 4"


def _rows(
    source: str, values: tuple[float | None, ...], places: tuple[tuple[str, str, int, str], ...],
    *, style: str = "",
) -> tuple[PublishedScore, ...]:  # fmt: skip
    return tuple(
        PublishedScore(name, split, value, of, source, metric, style)
        for value, (name, split, of, metric) in zip(values, places, strict=True)
        if value is not None
    )


_VENDORS = (
    ("mathvista", "testmini", 1000, "accuracy"),
    ("mathverse", "testmini", 3940, "accuracy"),
    ("mathvision", "test", 3040, "accuracy"),
    ("mmmu-pro", "overall", 1730, "accuracy"),
    ("hallusionbench", "image", 951, "mean"),
)
_PAPERS = (
    ("mathvista", "testmini", 1000, "accuracy"),
    ("mathverse", "testmini", 3940, "accuracy"),
    ("mathvision", "test", 3040, "accuracy"),
    ("mathvision", "testmini", 304, "accuracy"),
    ("emma", "test", 2788, "accuracy"),
    ("hallusionbench", "image", 951, "accuracy"),
)
PUBLISHED: dict[str, tuple[PublishedScore, ...]] = {
    "qwen2.5-vl-3b": _rows(_QWEN25, (62.3, 47.6, 21.2, 31.56, 46.3), _VENDORS),
    "qwen2.5-vl-7b": (
        *_rows(_PAPER, (68.5, 46.8, 24.0, 27.6, 24.4, 67.5), _PAPERS, style="openvlthinker"),
        *_rows(_QWEN25, (68.2, 49.2, 25.07, 38.3, 52.9), _VENDORS),
    ),
    "openvlthinker-7b": _rows(
        "OpenVLThinker, Table 1",
        (72.3, 50.3, 25.9, None, 26.8, 69.1),
        _PAPERS,
        style="openvlthinker",
    ),
    "qwen3-vl-4b-instruct": _rows(_QWEN3, (73.7, 46.8, 51.6, 53.2, 57.6), _VENDORS),
    "qwen3-vl-4b-thinking": _rows(_QWEN3, (79.5, 75.2, 60.0, 57.0, 64.1), _VENDORS),
    "qwen3-vl-8b-instruct": _rows(_QWEN3, (77.2, 62.1, 53.9, 55.9, 61.1), _VENDORS),
    "qwen3-vl-8b-thinking": _rows(_QWEN3, (81.4, 77.7, 62.7, 60.4, 65.4), _VENDORS),
    "qwen3.5-4b": _rows("Qwen3.5 model card", (85.1, None, 74.6, 66.3, 65.0), _VENDORS),
}


def published_for(model: str) -> tuple[PublishedScore, ...]:
    """Return the printed scores of a model. Raises ValueError on an unknown name."""
    name = model.lower()
    if name not in PUBLISHED:
        near = difflib.get_close_matches(name, PUBLISHED, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(
            f"no published scores of {model!r} are known; {hint}There are: {', '.join(PUBLISHED)}"
        )
    return PUBLISHED[name]


def expected(
    model: str, benchmark: str, split: str, style: str, numbers: dict[str, float]
) -> list[str]:
    """Say for each printed score of this benchmark whether a result reproduces it.

    ``numbers``: metric -> measured value in [0, 1].
    """
    lines: list[str] = []
    for score in published_for(model):
        if (score.benchmark, score.split) != (benchmark, split) or score.metric not in numbers:
            continue
        value, printed = numbers[score.metric], score.percent / 100
        low, high = wilson_ci95(round(printed * score.of), score.of)
        allowance = 0.0 if score.style == style else score.allowance
        good = low - allowance <= value <= high + allowance
        lines.append(
            f"{'reproduced' if good else 'NOT reproduced'}: {benchmark} {score.metric} "
            f"{100 * value:.1f} %, published {score.percent} % ({score.source}), agreement is "
            f"{100 * (low - allowance):.1f} to {100 * (high + allowance):.1f}"
            + (f", of which {100 * allowance:.0f} points for another harness" if allowance else "")
        )
    return lines or [f"no published score of {model} for {benchmark} ({split}) to compare with"]
