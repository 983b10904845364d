"""Sizes of Qwen2.5-VL (https://arxiv.org/abs/2502.13923): tokens, parameters, FLOPs, bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

from ovlt.model.sizes import (
    Activations,
    Block,
    Grid,
    Parameters,
    Sizes,
    VisionSizes,
    norm_and_mlp,
    patch_values,
)

TITLE = "Qwen2.5-VL"
TEXT_TYPES = ("qwen2",)
TEXT_DEFAULTS: dict[str, object] = {}
VISION_DEFAULTS: dict[str, object] = {
    "depth": 32,
    "hidden_size": 3584,
    "intermediate_size": 3420,
    "num_heads": 16,
    "in_channels": 3,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "window_size": 112,
    "out_hidden_size": 3584,
    "fullatt_block_indexes": [7, 15, 23, 31],
}


class WindowTower(VisionSizes, Protocol):
    """What only this family's tower has."""

    window_size: int  # pixels
    fullatt_block_indexes: Sequence[int]  # blocks that see the whole image, not a window of it


def feature_values(config: Sizes) -> int:
    return config.text_config.hidden_size


def decoder_flops(config: Sizes, num_tokens: int, context: int) -> float:
    text = config.text_config
    hidden, layers = text.hidden_size, text.num_hidden_layers
    kv = hidden * text.num_key_value_heads // text.num_attention_heads
    per_token = 2 * layers * (2 * hidden * hidden + 2 * hidden * kv)
    per_token += 2 * layers * 3 * hidden * text.intermediate_size
    pairs = num_tokens * num_tokens / 2 + num_tokens * context  # of a query and a key
    return num_tokens * per_token + 4 * layers * hidden * pairs


def tower_flops(config: Sizes, grids: Sequence[Grid]) -> float:
    """Attention counts every window or, in the full-attention blocks, the whole image."""
    vision = cast("WindowTower", config.vision_config)
    total = 0.0
    vh, merge = vision.hidden_size, vision.spatial_merge_size
    full = len(set(vision.fullatt_block_indexes) & set(range(vision.depth)))
    window = (vision.window_size // vision.patch_size) ** 2
    for grid in grids:
        patches = grid[0] * grid[1] * grid[2]
        block = 2 * (4 * vh * vh + 3 * vh * vision.intermediate_size)
        embed = 2 * vh * patch_values(config)
        wide = vh * merge * merge
        merger = 2 * (wide * wide + wide * vision.out_hidden_size) / (merge * merge)
        total += patches * (vision.depth * block + embed + merger)
        keys = full * (grid[1] * grid[2]) + (vision.depth - full) * min(window, patches)
        total += 4 * vh * patches * keys  # q k^T and its product with v, over all blocks
    return total


def parameters(config: Sizes) -> Parameters:
    text, vision = config.text_config, config.vision_config
    h, inner = text.hidden_size, text.intermediate_size
    kv = h * text.num_key_value_heads // text.num_attention_heads
    attention = (h * h + h) + 2 * (h * kv + kv) + h * h
    v, wide = vision.hidden_size, vision.hidden_size * vision.spatial_merge_size**2
    mlp = 2 * (v * vision.intermediate_size + vision.intermediate_size)
    mlp += vision.intermediate_size * v + v
    merger = v + (wide * wide + wide) + (wide * vision.out_hidden_size + vision.out_hidden_size)
    embedding = text.vocab_size * h
    return Parameters(
        tower_blocks=((vision.depth, (3 * v * v + 3 * v) + (v * v + v) + mlp + 2 * v),),
        tower_rest=patch_values(config) * v + merger,
        layers=((text.num_hidden_layers, attention + 3 * h * inner + 2 * h),),
        norm=h,
        embedding=embedding,
        head=0 if text.tie_word_embeddings else embedding,
    )


def decoder_activations(config: Sizes, itemsize: int, *, liger: bool, keys: float) -> Activations:
    text = config.text_config
    h, b = text.hidden_size, itemsize
    kv = h * text.num_key_value_heads // text.num_attention_heads
    norm, last, rows = norm_and_mlp(h, b, liger=liger)
    attention = round(b * (2 * h + 2 * kv * keys)) + 4 * text.num_attention_heads
    mlp = rows * b * text.intermediate_size
    return Activations(
        blocks=(Block(text.num_hidden_layers, 2 * norm + attention + mlp, mlp, b * h),),
        rest=last + 2 * b * (h // text.num_attention_heads),  # and cosines and sines
    )


def tower_activations(config: Sizes, itemsize: int, *, liger: bool) -> Activations:
    """The values are a view of the joint query-key-value row, so the whole row stays in memory."""
    vision = config.vision_config
    v, b = vision.hidden_size, itemsize
    norm, _, rows = norm_and_mlp(v, b, liger=liger)
    attention = (2 + 3 + 1) * b * v + 4 * vision.num_heads
    mlp = rows * b * vision.intermediate_size
    return Activations(
        blocks=(Block(vision.depth, 2 * norm + attention + mlp, mlp, b * v),),
        rest=b * patch_values(config) + norm + 2 * b * v + 8 * (v // vision.num_heads),
    )


def kv_bytes_per_token(config: Sizes, itemsize: int) -> int:
    """A key and a value row in each layer."""
    text = config.text_config
    kv = text.hidden_size * text.num_key_value_heads // text.num_attention_heads
    return 2 * text.num_hidden_layers * kv * itemsize


def state_bytes_per_sequence(config: Sizes, itemsize: int) -> int:
    return 0


def divides(config: Sizes, gpus: int) -> bool:
    return True
