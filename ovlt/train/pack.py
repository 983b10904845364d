"""Samples to micro-batches without padding: which tokens, in which order, seeing which.

Samples that share their prompt are laid out as ``[prompt][response 1]...[response n]``: the prompt
runs through the decoder once, and its images through the tower. Nothing is approximated: a response
sees just what it would see behind a prompt of its own, and the gradient of the shared prompt is the
sum of what the copies' would be (Prefix Grouper, arXiv 2506.05433). ``balance.py`` decides what
goes together. Nothing after this file pads, infers a boundary, or counts tokens again.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import DTypeLike

from ovlt.model import sizes
from ovlt.model.batch import PackedBatch
from ovlt.model.packed_model import vision_plan
from ovlt.model.patchify import Patchify
from ovlt.model.positions import mrope_positions
from ovlt.model.segments import Segments
from ovlt.model.vision import VisionPlan
from ovlt.system.runtime import Runtime
from ovlt.train.balance import FILLER_TOKENS, BatchPlan, Extent, plan
from ovlt.train.feed import MicroBatches
from ovlt.train.prompts import prompt_length, shared_prompts
from ovlt.types import Prompt, Sample


def pack(
    samples: Sequence[Sample],
    weights: Sequence[float],
    runtime: Runtime,
    budget: int,
    config: sizes.Config,
    patchify: Patchify | None,
    *,
    groups: Sequence[int],
    share_prompts: bool = True,
    dtype: torch.dtype = torch.float32,
    keep: bool = True,
) -> tuple[MicroBatches, BatchPlan]:
    """Pack the samples of one step, equal on all ranks; this rank's micro-batches and the plan.

    Planning is by lengths alone, the same on every rank. Micro-batches, of this rank only, are
    built when they are asked for. ``groups`` are the samples' group numbers (``group_numbers``),
    ``dtype`` is that of patches, and ``keep`` is as for ``MicroBatches``.
    """
    lengths = extents(samples, config, groups, share_prompts=share_prompts)
    planned = plan(lengths, ranks=runtime.world_size, budget=budget, config=config)

    def build(bin_: Sequence[int]) -> PackedBatch:
        return collate(
            [samples[i] for i in bin_],
            [weights[i] for i in bin_],
            config=config,
            patchify=patchify,
            groups=[groups[i] for i in bin_] if share_prompts else range(len(bin_)),
            dtype=dtype,
        )

    makers = [functools.partial(build, bin_) for bin_ in planned.bins[runtime.rank]]
    return MicroBatches(makers, keep=keep), planned


def extents(
    samples: Sequence[Sample],
    config: sizes.Config,
    groups: Sequence[int],
    *,
    share_prompts: bool = True,
) -> list[Extent]:
    """Return the extents of samples; those of one group share its images, and its prompt."""
    return [
        Extent(
            tokens=len(sample.token_ids),
            grids=tuple(_grids(sample, config)),
            group=groups[i],
            name=sample.prompt.id,
            prompt=prompt_length(sample.loss_mask) if share_prompts else 0,
            labels=int(sample.loss_mask[1:].sum()),
        )
        for i, sample in enumerate(samples)
    ]


def image_tokens(prompt: Prompt, config: sizes.Config) -> int:
    """Return how many tokens the images of a prompt take, which is the rows of their features."""
    grids = (sizes.image_grid(config, x.shape[0], x.shape[1]) for x in prompt.images)
    return sum(sizes.tokens_per_image(config, grid) for grid in grids)


def group_numbers(samples: Sequence[Sample], *, share_prompts: bool = True) -> list[int]:
    """Return a number for each sample, the same for those of one group: of one prompt.

    By what they hold (``sharing``); without sharing, those that hold the same Prompt.
    """
    if not share_prompts:
        return [id(sample.prompt) for sample in samples]
    numbers = [0] * len(samples)
    for number, group in enumerate(sharing(samples)):
        for i in group:
            numbers[i] = number
    return numbers


def sharing(samples: Sequence[Sample]) -> list[list[int]]:
    """Return the indices of the samples that share their prompt: one list for each prompt.

    By their ids and images, not by what they are said to answer: samples that user code brings
    under one prompt, and that do not start with it, share nothing.
    """
    return shared_prompts(
        [s.token_ids[: prompt_length(s.loss_mask)] for s in samples],
        [s.prompt.images for s in samples],
    )


def _members(groups: Sequence[int]) -> list[list[int]]:
    """Return the places of each group number, in the order of the first of them."""
    members: dict[int, list[int]] = {}
    for i, group in enumerate(groups):
        members.setdefault(group, []).append(i)
    return list(members.values())


def collate(
    samples: Sequence[Sample],
    weights: Sequence[float],
    *,
    config: sizes.Config,
    patchify: Patchify | None,
    groups: Sequence[int] | None = None,
    dtype: torch.dtype = torch.float32,
) -> PackedBatch:
    """Join samples into one PackedBatch; ``weights[i]`` is sample i's loss weight per token.

    Samples of one prompt, those of one number in ``groups`` (None: ``group_numbers`` finds them),
    are put side by side. ``dtype`` is that of the patches. No samples gives the filler: two text
    tokens without weight that still run the whole model.
    """
    if not samples:
        return _filler()
    # Lay out: group after group, a prompt before its responses; a single sample is one segment.
    members = _members(group_numbers(samples) if groups is None else groups)
    row, images = _Row(), _Images(config)
    predicted: list[np.ndarray] = []  # of each sample, the tokens that are trained on
    states: list[np.ndarray] = []  # the places in the row whose hidden states predict these
    for group in members:
        first = samples[group[0]]
        shared = prompt_length(first.loss_mask) if len(group) > 1 else 0
        prompt = -1  # its segment
        before = np.empty(0, np.int64)  # places of its tokens
        for i in group:
            sample = samples[i]
            grids = _grids(sample, config)
            positions = mrope_positions(sample.token_ids, grids, config)  # [3, tokens], from 0
            # Samples of one prompt have equal images; one array stands for all.
            features = images.add(first.prompt.images, grids)
            # Split its placeholders: those of the prompt get features once, a later turn's always.
            in_prompt = int((sample.token_ids[:shared] == config.image_token_id).sum())
            if i == group[0] and shared:
                before = row.add(sample.token_ids[:shared], positions[:, :shared])
                prompt = len(row.lengths) - 1
                images.use(features[:in_prompt])
            # Positions go on from the prompt's, as if this were the only response to it.
            own = row.add(sample.token_ids[shared:], positions[:, shared:], prompt)
            images.use(features[in_prompt:])
            tokens = np.flatnonzero(sample.loss_mask[1:]) + 1  # token 0 has none before it
            predicted.append(tokens)
            # The hidden state one before a token predicts it: for the first token of a response
            # that of the shared prompt's last.
            states.append(np.concatenate([before, own])[tokens - 1])
    # Loss rows: in the order of the layout, each with what the loss needs of its sample.
    order = [i for group in members for i in group]
    samples, weights = [samples[i] for i in order], [weights[i] for i in order]
    counts = [len(tokens) for tokens in predicted]  # loss rows of each sample; their sum is R

    def of_rows(values: Sequence[float]) -> torch.Tensor:  # one value per sample -> float32 [R]
        return torch.from_numpy(np.repeat(np.asarray(values, np.float32), counts))

    engine_logp = _engine_logp(samples, predicted)  # None for SFT
    loss_index = _joined(states)
    read_tokens = torch.unique(loss_index)
    return PackedBatch(
        input_ids=_joined(row.token_ids),  # [T]
        position_ids=torch.from_numpy(np.concatenate(row.positions, axis=1)),  # [3, T]
        segments=Segments(row.lengths, row.prefix),
        sample_ids=torch.from_numpy(np.repeat(np.arange(len(samples)), counts)),  # [R]
        loss_index=loss_index,
        read_tokens=read_tokens if len(read_tokens) else None,
        labels=_joined([s.token_ids[t] for s, t in zip(samples, predicted, strict=True)]),
        loss_weight=of_rows(weights),
        patches=images.patches(patchify, dtype),
        feature_index=images.feature_index(),
        grid_thw=images.grid_thw(),
        vision_plan=images.vision_plan(),
        image_slots=images.slots(row.token_ids),
        advantage=None if engine_logp is None else of_rows([s.advantage for s in samples]),
        engine_logp=engine_logp,
        num_samples=len(samples),
    )


class _Row:
    """A packed row in the making, segment after segment."""

    def __init__(self) -> None:
        self.token_ids: list[np.ndarray] = []
        self.positions: list[np.ndarray] = []  # [3, tokens] each
        self.lengths: list[int] = []
        self.prefix: list[int] = []  # the segment that each continues; -1: none
        self._end = 0

    def add(self, token_ids: np.ndarray, positions: np.ndarray, prefix: int = -1) -> np.ndarray:
        """Append a segment, unless it is empty, and return the places of its tokens."""
        begin, self._end = self._end, self._end + len(token_ids)
        if len(token_ids):
            self.token_ids.append(token_ids)
            self.positions.append(positions)
            self.lengths.append(len(token_ids))
            self.prefix.append(prefix)
        return np.arange(begin, self._end)


def _grids(sample: Sample, config: sizes.Config) -> list[sizes.Grid]:
    return [sizes.image_grid(config, x.shape[0], x.shape[1]) for x in sample.prompt.images]


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

    def __init__(self, config: sizes.Config) -> None:
        self.grids: list[sizes.Grid] = []
        self._config = config
        self._unique: list[np.ndarray] = []  # uint8 [height, width, 3]
        self._features: list[np.ndarray] = []  # rows of the tower's output, segment by segment
        self._first_row: dict[int, int] = {}  # id of an image array -> its first feature row
        self._num_rows = 0

    def add(self, images: Sequence[np.ndarray], grids: Sequence[sizes.Grid]) -> np.ndarray:
        """Return the feature row of each placeholder of a sample; a known image is reused."""
        rows: list[np.ndarray] = [np.empty(0, np.int64)]
        for image, grid in zip(images, grids, strict=True):
            count = sizes.tokens_per_image(self._config, grid)
            if id(image) not in self._first_row:
                self._first_row[id(image)] = self._num_rows
                self._num_rows += count
                self._unique.append(image)
                self.grids.append(grid)
            rows.append(self._first_row[id(image)] + np.arange(count))
        return np.concatenate(rows)

    def use(self, features: np.ndarray) -> None:
        """Append the feature rows of the placeholders that come next in the packed row."""
        self._features.append(features)

    def patches(self, patchify: Patchify | None, dtype: torch.dtype) -> torch.Tensor | None:
        """Patches of every image once, [P, values]."""
        if not self._unique:
            return None
        assert patchify is not None, "a text-only model is given no images"
        return _patches(self._unique, patchify).to(dtype)

    def feature_index(self) -> torch.Tensor | None:
        """The row of the tower's output for each image placeholder, int64 [image tokens]."""
        return _joined(self._features) if self.grids else None

    def slots(self, token_ids: Sequence[np.ndarray]) -> torch.Tensor | None:
        """The placeholders' places in the packed row, int64 [image tokens]."""
        if not self.grids:
            return None
        return torch.from_numpy(
            np.flatnonzero(np.concatenate(token_ids) == self._config.image_token_id)
        )

    def grid_thw(self) -> torch.Tensor | None:
        """Patches of each image in time, height and width, int64 [I, 3]."""
        return torch.tensor(self.grids, dtype=torch.int64) if self.grids else None

    def vision_plan(self) -> VisionPlan | None:
        """Where patches lie and what each of them sees, made on the CPU."""
        return vision_plan(self.grids, self._config) if self.grids else None


