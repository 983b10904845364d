"""Planning and collating: nothing lost, nothing padded, the same work on every rank."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from helpers.tiny import random_sample, tiny_folder

from ovlt.model import qwen2_5_vl as qwen
from ovlt.model.load import ModelFolder
from ovlt.train.pack import BatchPlan, Extent, collate, extent, plan
from ovlt.types import Sample


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return tiny_folder(tmp_path_factory.mktemp("model") / "m")


def realistic(folder: ModelFolder, seed: int, groups: int, n: int) -> list[Extent]:
    """Groups of ``n`` answers, long-tailed lengths, one image, two, or none."""
    rng = np.random.default_rng(seed)
    samples = []
    for g in range(groups):
        sides = rng.integers(4, 37, (int(rng.choice([0, 1, 1, 1, 2])), 2)) * 2
        grids = tuple((1, int(h), int(w)) for h, w in sides)
        prompt = int(rng.integers(40, 300)) + sum(
            qwen.tokens_per_image(folder.config, grid) for grid in grids
        )
        answers = np.clip(rng.lognormal(5.5, 0.7, n), 1, 2048).astype(int)
        samples += [Extent(prompt + int(a), grids, g, f"group {g}") for a in answers]
    return samples


def tokens_of(samples: list[Extent], bins: list[list[int]]) -> list[int]:
    return [sum(samples[i].tokens for i in b) for b in bins]


def check(samples: list[Extent], planned: BatchPlan, ranks: int, budget: int) -> None:
    everything = [i for rank in planned.bins for b in rank for i in b]
    assert sorted(everything) == list(range(len(samples)))  # none lost, none twice
    assert len(planned.bins) == ranks
    assert len({len(rank) for rank in planned.bins}) == 1  # as many collectives on each rank
    assert all(t <= budget for rank in planned.bins for t in tokens_of(samples, rank))


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("seed", range(3))
def test_realistic_batches_fill_their_bins_and_balance_the_ranks(
    folder: ModelFolder, ranks: int, seed: int
) -> None:
    budget = 7001
    samples = realistic(folder, seed, groups=32 * ranks, n=5)
    planned = plan(samples, ranks=ranks, budget=budget, config=folder.config)
    check(samples, planned, ranks, budget)
    micro = len(planned.bins[0])
    assert micro >= 10
    assert planned.fill >= 0.9
    total = sum(s.tokens for s in samples)
    assert planned.fill == pytest.approx(total / (micro * ranks * budget))
    assert planned.imbalance <= 1.05
    costs = [
        [
            sum(qwen.forward_flops(folder.config, samples[i].tokens, ()) for i in b)
            + sum(
                qwen.forward_flops(folder.config, 0, grids)
                for grids in {samples[i].group: samples[i].grids for i in b}.values()
            )
            for b in rank
        ]
        for rank in planned.bins
    ]
    by_rank = [sum(c) for c in costs]
    assert max(by_rank) * ranks / sum(by_rank) <= 1.05  # by a count of our own
    # Ranks meet in every micro-batch, so what they wait for is the dearest of each.
    in_step = sum(max(c[m] for c in costs) for m in range(micro))
    assert in_step * ranks / sum(by_rank) <= 1.1
    fillers = sum(not b for rank in planned.bins for b in rank)
    without_image = sum(not any(samples[i].grids for i in b) for rank in planned.bins for b in rank)
    idle = 2 * fillers + without_image  # a dummy image is one token
    assert planned.filler == pytest.approx(idle / (total + idle))
    assert planned.filler <= 0.02


@pytest.mark.parametrize("seed", range(40))
def test_any_lengths_are_packed_whole(folder: ModelFolder, seed: int) -> None:
    """Hostile shapes: one token, the whole budget, more ranks than samples, huge groups."""
    rng = random.Random(seed)
    budget, ranks = rng.choice([7, 64, 501]), rng.randint(1, 5)
    samples = [
        Extent(rng.choice([1, 2, budget, budget // 2 + 1, rng.randint(1, budget)]), (), g)
        for g in range(rng.randint(0, 9))
        for _ in range(rng.choice([1, 1, 5, 17]))
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
    """``group`` is an object's address, another one on each rank: only its equality may count."""
    samples = realistic(folder, 3, groups=40, n=4)
    rng = random.Random(5)
    labels = [rng.getrandbits(48) for _ in range(40)]
    renamed = [Extent(s.tokens, s.grids, labels[s.group], "other name") for s in samples]
    first, second = (
        plan(s, ranks=3, budget=6007, config=folder.config) for s in (samples, renamed)
    )
    assert first == second


