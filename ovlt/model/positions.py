"""M-RoPE positions of one sample; all families that ovlt knows place still images alike."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ovlt.model.sizes import Config, Grid, Sizes, tokens_per_image


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
