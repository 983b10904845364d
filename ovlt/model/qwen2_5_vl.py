"""What ovlt knows about Qwen2.5-VL without running it: placeholders, positions, plans, names.

Another family is another file with the same functions. The model itself is ``packed_model``. What
can be counted without torch (tokens, parameters, FLOPs, bytes) is in ``qwen2_5_vl_sizes``; the
functions of it that the trainer uses can be imported from here too.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from ovlt.model.qwen2_5_vl_sizes import Grid, Sizes, TextSizes, tokens_per_image
from ovlt.model.qwen2_5_vl_sizes import image_grid as image_grid
from ovlt.model.qwen2_5_vl_sizes import merged_patch as merged_patch
from ovlt.model.segments import boundaries, to_device
from ovlt.model.template import VISION_TOKENS
from ovlt.model.tokenizer import Tokenizer

MODEL_TYPE = "qwen2_5_vl"  # as config.json spells it


class TextConfig(TextSizes, Protocol):
    max_position_embeddings: int


class Config(Sizes, Protocol):
    """What ovlt reads of a transformers configuration of this family."""

    model_type: str
    image_token_id: int

    def get_text_config(self) -> TextConfig: ...


def banned_ids(config: Config, tokenizer: Tokenizer) -> list[int]:
    """Return the ids that may never be sampled: vision tokens, and rows without a token."""
    vocabulary = tokenizer.get_vocab()
    vision = {vocabulary[token] for token in VISION_TOKENS if token in vocabulary}
    return sorted(vision | set(rows_without_token(config, tokenizer)))


def rows_without_token(config: Config, tokenizer: Tokenizer) -> list[int]:
    """Return the rows of embedding and head that no token of the tokenizer has."""
    tokens = set(tokenizer.get_vocab().values())  # ids may have gaps
    return [i for i in range(int(config.get_text_config().vocab_size)) if i not in tokens]


def mrope_positions(token_ids: np.ndarray, grids: Sequence[Grid], config: Config) -> np.ndarray:
    """Return the M-RoPE positions [3, tokens] of one sample (Qwen2-VL, section 2.1).

    The rows are time, height and width, and start at 0. Text advances all three together; an image
    holds time still and spreads height and width over its merged grid, and the text after it starts
    at the largest position so far plus one.

    Raises ValueError if the placeholders do not match the images.
    """
    merge = int(config.vision_config.spatial_merge_size)
    is_image = token_ids == int(config.image_token_id)
    expected = sum(tokens_per_image(config, g) for g in grids)
    if int(is_image.sum()) != expected:
        raise ValueError(
            f"{int(is_image.sum())} image placeholder tokens for {len(grids)} images that need "
            f"{expected}: was an image or its placeholder cut away?"
        )
    positions = np.empty((3, len(token_ids)), dtype=np.int64)
    at, next_position = 0, 0  # token, position
    for start, grid in zip(_image_starts(is_image, grids, config), grids, strict=True):
        text = np.arange(start - at) + next_position
        positions[:, at:start] = text
        next_position += start - at
        t, h, w = grid[0], grid[1] // merge, grid[2] // merge
        count = t * h * w
        axes = np.indices((t, h, w)).reshape(3, count)
        positions[:, start : start + count] = axes + next_position
        next_position += max(h, w)  # a still image: its single frame adds nothing in time
        at = start + count
    positions[:, at:] = np.arange(len(token_ids) - at) + next_position
    return positions


def _image_starts(is_image: np.ndarray, grids: Sequence[Grid], config: Sizes) -> list[int]:
    """Return the index of the first placeholder of each image."""
    slots = np.flatnonzero(is_image)
    starts: list[int] = []
    used = 0
    for grid in grids:
        count = tokens_per_image(config, grid)
        run = slots[used : used + count]
        if run[-1] - run[0] != count - 1:
            raise ValueError("the placeholder tokens of an image are not contiguous")
        starts.append(int(run[0]))
        used += count
    return starts


@functools.lru_cache(maxsize=4096)  # datasets repeat sizes; 18 KB per 1,000 patches
def _grid_plan(
    grid: Grid, merge: int, window: int
) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
    """Return the plan of one image.

    ``window`` is counted in merged tokens. Patches come in blocks of merge x merge, as the image
    processor lays them out; windows are read row by row and may be ragged at the right and bottom.

    Returns:
        Row and column of each patch ``[P, 2]``; its merged tokens in the order of their windows
        ``[P / merge^2]``; the length of each window in patches.
    """
    t, h, w = grid
    rows, columns = np.indices((h, w))
    blocks = (h // merge, merge, w // merge, merge)
    positions = np.stack(
        [x.reshape(blocks).transpose(0, 2, 1, 3).ravel() for x in (rows, columns)], axis=-1
    )
    mh, mw = h // merge, w // merge
    index = np.arange(mh * mw).reshape(mh, mw)
    order: list[np.ndarray] = []
    lengths: list[int] = []
    for top in range(0, mh, window):
        for left in range(0, mw, window):
            cell = index[top : top + window, left : left + window].ravel()
            order.append(cell)
            lengths.append(len(cell) * merge * merge)
    one_frame = np.concatenate(order)
    frames = np.concatenate([one_frame + f * mh * mw for f in range(t)])
    return np.tile(positions, (t, 1)), frames, tuple(lengths) * t


class VisionPlan(NamedTuple):
    """Where the tower's patches lie and which of them attend to each other.

    The fields are the keyword arguments of transformers' vision tower, which would otherwise
    compute them in each forward, with Python loops that wait for the device.
    """

    position_ids: Tensor  # int64 [P, 2]  row and column of each patch in its image
    window_index: Tensor  # int64 [P / merge^2]  merged tokens in the order of their windows
    cu_window_seqlens: Tensor  # int32 [windows + 1]  boundaries in patches
    cu_seqlens: Tensor  # int32 [frames + 1]  boundaries of whole images, in patches
    max_window_seqlen: int  # patches
    max_seqlen: int  # patches

    def to(self, device: torch.device | str) -> VisionPlan:
        """The same plan with every tensor on ``device``."""
        return VisionPlan(
            to_device(self.position_ids, device),
            to_device(self.window_index, device),
            to_device(self.cu_window_seqlens, device),
            to_device(self.cu_seqlens, device),
            self.max_window_seqlen,
            self.max_seqlen,
        )


def vision_plan(grids: Sequence[Grid], config: Sizes) -> VisionPlan:
    """Return the plan of one pass of the tower over images with these patch grids."""
    vision = config.vision_config
    merge = int(vision.spatial_merge_size)
    window = int(vision.window_size) // merge // int(vision.patch_size)
    positions: list[np.ndarray] = []
    order: list[np.ndarray] = []
    windows: list[int] = []  # patches of each
    frames: list[int] = []  # patches of each
    offset = 0  # merged tokens of the images before this one
    for grid in grids:
        image_positions, image_order, lengths = _grid_plan(grid, merge, window)
        positions.append(image_positions)
        order.append(image_order + offset)
        windows.extend(lengths)
        frames.extend([grid[1] * grid[2]] * grid[0])
        offset += len(image_order)
    return VisionPlan(
        position_ids=torch.from_numpy(np.concatenate(positions)),
        window_index=torch.from_numpy(np.concatenate(order)),
        cu_window_seqlens=boundaries(windows),
        cu_seqlens=boundaries(frames),
        max_window_seqlen=max(windows),
        max_seqlen=max(frames),
    )


# transformers keeps the hub's old names on disk and uses other ones in memory.
_TO_DISK = (("model.language_model.", "model."), ("model.visual.", "visual."))


def disk_name(live: str) -> str:
    """Return the name of a parameter in a Hugging Face folder."""
    for ours, theirs in _TO_DISK:
        if live.startswith(ours):
            return theirs + live.removeprefix(ours)
    return live


def live_name(disk: str) -> str:
    """Return the name in memory of a tensor of a Hugging Face folder, old style or new."""
    if disk.startswith(("model.language_model.", "model.visual.", "lm_head.")):
        return disk
    for ours, theirs in reversed(_TO_DISK):
        if disk.startswith(theirs):
            return ours + disk.removeprefix(theirs)
    return disk