def test_a_group_stays_together_and_its_image_is_seen_once(folder: ModelFolder) -> None:
    rng = np.random.default_rng(2)
    first, alone = (
        random_sample(folder, rng, sizes, 6) for sizes in ([(84, 56), (28, 28)], [(56, 56)])
    )
    group = []
    for answer in ([5, 6, 7], [8], [9, 10]):
        ids = np.concatenate([first.prompt.token_ids, answer])
        group.append(Sample(first.prompt, ids, np.arange(len(ids)) >= len(first.prompt.token_ids)))
    samples = [*group, alone]
    extents = [extent(s, folder.config) for s in samples]
    assert len({e.group for e in extents}) == 2
    largest = sum(e.tokens for e in extents[:3])
    planned = plan(extents, ranks=2, budget=largest, config=folder.config)
    assert sorted(sorted(b) for rank in planned.bins for b in rank) == [[0, 1, 2], [3]]

    batch = collate(samples, [1.0] * 4, config=folder.config, patchify=folder.patchify)
    assert batch.grid_thw is not None
    assert sorted(batch.grid_thw.tolist()) == [[1, 2, 2], [1, 4, 4], [1, 6, 4]]
    assert batch.patches is not None
    assert len(batch.patches) == 6 * 4 + 2 * 2 + 4 * 4
    images = [*alone.prompt.images, *first.prompt.images]  # the shortest sample comes first
    apart = [torch.from_numpy(folder.patchify(image)) for image in images]
    assert torch.equal(batch.patches, torch.cat(apart))
    # One feature row per placeholder of each sample, but no row twice in the tower's output.
    assert batch.feature_index is not None
    slots = (batch.input_ids == folder.config.image_token_id).sum()
    assert len(batch.feature_index) == slots == 3 * (6 + 1) + 4
    assert sorted(set(batch.feature_index.tolist())) == list(range(6 + 1 + 4))
    assert batch.cost < sum(
        qwen.forward_flops(folder.config, e.tokens, e.grids) for e in extents
    )  # images are counted once


def sample_of(folder: ModelFolder, ids: list[int], mask: list[int], **more: object) -> Sample:
    prompt = random_sample(folder, np.random.default_rng(0), [], 1).prompt
    logp = np.asarray(mask, dtype=np.float32) * -np.arange(len(ids), dtype=np.float32)
    return Sample(prompt, np.array(ids), np.array(mask, dtype=bool), engine_logp=logp, **more)  # type: ignore[arg-type]


def test_collate_on_a_hand_made_example(folder: ModelFolder) -> None:
    long = sample_of(folder, [11, 12, 13, 14, 15], [0, 0, 1, 0, 1], advantage=0.5)
    short = sample_of(folder, [21, 22, 23], [1, 0, 1], advantage=-2.0)  # token 0 is masked in
    tiny = sample_of(folder, [31], [1])  # nothing can predict its only token
    weights = [0.25, 0.125, 4.0]
    batch = collate([long, short, tiny], weights, config=folder.config, patchify=folder.patchify)
    # Joined by length: tiny, short, long. Row of each label: the token before it.
    assert batch.input_ids.tolist() == [31, 21, 22, 23, 11, 12, 13, 14, 15]
    assert batch.cu_seqlens.tolist() == [0, 1, 4, 9]
    assert batch.cu_seqlens.dtype == torch.int32
    assert batch.labels.tolist() == [23, 13, 15]
    assert batch.loss_index.tolist() == [2, 5, 7]
    assert batch.segment_ids.tolist() == [1, 2, 2]
    assert batch.loss_weight.tolist() == [0.125, 0.25, 0.25]
    assert batch.advantage is not None
    assert batch.advantage.tolist() == [-2.0, 0.5, 0.5]
    assert batch.engine_logp is not None
    assert batch.engine_logp.tolist() == [-2.0, -2.0, -4.0]
    assert batch.position_ids.tolist() == [[0, 0, 1, 2, 0, 1, 2, 3, 4]] * 3
    assert (batch.num_samples, batch.max_len, batch.num_tokens) == (3, 5, 9)
    assert not batch.is_filler


def test_every_label_follows_its_row_inside_one_sample(folder: ModelFolder) -> None:
    rng = np.random.default_rng(4)
    samples = []
    for sizes, response in [([(56, 84)], 7), ([], 1), ([(28, 28)] * 2, 12), ([], 30)]:
        sample = random_sample(folder, rng, sizes, response)
        sample.loss_mask = rng.random(len(sample.token_ids)) < 0.5
        sample.loss_mask[0] = True
        samples.append(sample)
    batch = collate(samples, [1.0] * 4, config=folder.config, patchify=folder.patchify)
    starts = set(batch.cu_seqlens[:-1].tolist())
    assert torch.equal(batch.input_ids[batch.loss_index + 1], batch.labels)
    assert not starts & set((batch.loss_index + 1).tolist())  # token 0 is never a label
    assert len(batch.labels) == sum(int(s.loss_mask[1:].sum()) for s in samples)
    ends = batch.cu_seqlens[1:].long()
    assert torch.equal(torch.bucketize(batch.loss_index, ends, right=True), batch.segment_ids)


def test_the_filler_is_small_and_weighs_nothing(folder: ModelFolder) -> None:
    batch = collate([], [], config=folder.config, patchify=folder.patchify)
    assert batch.is_filler
    assert batch.num_tokens == 2
    assert not batch.loss_weight.any()
