"""The benchmarks by name, and what a user may ask for."""

from __future__ import annotations

import difflib

from ovlt.benchmarks.emma import Emma, EmmaMini
from ovlt.benchmarks.hallusionbench import HallusionBench
from ovlt.benchmarks.items import STYLES, BenchmarkTask, StyleName
from ovlt.benchmarks.mathverse import MathVerse
from ovlt.benchmarks.mathvision import MathVision
from ovlt.benchmarks.mathvista import MathVista
from ovlt.benchmarks.mmmu_pro import MmmuPro

BENCHMARKS: dict[str, BenchmarkTask] = {
    benchmark.name: benchmark
    for benchmark in (
        MathVista(), MathVerse(), MathVision(), Emma(), EmmaMini(), HallusionBench(), MmmuPro(),
    )
}  # fmt: skip


def chosen(text: str) -> list[tuple[BenchmarkTask, str]]:
    """Return benchmark and split of each "name" or "name:split" of a list with commas.

    A name alone is its first split, or those whose mean is published. Raises ValueError.
    """
    pairs: list[tuple[BenchmarkTask, str]] = []
    for word in filter(None, map(str.strip, text.split(","))):
        name, _, split = word.partition(":")
        if name not in BENCHMARKS:
            raise ValueError(f"there is no benchmark {name!r}{_nearest(name, list(BENCHMARKS))}")
        benchmark = BENCHMARKS[name]
        if split and split not in benchmark.splits:
            raise ValueError(
                f"{name} has no split {split!r}{_nearest(split, list(benchmark.splits))}"
            )
        splits = (split,) if split else benchmark.combined or (next(iter(benchmark.splits)),)
        pairs += [(benchmark, part) for part in splits]
    if not pairs:
        raise ValueError(f"no benchmark is named; there are: {', '.join(BENCHMARKS)}")
    return list(dict.fromkeys(pairs))


def style_named(text: str) -> StyleName:
    """Return a style by name. Raises ValueError."""
    for style in STYLES:
        if style == text:
            return style
    raise ValueError(f"there is no style {text!r}{_nearest(text, list(STYLES))}")


def checked_settings(benchmark: BenchmarkTask, settings: frozenset[str]) -> frozenset[str]:
    """Return the settings that the benchmark knows. Raises ValueError on one that none knows."""
    known = {name for b in BENCHMARKS.values() for name in b.settings}
    for setting in settings:
        if _family(setting) not in map(_family, known):
            raise ValueError(f"there is no setting {setting!r}{_nearest(setting, sorted(known))}")
    own = set(map(_family, benchmark.settings))
    return frozenset(setting for setting in settings if _family(setting) in own)


def _family(setting: str) -> str:
    return setting.partition("=")[0]


def _nearest(name: str, names: list[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}? " if near else "; "
    return f"{hint}There are: {', '.join(names)}"
