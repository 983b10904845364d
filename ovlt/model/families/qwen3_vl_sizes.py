"""Sizes of dense Qwen3-VL (https://arxiv.org/abs/2511.21631): tokens, parameters, FLOPs, bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

from ovlt.model.sizes import (
    Activations,
    Block,
    Grid,
    Parameters,
    Sizes,
    TextSizes,
    VisionSizes,
    norm_and_mlp,
    patch_values,
)

TITLE = "Qwen3-VL"
TEXT_TYPES = ("qwen3",)
TEXT_DEFAULTS: dict[str, object] = {"head_dim": 128}
VISION_DEFAULTS: dict[str, object] = {
    "depth": 27,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_heads": 16,
    "in_channels": 3,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 3584,
    "num_position_embeddings": 2304,
    "deepstack_visual_indexes": [8, 16, 24],
}


class WideHeads(TextSizes, Protocol):
    """What only this family's decoder has."""

    head_dim: int  # not hidden_size / num_attention_heads


class DeepStackTower(VisionSizes, Protocol):
    """What only this family's tower has."""

    num_position_embeddings: int  # of a square table
    deepstack_visual_indexes: Sequence[int]  # blocks whose output the decoder's first layers get


def _widths(config: Sizes) -> tuple[int, int]:
    """Return the width of all queries and of all keys."""
    text = cast("WideHeads", config.text_config)
    return text.num_attention_heads * text.head_dim, text.num_key_value_heads * text.head_dim


def feature_values(config: Sizes) -> int:
    taps = _taps(config)
    return (1 + taps) * config.text_config.hidden_size


def decoder_flops(config: Sizes, num_tokens: int, context: int) -> float:
    text, (q, kv) = config.text_config, _widths(config)
    hidden, layers = text.hidden_size, text.num_hidden_layers
    per_token = 2 * layers * hidden * (2 * q + 2 * kv + 3 * text.intermediate_size)
    pairs = num_tokens * num_tokens / 2 + num_tokens * context  # of a query and a key
    return num_tokens * per_token + 4 * layers * q * pairs


def tower_flops(config: Sizes, grids: Sequence[Grid]) -> float:
    """Every block sees the whole image; a merger for the tower and one for each tap."""
    vision = cast("DeepStackTower", config.vision_config)
    v, unit = vision.hidden_size, vision.spatial_merge_size**2
    wide = v * unit
    block = 2 * (4 * v * v + 2 * v * vision.intermediate_size)
    merger = 2 * (wide * wide + wide * vision.out_hidden_size) / unit
    per_patch = vision.depth * block + 2 * v * patch_values(config)
    per_patch += (1 + _taps(config)) * merger
    total = 0.0
    for grid in grids:
        patches = grid[0] * grid[1] * grid[2]
        total += patches * (per_patch + 4 * v * vision.depth * grid[1] * grid[2])
    return total


def parameters(config: Sizes) -> Parameters:
    text, (q, kv) = cast("WideHeads", config.text_config), _widths(config)
    h = text.hidden_size
    layer = 2 * h * q + 2 * h * kv + 3 * h * text.intermediate_size + 2 * h + 2 * text.head_dim
    blocks, rest = tower_parameters(config)
    embedding = text.vocab_size * h
    return Parameters(
        tower_blocks=blocks,
        tower_rest=rest,
        layers=((text.num_hidden_layers, layer),),
        norm=h,
        embedding=embedding,
        head=0 if text.tie_word_embeddings else embedding,
    )


def tower_parameters(config: Sizes) -> tuple[tuple[tuple[int, int], ...], int]:
    """Return ``tower_blocks`` and ``tower_rest`` of Parameters."""
    vision = cast("DeepStackTower", config.vision_config)
    v, inner, out = vision.hidden_size, vision.intermediate_size, vision.out_hidden_size
    wide = v * vision.spatial_merge_size**2
    block = (3 * v * v + 3 * v) + (v * v + v) + (2 * v * inner + inner + v) + 4 * v
    merger = (wide * wide + wide) + (wide * out + out)
    table = vision.num_position_embeddings * v
    blocks = ((vision.depth, block), (_taps(config), merger + 2 * wide))
    rest = (patch_values(config) * v + v) + table + merger + 2 * v
    return tuple((count, size) for count, size in blocks if count), rest


def _taps(config: Sizes) -> int:
    """Return how many blocks DeepStack taps; a family whose tower has none may not name them."""
    return len(getattr(config.vision_config, "deepstack_visual_indexes", ()))


def decoder_activations(config: Sizes, itemsize: int, *, liger: bool, keys: float) -> Activations:
    """The norms of queries and keys keep their input; their output is rotated and not kept."""
    text, (q, kv), b = cast("WideHeads", config.text_config), _widths(config), itemsize
    h, heads = text.hidden_size, text.num_attention_heads
    norm, last, rows = norm_and_mlp(h, b, liger=liger)
    _, head_norm, _ = norm_and_mlp(text.head_dim, b, liger=liger)
    attention = round(b * (2 * q + 2 * kv * keys)) + 4 * heads
    attention += (heads + text.num_key_value_heads) * head_norm
    mlp = rows * b * text.intermediate_size
    return Activations(
        blocks=(Block(text.num_hidden_layers, 2 * norm + attention + mlp, mlp, b * h),),
        rest=last + 2 * b * text.head_dim,  # and cosines and sines
    )


def tower_activations(config: Sizes, itemsize: int, *, liger: bool) -> Activations:
    """Liger does nothing here. A LayerNorm keeps input, output, mean and scale; GELU its input.

    The values are a view of the joint query-key-value row, so the whole row stays in memory.
    """
    vision, b = cast("DeepStackTower", config.vision_config), itemsize
    v = vision.hidden_size
    norm = 2 * b * v + 8
    attention = (2 + 3 + 1) * b * v + 4 * vision.num_heads
    mlp = 2 * b * vision.intermediate_size
    mergers = (1 + _taps(config)) * (norm + 2 * b * v)
    return Activations(
        blocks=(Block(vision.depth, 2 * norm + attention + mlp, mlp, b * v),),
        rest=b * patch_values(config) + mergers + 8 * (v // max(1, vision.num_heads)),
    )


def kv_bytes_per_token(config: Sizes, itemsize: int) -> int:
    """A key and a value row in each layer."""
    return 2 * config.text_config.num_hidden_layers * _widths(config)[1] * itemsize


def state_bytes_per_sequence(config: Sizes, itemsize: int) -> int:
    return 0


def divides(config: Sizes, gpus: int) -> bool:
    return True
