"""Samples to micro-batches without padding, balanced over ranks.

Every rank gets the same number of micro-batches, none above the token budget, and the cost (text
and vision-tower FLOPs) is spread evenly. Samples of one prompt stay together if they fit, so the
tower sees each image once per micro-batch and the whole group shares its features. A sample is
never cut. Nothing after this file pads, infers a boundary, or counts tokens again.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import DTypeLike

from ovlt.model import qwen2_5_vl as qwen
from ovlt.model.batch import PackedBatch
from ovlt.model.patchify import Patchify
from ovlt.system.runtime import Runtime
from ovlt.types import Sample

# A rank without samples runs this many text tokens of weight zero, so that it joins every
# collective.
FILLER_TOKENS = 2
# How many samples of a group stay together: all (0), else parts of it, else single samples. Larger
# parts share more images; smaller ones fill micro-batches better.
PART_SIZES = (0, 4, 2, 1)


@dataclass(frozen=True)
class Extent:
    """What planning needs of a sample: no pixels, no ids. Equal ``group``s share their images."""

    tokens: int
    grids: tuple[qwen.Grid, ...]
    group: int
    name: str = ""


def extent(sample: Sample, config: qwen.Config) -> Extent:
    """Return the extent of a sample; samples of one prompt share their images."""
    prompt = sample.prompt
    return Extent(len(sample.token_ids), tuple(_grids(sample, config)), id(prompt), prompt.id)


@dataclass(frozen=True)
class Unit:
    """Samples that are packed together: indices, tokens, and FLOPs with shared images."""

    indices: tuple[int, ...]
    tokens: int
    cost: float
    has_images: bool


@dataclass
class BatchPlan:
    """``bins[rank][m]`` = indices of the samples in micro-batch m of that rank."""

    bins: list[list[list[int]]]
    fill: float  # mean tokens of a micro-batch / token budget
    imbalance: float  # largest rank cost / mean rank cost
    filler: float  # tokens of filler samples and dummy images / all tokens
    cost: float  # forward FLOPs of all samples, shared images counted once per micro-batch


def plan(samples: Sequence[Extent], *, ranks: int, budget: int, config: qwen.Config) -> BatchPlan:
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
    units_of = functools.cache(functools.partial(_units, samples, config))  # by part size
    total = sum(s.tokens for s in samples)
    fewest = max(1, math.ceil(total / (budget * ranks)))
    # Fewest micro-batches first, largest parts first. It ends: one sample each always fits.
    for micro in itertools.count(fewest):
        for units in map(units_of, PART_SIZES):
            bins = _fit(units, micro * ranks, budget)
            if bins is not None:
                return _batch_plan(_assign(bins, ranks, micro), total, micro * ranks * budget)
    raise AssertionError("unreachable: single samples fit into as many micro-batches")


def _batch_plan(assigned: list[list[list[Unit]]], total: int, capacity: int) -> BatchPlan:
    """Describe ``assigned[rank][m]``, units of ``total`` tokens with room for ``capacity``."""
    costs = [sum(u.cost for units in rank for u in units) for rank in assigned]
    mean = sum(costs) / len(costs)
    bins = [units for rank in assigned for units in rank]
    # An empty micro-batch runs filler tokens; one without images the smallest dummy image.
    idle = sum(FILLER_TOKENS for units in bins if not units)
    idle += sum(1 for units in bins if not any(u.has_images for u in units))
    return BatchPlan(
        bins=[[[i for u in units for i in u.indices] for units in rank] for rank in assigned],
        fill=total / capacity,
        imbalance=max(costs) / mean if mean else 1.0,
        filler=idle / (total + idle),
        cost=sum(costs),
    )


def _units(samples: Sequence[Extent], config: qwen.Config, size: int) -> list[Unit]:
    """Join consecutive samples of one group, at most ``size`` of them (0: no limit)."""
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
        grids = samples[group[0]].grids  # all of a group share them: the tower runs once
        text = sum(qwen.forward_flops(config, n, ()) for n in lengths)
        vision = qwen.forward_flops(config, 0, grids)
        units.append(Unit(tuple(group), sum(lengths), text + vision, bool(grids)))
    return units


def _grids(sample: Sample, config: qwen.Config) -> list[qwen.Grid]:
    return [qwen.image_grid(config, x.shape[0], x.shape[1]) for x in sample.prompt.images]


def _fit(units: Sequence[Unit], count: int, budget: int) -> list[list[Unit]] | None:
    """Fill ``count`` bins within the budget, evenly costed; None if that fails, as it does for a
    unit that is longer than the budget.

    Longest processing time first by cost; if that runs out of room, by tokens, which fills best.
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
    """Give micro-batches to ranks: dearest first, each to the cheapest rank with a free place."""
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
    config: qwen.Config,
    patchify: Patchify | None,
) -> tuple[list[PackedBatch], BatchPlan]:
    """Pack the samples of one step, equal on all ranks; this rank's micro-batches and the plan."""
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
    config: qwen.Config,
    patchify: Patchify | None,
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
    lengths = [len(s.token_ids) for s in samples]
    starts = np.concatenate([[0], np.cumsum(lengths)])  # [S + 1], boundaries in the packed row
    images = _Images(config)
    positions = []  # of each sample [3, tokens], from 0: samples never see each other's positions
    predicted = []  # of each sample, the tokens that are trained on
    for sample in samples:
        grids = _grids(sample, config)
        positions.append(qwen.mrope_positions(sample.token_ids, grids, config))
        images.add(sample, grids)
        predicted.append(np.flatnonzero(sample.loss_mask[1:]) + 1)  # token 0 has none before it
    counts = [len(tokens) for tokens in predicted]  # loss rows of each sample; their sum is R

    def of_rows(values: Sequence[float]) -> torch.Tensor:  # one value per sample -> float32 [R]
        return torch.from_numpy(np.repeat(np.asarray(values, np.float32), counts))

    engine_logp = _engine_logp(samples, predicted)  # None for SFT
    return PackedBatch(
        input_ids=_joined([s.token_ids for s in samples]),  # [T]
        position_ids=torch.from_numpy(np.concatenate(positions, axis=1)),  # [3, T]
        cu_seqlens=torch.from_numpy(starts.astype(np.int32)),  # [S + 1]
        segment_ids=torch.from_numpy(np.repeat(np.arange(len(samples)), counts)),  # [R]
        # The hidden state one before a token predicts it.
        loss_index=_joined([t - 1 + at for t, at in zip(predicted, starts[:-1], strict=True)]),
        labels=_joined([s.token_ids[t] for s, t in zip(samples, predicted, strict=True)]),
        loss_weight=of_rows(weights),
        patches=images.patches(patchify),
        feature_index=images.feature_index(),
        grid_thw=images.grid_thw(),
        vision_plan=images.vision_plan(),
        max_len=max(lengths),
        advantage=None if engine_logp is None else of_rows([s.advantage for s in samples]),
        engine_logp=engine_logp,
        num_samples=len(samples),
        cost=sum(qwen.forward_flops(config, n, ()) for n in lengths)
        + qwen.forward_flops(config, 0, images.grids),
    )


