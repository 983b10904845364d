"""Planning micro-batches: nothing lost, nothing above the budget, the same work on every rank."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from helpers.tiny import tiny_folder

from ovlt.model import sizes as model_sizes
from ovlt.model.load import ModelFolder
from ovlt.model.sizes import decoder_flops, head_flops, mlp_flops, tower_flops
from ovlt.train.balance import BatchPlan, Extent, plan


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return tiny_folder(tmp_path_factory.mktemp("model") / "m")


def realistic(
    folder: ModelFolder, seed: int, groups: int, n: int, *, shared: bool = True
) -> list[Extent]:
    """Groups of ``n`` answers, long-tailed lengths, one image, two, or none."""
    rng = np.random.default_rng(seed)
    samples = []
    for g in range(groups):
        sides = rng.integers(4, 37, (int(rng.choice([0, 1, 1, 1, 2])), 2)) * 2
        grids = tuple((1, int(h), int(w)) for h, w in sides)
        prompt = int(rng.integers(40, 300)) + sum(
            model_sizes.tokens_per_image(folder.config, grid) for grid in grids
        )
        answers = np.clip(rng.lognormal(5.5, 0.7, n), 1, 2048).astype(int)
        samples += [
            Extent(prompt + int(a), grids, g, f"group {g}", prompt if shared else 0, int(a))
            for a in answers
        ]
    return samples


def parts_of(samples: list[Extent], bin_: list[int]) -> list[list[Extent]]:
    """The samples of a micro-batch, group by group."""
    groups: dict[int, list[Extent]] = {}
    for i in bin_:
        groups.setdefault(samples[i].group, []).append(samples[i])
    return list(groups.values())


def tokens_of(samples: list[Extent], bin_: list[int]) -> int:
    """Tokens that a micro-batch computes, by a count of our own: a shared prompt once."""
    return sum(
        sum(s.tokens for s in part) - (len(part) - 1) * part[0].prompt
        for part in parts_of(samples, bin_)
    )


def cost_of(config: model_sizes.Config, samples: list[Extent], bin_: list[int]) -> float:
    """FLOPs of a micro-batch: per token, per pair of a query and a key, per label, per image."""
    total = 0.0
    for part in parts_of(samples, bin_):
        prompt = part[0].prompt if len(part) > 1 else 0
        pairs = prompt * prompt / 2
        pairs += sum((s.tokens**2 - prompt**2) / 2 for s in part)  # a trapezium each
        tokens = sum(s.tokens for s in part) - (len(part) - 1) * prompt
        linear = 2 * decoder_flops(config, 1) - decoder_flops(config, 2) / 2  # of a token
        pair = decoder_flops(config, 2) - 2 * decoder_flops(config, 1)  # of one pair
        total += tokens * linear + pairs * pair
        labels = sum(s.labels for s in part)
        total -= mlp_flops(config, tokens - labels)  # of the last layer
        total += head_flops(config, labels)
        total += tower_flops(config, part[0].grids)
    return total


def check(samples: list[Extent], planned: BatchPlan, ranks: int, budget: int) -> None:
    everything = [i for rank in planned.bins for b in rank for i in b]
    assert sorted(everything) == list(range(len(samples)))  # none lost, none twice
    assert len(planned.bins) == ranks
    assert len({len(rank) for rank in planned.bins}) == 1  # as many collectives on each rank
    assert all(tokens_of(samples, b) <= budget for rank in planned.bins for b in rank)
    assert planned.tokens == sum(tokens_of(samples, b) for rank in planned.bins for b in rank)
    assert planned.sample_tokens == sum(s.tokens for s in samples)


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "copies"])
@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("seed", range(3))
def test_realistic_batches_fill_their_bins_and_balance_the_ranks(
    folder: ModelFolder, ranks: int, seed: int, shared: bool
) -> None:
    budget = 7001
    samples = realistic(folder, seed, groups=32 * ranks, n=5, shared=shared)
    planned = plan(samples, ranks=ranks, budget=budget, config=folder.config)
    check(samples, planned, ranks, budget)
    micro = len(planned.bins[0])
    assert micro >= 8
    assert planned.fill >= 0.8  # whole groups are large; another micro-batch costs little
    assert planned.fill == pytest.approx(planned.tokens / (micro * ranks * budget))
    assert planned.imbalance <= 1.05
    costs = [[cost_of(folder.config, samples, b) for b in rank] for rank in planned.bins]
    by_rank = [sum(c) for c in costs]
    assert planned.text + planned.tower == pytest.approx(sum(by_rank))
    assert max(by_rank) * ranks / sum(by_rank) <= 1.05
    # Ranks meet in every micro-batch, so what they wait for is the dearest of each.
    in_step = sum(max(c[m] for c in costs) for m in range(micro))
    assert in_step * ranks / sum(by_rank) <= 1.1
    fillers = sum(not b for rank in planned.bins for b in rank)
    without_image = sum(not any(samples[i].grids for i in b) for rank in planned.bins for b in rank)
    idle = 2 * fillers + without_image  # a dummy image is one token
    assert planned.filler == pytest.approx(idle / (planned.tokens + idle))
    assert planned.filler <= 0.02


def test_shared_prompts_are_computed_about_once(folder: ModelFolder) -> None:
    """Few groups are divided: the tokens are within a few per cent of the least possible."""
    samples = realistic(folder, 1, groups=64, n=5)
    planned = plan(samples, ranks=2, budget=7001, config=folder.config)
    least = tokens_of(samples, list(range(len(samples))))
    assert least <= planned.tokens <= 1.05 * least
    assert planned.tokens < 0.8 * planned.sample_tokens


@pytest.mark.parametrize("size", [4, 2, 1])
def test_a_group_above_the_budget_is_divided_with_a_prompt_for_each_part(
    folder: ModelFolder, size: int
) -> None:
    whole = [Extent(100 + 40, (), 0, prompt=100, labels=40)] * 8
    small = [Extent(100 + 4, (), 1, prompt=100, labels=4)] * 2
    budget = 100 + 40 * size
    planned = plan([*whole, *small], ranks=1, budget=budget, config=folder.config)
    check([*whole, *small], planned, 1, budget)
    divided = [sum(i < 8 for i in b) for b in planned.bins[0]]
    assert max(divided) == size
    assert planned.tokens == 8 * 40 + sum(n > 0 for n in divided) * 100 + 108


def test_parts_of_a_group_that_meet_are_one(folder: ModelFolder) -> None:
    """Where parts fill micro-batches better, those of one group in one of them share again."""
    samples = [Extent(60 + n, (), g, prompt=60, labels=n) for g in range(3) for n in (9, 30, 5, 22)]
    for budget in range(90, 600, 10):
        planned = plan(samples, ranks=2, budget=budget, config=folder.config)
        check(samples, planned, 2, budget)


@pytest.mark.parametrize("seed", range(40))
def test_any_lengths_are_packed_whole(folder: ModelFolder, seed: int) -> None:
    """Hostile shapes: one token, the whole budget, more ranks than samples, huge groups."""
    rng = random.Random(seed)
    budget, ranks = rng.choice([7, 64, 501]), rng.randint(1, 5)
    samples = [
        Extent(max(n, prompt), (), g, prompt=prompt)
        for g in range(rng.randint(0, 9))
        for prompt in [rng.choice([0, 0, 1, budget // 2, budget])]
        for _ in range(rng.choice([1, 1, 5, 17]))
        for n in [rng.choice([1, 2, budget, budget // 2 + 1, rng.randint(1, budget)])]
    ]
    planned = plan(samples, ranks=ranks, budget=budget, config=folder.config)
    check(samples, planned, ranks, budget)


def test_fewer_samples_than_ranks_leaves_fillers(folder: ModelFolder) -> None:
    samples = [Extent(9, (), 0), Extent(5, (), 1)]
    planned = plan(samples, ranks=3, budget=20, config=folder.config)
    check(samples, planned, 3, 20)
    assert [len(rank) for rank in planned.bins] == [1, 1, 1]
    assert sum(not b for rank in planned.bins for b in rank) == 1
    assert planned.filler == pytest.approx((2 + 3) / (14 + 2 + 3))  # and three dummy images


def test_a_sample_above_the_budget_is_named(folder: ModelFolder) -> None:
    samples = [Extent(100, (), 0, "rows/17"), Extent(101, (), 1, "rows/18")]
    plan(samples[:1], ranks=1, budget=100, config=folder.config)
    with pytest.raises(ValueError, match=r"101 tokens \(rows/18\).*budget of 100.*token_budget"):
        plan(samples, ranks=1, budget=100, config=folder.config)


def test_a_plan_depends_on_nothing_but_the_samples(folder: ModelFolder) -> None:
    """Only the equality of ``group`` counts."""
    samples = realistic(folder, 3, groups=40, n=4)
    rng = random.Random(5)
    labels = [rng.getrandbits(48) for _ in range(40)]
    renamed = [replace(s, group=labels[s.group], name="other name") for s in samples]
    first, second = (
        plan(s, ranks=3, budget=6007, config=folder.config) for s in (samples, renamed)
    )
    assert first == second