def _patches(images: Sequence[np.ndarray], patchify: Patchify) -> torch.Tensor:
    """Patches [P, values] of all images, written straight into one array."""
    shapes = [patchify.shape(*image.shape[:2]) for image in images]
    joined = np.empty((sum(rows for rows, _ in shapes), shapes[0][1]), np.float32)
    begin = 0
    for image, (rows, _) in zip(images, shapes, strict=True):
        patchify(image, out=joined[begin : begin + rows])
        begin += rows
    return torch.from_numpy(joined)


def _filler() -> PackedBatch:
    """A micro-batch for a rank without samples: one loss row, of weight zero."""
    zero = torch.zeros(1)
    return PackedBatch(
        input_ids=torch.zeros(FILLER_TOKENS, dtype=torch.int64),
        position_ids=torch.arange(FILLER_TOKENS).expand(3, FILLER_TOKENS),
        segments=Segments([FILLER_TOKENS]),
        sample_ids=torch.zeros(1, dtype=torch.int64),
        loss_index=torch.zeros(1, dtype=torch.int64),
        labels=torch.zeros(1, dtype=torch.int64),
        loss_weight=zero,
        patches=None,
        feature_index=None,
        grid_thw=None,
        vision_plan=None,
        advantage=zero.clone(),
        engine_logp=zero.clone(),
        num_samples=1,
        is_filler=True,
    )