def _joined(parts: Sequence[np.ndarray], dtype: DTypeLike = np.int64) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(dtype, copy=False))


def _engine_logp(samples: Sequence[Sample], predicted: Sequence[np.ndarray]) -> torch.Tensor | None:
    """The engine's log-probs of the predicted tokens, float32 [R]; None if a sample has none."""
    parts = [
        sample.engine_logp[tokens]
        for sample, tokens in zip(samples, predicted, strict=True)
        if sample.engine_logp is not None
    ]
    return _joined(parts, np.float32) if len(parts) == len(samples) else None


class _Images:
    """The images of a micro-batch, each once, and where each placeholder finds its feature.

    Each method returns None for a micro-batch without images.
    """

    def __init__(self, config: qwen.Config) -> None:
        self.grids: list[qwen.Grid] = []
        self._config = config
        self._unique: list[np.ndarray] = []  # uint8 [height, width, 3]
        self._features: list[np.ndarray] = []  # rows of the tower's output, sample after sample
        self._first_row: dict[int, int] = {}  # id of an image array -> its first feature row
        self._num_rows = 0

    def add(self, sample: Sample, grids: Sequence[qwen.Grid]) -> None:
        """Append the images of a sample; those that a sample of its group brought are reused."""
        for image, grid in zip(sample.prompt.images, grids, strict=True):
            count = qwen.tokens_per_image(self._config, grid)
            if id(image) not in self._first_row:
                self._first_row[id(image)] = self._num_rows
                self._num_rows += count
                self._unique.append(image)
                self.grids.append(grid)
            self._features.append(self._first_row[id(image)] + np.arange(count))

    def patches(self, patchify: Patchify | None) -> torch.Tensor | None:
        """Patches of every image once, float32 [P, values]."""
        if not self._unique:
            return None
        assert patchify is not None, "a text-only model is given no images"
        return _patches(self._unique, patchify)

    def feature_index(self) -> torch.Tensor | None:
        """The row of the tower's output for each image placeholder, int64 [image tokens]."""
        return _joined(self._features) if self._features else None

    def grid_thw(self) -> torch.Tensor | None:
        """Patches of each image in time, height and width, int64 [I, 3]."""
        return torch.tensor(self.grids, dtype=torch.int64) if self.grids else None

    def vision_plan(self) -> qwen.VisionPlan | None:
        """Window order and boundaries for the tower, made on the CPU."""
        return qwen.vision_plan(self.grids, self._config) if self.grids else None


def _patches(images: Sequence[np.ndarray], patchify: Patchify) -> torch.Tensor:
    """Patches [P, values] of all images, written straight into one array."""
    shapes = [patchify.shape(*image.shape[:2]) for image in images]
    joined = np.empty((sum(rows for rows, _ in shapes), shapes[0][1]), np.float32)
    begin = 0
    for image, (rows, _) in zip(images, shapes, strict=True):
        patchify(image, out=joined[begin : begin + rows])
        begin += rows
    return torch.from_numpy(joined)


def _filler(config: qwen.Config) -> PackedBatch:
    """A micro-batch for a rank without samples: one loss row, of weight zero."""
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
