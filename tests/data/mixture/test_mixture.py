"""Shares, caps and the published mixtures."""

from __future__ import annotations

import random
from typing import Any

import pytest

from ovlt.config import MixtureConfig
from ovlt.data.mixture.shares import MIXES, entries, quotas
from ovlt.data.readers import SOURCES


def test_quotas_follow_the_shares() -> None:
    assert quotas(100, [1, 1, 2], [999] * 3) == [25, 25, 50]
    assert sum(quotas(100, [1, 1, 1], [999] * 3)) == 100
    assert quotas(100, [1, 0, 1], [999] * 3) == [50, 0, 50]
    assert quotas(0, [1, 0, 5], [7, 8, 9]) == [7, 0, 9]


def test_what_one_source_lacks_the_others_make_up() -> None:
    assert quotas(100, [1, 1, 1], [10, 999, 999]) == [10, 45, 45]
    assert quotas(100, [1, 1, 2], [0, 999, 40]) == [0, 60, 40]
    assert quotas(100, [1, 1], [30, 20]) == [30, 20]


def test_quotas_add_up_within_their_limits_for_any_shares() -> None:
    rng = random.Random(3)
    for _ in range(500):
        n = rng.randint(1, 9)
        shares = [rng.choice([0.1, 1, 1, 3.7]) for _ in range(n)]
        limits = [rng.randint(0, 50) for _ in range(n)]
        total = rng.randint(1, 300)
        got = quotas(total, shares, limits)
        assert all(0 <= g <= limit for g, limit in zip(got, limits, strict=True))
        assert sum(got) == min(total, sum(limits))


def mixture(
    name: str = "", sources: list[dict[str, Any]] | None = None, **keys: Any
) -> MixtureConfig:
    return MixtureConfig.model_validate({"name": name, "sources": sources or [], **keys})


def test_the_published_mixtures_name_known_sources() -> None:
    assert {name for mix in MIXES.values() for name in mix.shares} <= set(SOURCES)
    sizes = {name: mix.total for name, mix in MIXES.items()}
    assert sizes == {
        "v1-sft1": 25_000,
        "v1-grpo1": 5_000,
        "v1-sft2": 5_000,
        "v1-grpo2": 5_000,
        "v1-sft3": 5_000,
        "v1-grpo3": 5_000,
        "v2-seed": 7_000,
        "v2-medium": 3_000,
        "v2-hard": 6_000,
    }
    assert len(MIXES["v2-seed"].shares) == 14


def test_a_named_mixture_takes_its_sources_out_of_those_listed() -> None:
    names = ["chartqa", *MIXES["v1-grpo3"].shares]
    sources: list[dict[str, Any]] = [{"source": name, "path": f"data/{name}"} for name in names]
    sources[-1] |= {"share": 0.5, "cap": 7}
    chosen, total = entries(mixture("v1-grpo3", sources))
    assert total == 5000
    assert [(e.name, e.share, e.cap) for e in chosen] == [
        ("geometry3k", 2.0, 0),
        ("geos", 1.0, 0),
        ("figureqa", 1.0, 0),
        ("clevr", 1.0, 0),
        ("super_clevr", 0.5, 7),
    ]
    assert entries(mixture("v1-grpo3", sources, total=64))[1] == 64
    with pytest.raises(ValueError, match=r"'v1-grpo3' also needs clevr, super_clevr: give each"):
        entries(mixture("v1-grpo3", sources[:-2]))


def test_mistakes_in_the_list_of_sources() -> None:
    with pytest.raises(ValueError, match=r"unknown mixture.name 'v3': choose among v1-sft1"):
        entries(mixture("v3"))
    with pytest.raises(ValueError, match=r"no sources: give the recipe \[\[mixture.sources\]\]"):
        entries(mixture())
    with pytest.raises(ValueError, match="'geos' has no path"):
        entries(mixture(sources=[{"source": "geos"}]))
    with pytest.raises(ValueError, match="names the same data twice: geos"):
        entries(mixture(sources=[{"source": "geos", "path": "a"}] * 2))
    with pytest.raises(ValueError, match="every share is 0"):
        entries(mixture(sources=[{"source": "geos", "path": "a", "share": 0}]))
