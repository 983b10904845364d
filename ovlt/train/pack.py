"""list[Sample] -> micro-batches without padding, balanced over ranks.

Every rank gets the same number of micro-batches, none above the token budget, and the cost (text
and vision-tower FLOPs) is spread evenly. Samples of one prompt stay together where they fit, so
the tower sees each image once per micro-batch and its features are shared by the whole group.
A sample is never cut. Nothing after this file pads, infers a boundary, or counts tokens again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ovlt.model import qwen2_5_vl as qwen
from ovlt.model.batch import PackedBatch
from ovlt.model.patchify import Patchify
from ovlt.system.runtime import Runtime
from ovlt.types import Sample

FILLER_TOKENS = 2


@dataclass(frozen=True)
class Extent:
    """What planning needs of a sample: no pixels, no ids. Equal ``group``: the same images."""

    tokens: int
    grids: tuple[qwen.Grid, ...]
    group: int
    name: str = ""


def extent(sample: Sample, config: Any) -> Extent:
    """The extent of a sample at hand; samples of one prompt share their images."""
    prompt = sample.prompt
    return Extent(len(sample.token_ids), tuple(_grids(sample, config)), id(prompt), prompt.id)


@dataclass(frozen=True)
class Unit:
    """Samples that are packed together: indices, tokens, and FLOPs with shared images."""

    indices: tuple[int, ...]
    tokens: int
    cost: float


@dataclass
class BatchPlan:
    """``bins[rank][m]`` = indices of the samples in micro-batch m of that rank."""

    bins: list[list[list[int]]]
    fill: float  # mean tokens of a micro-batch / token budget
    imbalance: float  # largest rank cost / mean rank cost
    filler: float  # tokens of filler samples and dummy images / all tokens
    cost: float  # forward FLOPs of all samples, shared images counted once per micro-batch


def plan(samples: Sequence[Extent], *, ranks: int, budget: int, config: Any) -> BatchPlan:
    """Distribute samples over ``ranks`` x M micro-batches of at most ``budget`` tokens each.

    M is the smallest number that works. Deterministic: the same samples give the same plan on
    every rank. Raises ValueError for a sample longer than the budget.
    """
    for sample in samples:
        if sample.tokens > budget:
            raise ValueError(
                f"a sample of {sample.tokens} tokens ({sample.name}) exceeds the token "
                f"budget of {budget}: samples are never cut, so raise token_budget or lower the "
                "limits"
            )
    total = sum(s.tokens for s in samples)
    micro = max(1, math.ceil(total / (budget * ranks)))
    while True:
        for size in (0, 4, 2, 1):  # whole groups first, then parts of groups, then single samples
            units = _units(samples, config, size)
            if size != 1 and max((u.tokens for u in units), default=0) > budget:
                continue
            bins = _fit(units, micro * ranks, budget)
            if bins is not None:
                assigned = _assign(bins, ranks, micro)
                costs = [sum(u.cost for b in rank for u in b) for rank in assigned]
                mean = sum(costs) / ranks
                idle = sum(FILLER_TOKENS for b in bins if not b)
                idle += sum(1 for b in bins if not any(samples[u.indices[0]].grids for u in b))
                return BatchPlan(
                    bins=[
                        [[i for u in units for i in u.indices] for units in rank]
                        for rank in assigned
                    ],
                    fill=total / (micro * ranks * budget),
                    imbalance=max(costs) / mean if mean else 1.0,
                    filler=idle / (total + idle),
                    cost=sum(costs),
                )
        micro += 1


def _units(samples: Sequence[Extent], config: Any, size: int) -> list[Unit]:
    """Consecutive samples of one group, at most ``size`` of them (0: no limit)."""
    groups: list[list[int]] = []
    for i, sample in enumerate(samples):
        same = groups and samples[groups[-1][-1]].group == sample.group
        if same and (size == 0 or len(groups[-1]) < size):
            groups[-1].append(i)
        else:
            groups.append([i])
    units = []
    for group in groups:
        lengths = [samples[i].tokens for i in group]
        text = sum(qwen.forward_flops(config, n, ()) for n in lengths)
        vision = qwen.forward_flops(config, 0, samples[group[0]].grids)
        units.append(Unit(tuple(group), sum(lengths), text + vision))
    return units


def _grids(sample: Sample, config: Any) -> list[qwen.Grid]:
    return [qwen.image_grid(config, x.shape[0], x.shape[1]) for x in sample.prompt.images]


def _fit(units: Sequence[Unit], count: int, budget: int) -> list[list[Unit]] | None:
    """``count`` bins within the budget, evenly costed; None where that fails.

    Longest processing time first by cost; where that runs out of room, by tokens, which fills best.
    """
    for key in ("cost", "tokens"):
        bins: list[list[Unit]] = [[] for _ in range(count)]
        tokens, load = [0] * count, [0.0] * count
        for unit in sorted(units, key=lambda u: (-getattr(u, key), u.indices)):
            room = [b for b in range(count) if tokens[b] + unit.tokens <= budget]
            if not room:
                break
            best = min(room, key=lambda b: (load[b], b))
            bins[best].append(unit)
            tokens[best] += unit.tokens
            load[best] += getattr(unit, key)
        else:
            return bins
    return None


def _assign(bins: list[list[Unit]], ranks: int, micro: int) -> list[list[list[Unit]]]:
    """Micro-batches to ranks: dearest first, each to the cheapest rank with a free place."""
    out: list[list[list[Unit]]] = [[] for _ in range(ranks)]
    load = [0.0] * ranks
    for units in sorted(bins, key=lambda b: -sum(u.cost for u in b)):
        rank = min((r for r in range(ranks) if len(out[r]) < micro), key=lambda r: (load[r], r))
        out[rank].append(units)
        load[rank] += sum(u.cost for u in units)
    return out


def pack(
    samples: Sequence[Sample],
    weights: Sequence[float],
    runtime: Runtime,
    budget: int,
    config: Any,
    patchify: Patchify,
) -> tuple[list[PackedBatch], BatchPlan]:
    """This rank's micro-batches of one optimizer step whose samples every rank holds."""
    extents = [extent(s, config) for s in samples]
    planned = plan(extents, ranks=runtime.world_size, budget=budget, config=config)
    batches = [
        collate(
            [samples[i] for i in bin_],
            [weights[i] for i in bin_],
            config=config,
            patchify=patchify,
        )
        for bin_ in planned.bins[runtime.rank]
    ]
    return batches, planned


