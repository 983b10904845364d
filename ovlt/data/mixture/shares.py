"""Which sources, and how many questions of each: the published mixtures, and shares with caps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ovlt.config import MixtureConfig, MixtureSourceConfig


@dataclass(frozen=True)
class Mix:
    """A published mixture: its size, and the weight of each source."""

    total: int
    shares: dict[str, float]
    cap: int = 0
    about: str = ""


def _even(*names: str) -> dict[str, float]:
    return dict.fromkeys(names, 1.0)


_POOL = ("figureqa", "geos", "geometry3k", "tabmwp", "vizwiz", "ai2d")
_RL = ("geometry3k", "geos", "figureqa", "clevr", "super_clevr")
_WIDE = (*_POOL, "clevr", "super_clevr", "iconqa", "mapqa", "scienceqa")
_EASY = ("chartqa", "iconqa", "vizwiz", "tabmwp", "dvqa")
_MEDIUM = ("figureqa", "clevr", "aokvqa", "super_clevr", "mapqa")
_HARD = ("unigeo", "geos", "geometry3k", "geoqa")

# Sources and totals as published: v1 in Table 2 of arXiv 2503.17352v1, v2 in its third version
# (difficulty: Table 4). Shares within a mixture are not published: even, unless said otherwise.
MIXES = {
    "v1-sft1": Mix(25_000, _even(*_POOL), about="Table 2, SFT of iteration 1"),
    "v1-grpo1": Mix(5_000, _even(*_RL), about="Table 2, GRPO of iteration 1"),
    "v1-sft2": Mix(5_000, _even(*_WIDE), about="Table 2, SFT of iteration 2"),
    "v1-grpo2": Mix(5_000, _even(*_RL), about="Table 2, GRPO of iteration 2, as in iteration 1"),
    "v1-sft3": Mix(5_000, _even(*_WIDE), about="Table 2, SFT of iteration 3"),
    # "larger share" of the two; how much larger is not published, twice is ours
    "v1-grpo3": Mix(
        5_000,
        _even(*_RL) | {"geometry3k": 2.0, "super_clevr": 2.0},
        about="Table 2, GRPO of iteration 3, more Geometry3K and Super-CLEVR",
    ),
    "v2-seed": Mix(7_000, _even(*_EASY, *_MEDIUM, *_HARD), 500, "500 of each of 14 sources"),
    "v2-medium": Mix(3_000, _even(*_MEDIUM), about="GRPO on the five medium sources"),
    # "the 3 most difficult sources", without their names: all four hard ones here
    "v2-hard": Mix(6_000, _even(*_HARD), about="GRPO on the hard sources"),
}


@dataclass(frozen=True)
class Entry:
    """A source of a mixture with its weight and most questions (0: no cap)."""

    config: MixtureSourceConfig
    share: float
    cap: int

    @property
    def name(self) -> str:
        return self.config.source


def entries(mixture: MixtureConfig) -> tuple[list[Entry], int]:
    """The sources that take part, and the total asked for (0: all up to the caps).

    Of a named mixture those it names, wherever else the recipe has paths for. Raises ValueError:
    no source, an unknown name, a named source without a path, a source given twice.
    """
    if mixture.name and mixture.name not in MIXES:
        raise ValueError(f"unknown mixture.name '{mixture.name}': choose among {', '.join(MIXES)}")
    mix = MIXES[mixture.name] if mixture.name else Mix(0, {})
    listed = mixture.sources
    if mixture.name:
        missing = sorted(set(mix.shares) - {source.source for source in listed})
        if missing:
            raise ValueError(
                f"mixture '{mixture.name}' also needs {', '.join(missing)}: give each a "
                "[[mixture.sources]] table with source and path"
            )
        listed = tuple(source for source in listed if source.source in mix.shares)
    if not listed:
        raise ValueError("no sources: give the recipe [[mixture.sources]] tables (source, path)")
    places = [(source.source, source.path, source.split, source.subset) for source in listed]
    twice = sorted({place[0] for place in places if places.count(place) > 1})
    if twice:
        raise ValueError(f"mixture.sources names the same data twice: {', '.join(twice)}")
    chosen = []
    for source in listed:
        if not source.path:
            raise ValueError(f"mixture.sources: '{source.source}' has no path")
        share = source.share if source.share is not None else mix.shares.get(source.source, 1.0)
        chosen.append(Entry(source, share, source.cap if source.cap is not None else mix.cap))
    if not any(entry.share > 0 for entry in chosen):
        raise ValueError("mixture.sources: every share is 0")
    return chosen, mixture.total or mix.total


def quotas(total: int, shares: Sequence[float], limits: Sequence[int]) -> list[int]:
    """How many of each: by shares, none above its limit; what one lacks the others make up.

    ``total`` 0 takes every limit with a share. The sum is ``total`` unless the limits are less.
    """
    result = [0] * len(shares)
    open_ = [i for i, share in enumerate(shares) if share > 0]
    if not total:
        for i in open_:
            result[i] = limits[i]
        return result
    rest = total
    while open_:
        weight = math.fsum(shares[i] for i in open_)
        full = [i for i in open_ if limits[i] <= rest * shares[i] / weight]
        if not full:
            break
        for i in full:
            result[i] = limits[i]
        rest -= sum(limits[i] for i in full)
        open_ = [i for i in open_ if i not in full]
    if open_:
        weight = math.fsum(shares[i] for i in open_)
        exact = {i: rest * shares[i] / weight for i in open_}
        for i in open_:
            result[i] = math.floor(exact[i])
        left = rest - sum(result[i] for i in open_)
        for i in sorted(open_, key=lambda i: result[i] - exact[i])[:left]:
            result[i] += 1
    return result
