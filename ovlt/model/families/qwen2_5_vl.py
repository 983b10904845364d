"""Qwen2.5-VL (https://arxiv.org/abs/2502.13923): packed model, windows of its tower, names."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import nn
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as theirs

from ovlt.model import liger
from ovlt.model.families.tiny import tiny_ids, tiny_text, tiny_tower
from ovlt.model.packed_model import PackedModel
from ovlt.model.segments import boundaries
from ovlt.model.sizes import Config, Grid
from ovlt.model.vision import VisionPlan, frame_lengths, patch_positions

if TYPE_CHECKING:
    from ovlt.config import BaseConfig
    from ovlt.model.families.qwen2_5_vl_sizes import WindowTower

LAYER_TYPES = frozenset(("full_attention",))
ROPE_KEYS: frozenset[str] = frozenset()


class PackedQwen25VL(  # pyright: ignore[reportIncompatibleMethodOverride, reportIncompatibleVariableOverride]
    PackedModel, Qwen2_5_VLForConditionalGeneration
):
    """Qwen2.5-VL on packed batches: nothing besides what all families do."""


MODEL = PackedQwen25VL


def check_config(config: Config) -> str:
    """Implement ``FamilyModel.check_config``."""
    vision = cast("WindowTower", config.vision_config)
    window, token = vision.window_size, vision.patch_size * vision.spatial_merge_size
    if window < token:
        return (
            f"window_size {window} of vision_config holds no token of {token} pixels: it must be "
            f"{token} or more"
        )
    return ""


@functools.lru_cache(maxsize=4096)  # datasets repeat sizes; 2 KB per 1,000 patches
def _windows(grid: Grid, merge: int, window: int) -> tuple[np.ndarray, tuple[int, ...]]:
    """Return the windows of one image, read row by row; ragged ones at the right and bottom.

    ``window`` is counted in merged tokens.

    Returns:
        The merged tokens in the order of their windows ``[P / merge^2]``; the length of each window
        in patches.
    """
    t, h, w = grid
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
    return np.concatenate([one_frame + f * mh * mw for f in range(t)]), tuple(lengths) * t


def vision_plan(grids: Sequence[Grid], config: Config) -> VisionPlan:
    """Implement ``FamilyModel.vision_plan``."""
    vision = cast("WindowTower", config.vision_config)
    merge = int(vision.spatial_merge_size)
    window = int(vision.window_size) // merge // int(vision.patch_size)
    order: list[np.ndarray] = []
    windows: list[int] = []  # patches of each
    offset = 0  # merged tokens of the images before this one
    for grid in grids:
        image_order, lengths = _windows(grid, merge, window)
        order.append(image_order + offset)
        windows.extend(lengths)
        offset += len(image_order)
    frames = frame_lengths(grids)
    positions = np.concatenate([patch_positions(grid, merge) for grid in grids])
    return VisionPlan(
        {
            "position_ids": torch.from_numpy(positions),  # int64 [P, 2]
            # merged tokens in the order of their windows, int64 [P / merge^2]
            "window_index": torch.from_numpy(np.concatenate(order)),
            "cu_window_seqlens": boundaries(windows),  # int32 [windows + 1], in patches
            "cu_seqlens": boundaries(frames),  # int32 [frames + 1], in patches
            "max_window_seqlen": max(windows),  # patches
            "max_seqlen": max(frames),  # patches
        }
    )


# transformers keeps the hub's old names on disk and uses other ones in memory.
_TO_DISK = (("model.language_model.", "model."), ("model.visual.", "visual."))


def disk_name(live: str) -> str:
    """Return the name of a parameter in a Hugging Face folder."""
    for memory, prefix in _TO_DISK:
        if live.startswith(memory):
            return prefix + live.removeprefix(memory)
    return live


def live_name(disk: str) -> str:
    """Return the name in memory of a tensor of a Hugging Face folder, old style or new."""
    if disk.startswith(("model.language_model.", "model.visual.", "lm_head.")):
        return disk
    for memory, prefix in reversed(_TO_DISK):
        if disk.startswith(prefix):
            return memory + disk.removeprefix(prefix)
    return disk


def is_left_out(disk: str) -> bool:
    """Implement ``FamilyModel.is_left_out``."""
    return False


def liger_forwards() -> Mapping[type[nn.Module], Callable[..., object]]:
    """Implement ``FamilyModel.liger_forwards``.

    Liger's own patch for this family is not used. It replaces classes for the whole process, and
    the M-RoPE function that it wants to replace no longer exists in transformers: the axes are
    combined in the rotary embedding, and each layer is left with the plain rotation.
    """
    return {
        theirs.Qwen2_5_VLRMSNorm: liger.rms_norm,
        theirs.Qwen2MLP: liger.swiglu,
        theirs.Qwen2_5_VLMLP: liger.swiglu,
        theirs.Qwen2_5_VLAttention: liger.rotated(theirs.Qwen2_5_VLAttention.forward),
    }


def engine_settings(device: torch.device) -> dict[str, object]:
    """Implement ``FamilyModel.engine_settings``."""
    return {}


def engine_dtypes(device: torch.device) -> tuple[torch.dtype, ...]:
    """Implement ``FamilyModel.engine_dtypes``."""
    return (torch.float32, torch.bfloat16)


def tiny(base: BaseConfig, tokenizer: PreTrainedTokenizerFast, rows: int) -> Qwen2_5_VLConfig:
    """Implement ``FamilyModel.tiny``."""
    head = base.hidden // base.heads
    # time, height, width share the head's frequencies as 1 : 1.5 : 1.5, as in the real ones
    section = [head // 8, head * 3 // 16, head * 3 // 16]
    return Qwen2_5_VLConfig(
        text_config=tiny_text(base, tokenizer, rows, section),
        vision_config={
            **tiny_tower(base),
            "fullatt_block_indexes": [base.vision_depth - 1],
            "window_size": 112,
        },
        **tiny_ids(tokenizer),
        tie_word_embeddings=base.tie_embeddings,
        architectures=[Qwen2_5_VLForConditionalGeneration.__name__],
    )


def tiny_processor(tokenizer: PreTrainedTokenizerFast, chat_template: str) -> Qwen2_5_VLProcessor:
    """Implement ``FamilyModel.tiny_processor``."""
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(),
        chat_template=chat_template,
    )
