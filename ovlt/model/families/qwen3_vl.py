"""Dense Qwen3-VL (https://arxiv.org/abs/2511.21631): DeepStack, and a table of positions."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)
from transformers.models.qwen3_vl import modeling_qwen3_vl as theirs

from ovlt.model import liger
from ovlt.model.families.tiny import tiny_ids, tiny_text, tiny_tower
from ovlt.model.packed_model import PackedModel
from ovlt.model.segments import boundaries
from ovlt.model.sizes import Config, Grid
from ovlt.model.vision import VisionPlan, frame_lengths, patch_positions

if TYPE_CHECKING:
    from ovlt.config import BaseConfig
    from ovlt.model.families.qwen3_vl_sizes import DeepStackTower

LAYER_TYPES = frozenset(("full_attention",))
ROPE_KEYS = frozenset(("mrope_interleaved",))


class PackedQwen3VL(  # pyright: ignore[reportIncompatibleMethodOverride, reportIncompatibleVariableOverride]
    PackedModel, Qwen3VLForConditionalGeneration
):
    """Qwen3-VL on packed batches.

    DeepStack (https://arxiv.org/abs/2406.04334): the outputs of some tower blocks are added to the
    hidden states of the image placeholders after the decoder's first layers.
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        decoder = self.model.language_model
        if not hasattr(decoder, "_deepstack_process"):
            raise RuntimeError(
                "this transformers adds DeepStack's features in a way that ovlt does not know"
            )
        # transformers' own selects by a mask, and so waits for the device twice a layer.
        decoder._deepstack_process = add_at_slots

    def groups(self) -> list[nn.Module]:
        """A merger of DeepStack is a group of its own: in the root it would stay gathered."""
        return [*super().groups(), *self.model.visual.deepstack_merger_list]

    def tower_outputs(self, output: Any) -> tuple[Tensor, ...]:
        """The features of the images, and those of each tapped block."""
        return (output.pooler_output, *output.deepstack_features)

    def decoder_keywords(self, slots: Tensor, others: Sequence[Tensor]) -> dict[str, object]:
        """``visual_pos_masks`` is what ``add_at_slots`` gets: places in place of a mask."""
        return {"visual_pos_masks": slots, "deepstack_visual_embeds": list(others)}


MODEL = PackedQwen3VL


def add_at_slots(hidden: Tensor, slots: Tensor, features: Tensor) -> Tensor:
    """Add features [image tokens, H] to the hidden states [1, T, H] at ``slots``."""
    return hidden.index_add(1, slots, features[None])


def check_config(config: Config) -> str:
    """Implement ``FamilyModel.check_config``."""
    vision = cast("DeepStackTower", config.vision_config)
    rope = cast("Mapping[str, object]", getattr(config.text_config, "rope_parameters", None) or {})
    if not rope.get("mrope_interleaved", True):
        return "mrope_interleaved is false, but transformers interleaves the axes always"
    if math.isqrt(table := vision.num_position_embeddings) ** 2 != table:
        return f"num_position_embeddings {table} of vision_config is no square"
    taps = list(vision.deepstack_visual_indexes)
    if sorted(set(taps) & set(range(vision.depth))) != taps:
        return (
            f"deepstack_visual_indexes {taps} of vision_config must be ascending and name some of "
            f"the {vision.depth} blocks, from 0 on"
        )
    if len(taps) > (layers := config.text_config.num_hidden_layers):
        return f"{len(taps)} deepstack_visual_indexes for a decoder of {layers} layers"
    return ""


@functools.lru_cache(maxsize=4096)  # datasets repeat sizes; 48 KB per 1,000 patches
def _interpolation(grid: Grid, merge: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Return which rows of the table of ``side`` x ``side`` positions a patch gets, and how much.

    Bilinear, with the corners of image and table aligned, as ``torch.nn.functional.interpolate``.

    Returns:
        Rows int64 ``[P, 4]`` and their weights float32 ``[P, 4]``.
    """
    taps: list[np.ndarray] = []
    weights: list[np.ndarray] = []
    positions = patch_positions(grid, merge)
    for axis, size in enumerate(grid[1:]):
        index = positions[:, axis].astype(np.float32)
        source = index * np.float32(side - 1) / np.float32(max(size - 1, 1))
        floor = np.floor(source)
        near = floor[:, None].astype(np.int64) + np.arange(2)
        distance = np.abs(source[:, None] - floor[:, None] - np.arange(2, dtype=np.float32))
        taps.append(near.clip(0, side - 1))
        weights.append((1 - distance).clip(min=0))
    rows, columns = taps
    return (
        (rows[:, :, None] * side + columns[:, None, :]).reshape(-1, 4),
        (weights[0][:, :, None] * weights[1][:, None, :]).reshape(-1, 4),
    )


def vision_plan(grids: Sequence[Grid], config: Config) -> VisionPlan:
    """Implement ``FamilyModel.vision_plan``."""
    vision = cast("DeepStackTower", config.vision_config)
    merge, side = int(vision.spatial_merge_size), math.isqrt(vision.num_position_embeddings)
    frames = frame_lengths(grids)
    positions = np.concatenate([patch_positions(grid, merge) for grid in grids])
    table = [_interpolation(grid, merge, side) for grid in grids]
    return VisionPlan(
        {
            "position_ids": torch.from_numpy(positions),  # int64 [P, 2]
            "interp_indices": torch.from_numpy(np.concatenate([rows for rows, _ in table])),
            "interp_weights": torch.from_numpy(np.concatenate([part for _, part in table])),
            "cu_seqlens": boundaries(frames),  # int32 [frames + 1], in patches
            "max_seqlen": max(frames),  # patches
        }
    )


def disk_name(live: str) -> str:
    """Implement ``FamilyModel.disk_name``: folders have the names that transformers has."""
    return live


def live_name(disk: str) -> str:
    """Implement ``FamilyModel.live_name``."""
    return disk


def is_left_out(disk: str) -> bool:
    """Implement ``FamilyModel.is_left_out``."""
    return False


def liger_forwards() -> Mapping[type[nn.Module], Callable[..., object]]:
    """Implement ``FamilyModel.liger_forwards``: the decoder's; the tower has LayerNorm and GELU."""
    return {
        theirs.Qwen3VLTextRMSNorm: liger.rms_norm,
        theirs.Qwen3VLTextMLP: liger.swiglu,
        theirs.Qwen3VLTextAttention: liger.rotated(theirs.Qwen3VLTextAttention.forward),
    }


def engine_settings(device: torch.device) -> dict[str, object]:
    """Implement ``FamilyModel.engine_settings``."""
    return {}


def engine_dtypes(device: torch.device) -> tuple[torch.dtype, ...]:
    """Implement ``FamilyModel.engine_dtypes``."""
    return (torch.float32, torch.bfloat16)


def tiny(base: BaseConfig, tokenizer: PreTrainedTokenizerFast, rows: int) -> Qwen3VLConfig:
    """Implement ``FamilyModel.tiny``."""
    head = base.hidden // base.heads
    # time, height, width share the head's frequencies as 24 : 20 : 20, as in the real ones
    part = head // 2 * 5 // 16
    text = tiny_text(base, tokenizer, rows, [head // 2 - 2 * part, part, part])
    text["rope_parameters"] = cast("dict[str, object]", text["rope_parameters"]) | {
        "mrope_interleaved": True
    }
    return Qwen3VLConfig(
        text_config=text | {"head_dim": head},
        vision_config={
            **tiny_tower(base),
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": list(range(min(3, base.vision_depth, base.layers))),
        },
        **tiny_ids(tokenizer),
        tie_word_embeddings=base.tie_embeddings,
        architectures=[Qwen3VLForConditionalGeneration.__name__],
    )


def tiny_processor(tokenizer: PreTrainedTokenizerFast, chat_template: str) -> Qwen3VLProcessor:
    """Implement ``FamilyModel.tiny_processor``. Real folders ask for 65,536 pixels at least."""
    half = [0.5, 0.5, 0.5]
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(
            patch_size=16,
            image_mean=half,
            image_std=half,
            size={"shortest_edge": 56 * 56, "longest_edge": 4096 * 32 * 32},
        ),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(),
        chat_template=chat_template,
    )