def collate(
    samples: Sequence[Sample],
    weights: Sequence[float],
    *,
    config: Any,
    patchify: Patchify,
) -> PackedBatch:
    """Join samples into one PackedBatch; ``weights[i]`` is sample i's loss weight per token.

    Samples are joined in order of their length. No samples gives the filler: two text tokens
    without weight that still run the whole model.
    """
    if not samples:
        return _filler(config)
    # By length: attention on a CPU then finds segments of equal length side by side.
    by_length = sorted(range(len(samples)), key=lambda i: len(samples[i].token_ids))
    samples, weights = [samples[i] for i in by_length], [weights[i] for i in by_length]
    positions, rows, labels, segment, loss_weight = [], [], [], [], []
    advantage, engine_logp = [], []
    image_start: dict[int, int] = {}  # id of an image array -> its first feature row
    features, unique, grids = [], [], []
    num_features = offset = 0
    for s, sample in enumerate(samples):
        own = _grids(sample, config)
        positions.append(qwen.mrope_positions(sample.token_ids, own, config))
        for image, grid in zip(sample.prompt.images, own, strict=True):
            count = qwen.tokens_per_image(config, grid)
            if id(image) not in image_start:
                image_start[id(image)] = num_features
                unique.append(image)
                grids.append(grid)
                num_features += count
            features.append(image_start[id(image)] + np.arange(count))
        predicted = np.flatnonzero(sample.loss_mask[1:]) + 1  # token 0 has nothing before it
        rows.append(predicted - 1 + offset)
        labels.append(sample.token_ids[predicted])
        segment.append(np.full(len(predicted), s))
        loss_weight.append(np.full(len(predicted), weights[s], dtype=np.float32))
        if sample.engine_logp is not None:
            advantage.append(np.full(len(predicted), sample.advantage, dtype=np.float32))
            engine_logp.append(sample.engine_logp[predicted])
        offset += len(sample.token_ids)
    lengths = [len(s.token_ids) for s in samples]

    def joined(parts: list[np.ndarray], dtype: Any = np.int64) -> torch.Tensor:
        return torch.from_numpy(np.concatenate(parts).astype(dtype, copy=False))

    return PackedBatch(
        input_ids=joined([s.token_ids for s in samples]),
        position_ids=torch.from_numpy(np.concatenate(positions, axis=1)),
        cu_seqlens=torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)),
        segment_ids=joined(segment),
        loss_index=joined(rows),
        labels=joined(labels),
        loss_weight=joined(loss_weight, np.float32),
        patches=_patches(unique, patchify) if unique else None,
        feature_index=joined(features) if features else None,
        grid_thw=torch.tensor(grids, dtype=torch.int64) if grids else None,
        vision_plan=qwen.vision_plan(grids, config) if grids else None,
        max_len=max(lengths),
        advantage=joined(advantage, np.float32) if advantage else None,
        engine_logp=joined(engine_logp, np.float32) if engine_logp else None,
        num_samples=len(samples),
        cost=sum(qwen.forward_flops(config, n, ()) for n in lengths)
        + qwen.forward_flops(config, 0, grids),
    )


def _patches(images: Sequence[np.ndarray], patchify: Patchify) -> torch.Tensor:
    shapes = [patchify.shape(*image.shape[:2]) for image in images]
    joined = np.empty((sum(rows for rows, _ in shapes), shapes[0][1]), np.float32)
    begin = 0
    for image, (rows, _) in zip(images, shapes, strict=True):
        patchify(image, out=joined[begin : begin + rows])
        begin += rows
    return torch.from_numpy(joined)


def _filler(config: Any) -> PackedBatch:
    zero = torch.zeros(1)
    return PackedBatch(
        input_ids=torch.zeros(FILLER_TOKENS, dtype=torch.int64),
        position_ids=torch.arange(FILLER_TOKENS).expand(3, FILLER_TOKENS),
        cu_seqlens=torch.tensor([0, FILLER_TOKENS], dtype=torch.int32),
        segment_ids=torch.zeros(1, dtype=torch.int64),
        loss_index=torch.zeros(1, dtype=torch.int64),
        labels=torch.zeros(1, dtype=torch.int64),
        loss_weight=zero,
        patches=None,
        feature_index=None,
        grid_thw=None,
        vision_plan=None,
        max_len=FILLER_TOKENS,
        advantage=zero.clone(),
        engine_logp=zero.clone(),
        num_samples=1,
        is_filler=True,
        cost=qwen.forward_flops(config, FILLER_TOKENS, ()),
    )
