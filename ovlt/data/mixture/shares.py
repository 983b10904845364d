"""Sources and the number of questions of each: the published mixtures, shares and caps."""

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
# (difficulty: Table 4). Shares within a mixture are not published; they are even unless a comment
# says otherwise.
MIXES = {
    "v1-sft1": Mix(25_000, _even(*_POOL), about="Table 2, SFT of iteration 1"),
    "v1-grpo1": Mix(5_000, _even(*_RL), about="Table 2, GRPO of iteration 1"),
    "v1-sft2": Mix(5_000, _even(*_WIDE), about="Table 2, SFT of iteration 2"),
    "v1-grpo2": Mix(5_000, _even(*_RL), about="Table 2, GRPO of iteration 2, as in iteration 1"),
    "v1-sft3": Mix(5_000, _even(*_WIDE), about="Table 2, SFT of iteration 3"),
    # The paper says "larger share" of the two without a number; twice is our choice.
    "v1-grpo3": Mix(
        5_000,
        _even(*_RL) | {"geometry3k": 2.0, "super_clevr": 2.0},
        about="Table 2, GRPO of iteration 3, more Geometry3K and Super-CLEVR",
    ),
    "v2-seed": Mix(7_000, _even(*_EASY, *_MEDIUM, *_HARD), 500, "500 of each of 14 sources"),
    "v2-medium": Mix(3_000, _even(*_MEDIUM), about="GRPO on the five medium sources"),
    # The paper says "the 3 most difficult sources" without names; here all four hard ones.
    "v2-hard": Mix(6_000, _even(*_HARD), about="GRPO on the hard sources"),
}


@dataclass(frozen=True)
class Entry:
    """A source that takes part in a mixture."""

    config: MixtureSourceConfig
    share: float  # its weight
    cap: int  # most questions; 0: no cap

    @property
    def name(self) -> str:
        return self.config.source


def entries(mixture: MixtureConfig) -> tuple[list[Entry], int]:
    """Return the sources that take part, and the total number of questions (0: up to the caps).

    A named mixture takes the sources it names; the recipe may list more. Raises ValueError: no
    source, an unknown name, a named source without a path, a source given twice.
    """
    if mixture.name and mixture.name not in MIXES:
        raise ValueError(f"unknown mixture.name '{mixture.name}': choose among {', '.join(MIXES)}")
    mix = MIXES[mixture.name] if mixture.name else Mix(0, {})
    listed = _listed(mixture, mix)
    chosen = []
    for source in listed:
        if not source.path:
            raise ValueError(f"mixture.sources: '{source.source}' has no path")
        share = source.share if source.share is not None else mix.shares.get(source.source, 1.0)
        chosen.append(Entry(source, share, source.cap if source.cap is not None else mix.cap))
    if not any(entry.share > 0 for entry in chosen):
        raise ValueError("mixture.sources: every share is 0")
    return chosen, mixture.total or mix.total


def _listed(mixture: MixtureConfig, mix: Mix) -> tuple[MixtureSourceConfig, ...]:
    """Return the sources of the recipe, for a named mixture those it names. Raises ValueError."""
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
    return listed


def quotas(total: int, shares: Sequence[float], limits: Sequence[int]) -> list[int]:
    """Return how many of each: by shares, none above its limit; the others fill what one lacks.

    ``total`` 0 takes the limit of each that has a share. The sum is ``total``, or that of the
    limits if it is less.
    """
    result = [0] * len(shares)
    pending = [i for i, share in enumerate(shares) if share > 0]
    if not total:
        for i in pending:
            result[i] = limits[i]
        return result
    rest = total
    while pending:  # those that cannot fill their share give all they have
        weight = math.fsum(shares[i] for i in pending)
        full = [i for i in pending if limits[i] <= rest * shares[i] / weight]
        if not full:
            break
        for i in full:
            result[i] = limits[i]
        rest -= sum(limits[i] for i in full)
        pending = [i for i in pending if i not in full]
    if pending:  # the others share the rest; the largest fractions are rounded up
        weight = math.fsum(shares[i] for i in pending)
        exact = {i: rest * shares[i] / weight for i in pending}
        for i in pending:
            result[i] = math.floor(exact[i])
        left = rest - sum(result[i] for i in pending)
        for i in sorted(pending, key=lambda i: result[i] - exact[i])[:left]:
            result[i] += 1
    return result
