"""Sizes of Qwen3.5 (dense): tokens, parameters, FLOPs, bytes. Two kinds of decoder layers.

Most layers keep a state by the gated delta rule ("linear attention"), every fourth attends to all
tokens. The state costs the engine memory for each running sequence, not for each token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

from ovlt.model.families import qwen3_vl_sizes as tower
from ovlt.model.sizes import Activations, Block, Parameters, Sizes, TextSizes, norm_and_mlp

TITLE = "Qwen3.5"
TEXT_TYPES = ("qwen3_5_text",)
TEXT_DEFAULTS: dict[str, object] = {
    "head_dim": 256,
    "layer_types": None,
    "full_attention_interval": 4,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
}
VISION_DEFAULTS = tower.VISION_DEFAULTS | {"deepstack_visual_indexes": []}
CHUNK = 64  # tokens that the delta rule computes at once


class Text(TextSizes, Protocol):
    """What only this family's decoder has."""

    head_dim: int
    layer_types: Sequence[str] | None  # None: every ``full_attention_interval``-th is full
    full_attention_interval: int
    linear_conv_kernel_dim: int
    linear_key_head_dim: int
    linear_value_head_dim: int
    linear_num_key_heads: int
    linear_num_value_heads: int


def _text(config: Sizes) -> Text:
    return cast("Text", config.text_config)


def full_layers(text: Text) -> int:
    """Return how many layers attend to all tokens; the others keep a state."""
    if text.layer_types is not None:
        return list(text.layer_types).count("full_attention")
    return text.num_hidden_layers // text.full_attention_interval


def _linear_layers(text: Text) -> int:
    return text.num_hidden_layers - full_layers(text)


def _widths(text: Text) -> tuple[int, int, int, int]:
    """Return the widths of all queries, keys of full layers; keys, values of linear ones."""
    return (
        text.num_attention_heads * text.head_dim,
        text.num_key_value_heads * text.head_dim,
        text.linear_num_key_heads * text.linear_key_head_dim,
        text.linear_num_value_heads * text.linear_value_head_dim,
    )


# The tower is Qwen3-VL's, without DeepStack.
tower_flops = tower.tower_flops
tower_activations = tower.tower_activations


def decoder_flops(config: Sizes, num_tokens: int, context: int) -> float:
    """A linear layer costs the same for every token, whatever is before it."""
    text = _text(config)
    h, (q, kv, keys, values) = text.hidden_size, _widths(text)
    heads, dk, dv = (
        text.linear_num_value_heads, text.linear_key_head_dim, text.linear_value_head_dim,
    )  # fmt: skip
    mlp = 2 * 3 * h * text.intermediate_size
    full = 2 * h * (2 * q + 2 * kv) + 2 * q * h + mlp
    mixed = 2 * keys + values
    linear = 2 * h * (mixed + values + 2 * heads) + 2 * values * h + mlp
    linear += 2 * text.linear_conv_kernel_dim * mixed
    linear += heads * (6 * dk * dv + CHUNK * (2 * dk + dv) + CHUNK * (dk + dv))
    pairs = num_tokens * num_tokens / 2 + num_tokens * context  # of a query and a key
    per_token = full_layers(text) * full + _linear_layers(text) * linear
    return num_tokens * per_token + 4 * full_layers(text) * q * pairs


def parameters(config: Sizes) -> Parameters:
    text = _text(config)
    h, (q, kv, keys, values) = text.hidden_size, _widths(text)
    heads, mixed = text.linear_num_value_heads, 2 * keys + values
    both = 3 * h * text.intermediate_size + 2 * h  # the MLP and two norms
    full = h * (2 * q + 2 * kv) + q * h + 2 * text.head_dim + both
    linear = h * (mixed + values + 2 * heads) + values * h + both
    linear += text.linear_conv_kernel_dim * mixed + 2 * heads + text.linear_value_head_dim
    layers = ((_linear_layers(text), linear), (full_layers(text), full))
    embedding = text.vocab_size * h
    blocks, rest = tower.tower_parameters(config)
    return Parameters(
        tower_blocks=blocks,
        tower_rest=rest,
        layers=tuple((count, size) for count, size in layers if count),
        norm=h,
        embedding=embedding,
        head=0 if text.tie_word_embeddings else embedding,
    )


def decoder_activations(config: Sizes, itemsize: int, *, liger: bool, keys: float) -> Activations:
    """What fla's operations keep in the linear layers; the torch backend keeps several times it."""
    text = _text(config)
    h, b, (q, kv, dk, dv) = text.hidden_size, itemsize, _widths(text)
    norm, last, rows = norm_and_mlp(h, b, liger=liger)
    mlp = rows * b * text.intermediate_size
    heads, key_heads = text.linear_num_value_heads, text.linear_num_key_heads
    # Full: the norms of the heads, rotated queries, keys and values, output, gate and its sigmoid.
    heads_norm, _, _ = norm_and_mlp(q + kv, b, liger=liger)
    attention = heads_norm + round(b * (q + 2 * kv * keys)) + 3 * b * q
    attention += 4 * text.num_attention_heads + b * q
    # Linear: the convolution's input; queries, keys and values with the former two normalised;
    # the gates, the chunks' triangular inverse, the output, its norm and gate.
    mixed = 2 * dk + dv
    linear = b * mixed + b * (2 * dk + dv) + 8 * key_heads
    linear += heads * (4 * 4 + 2 * b) + b * heads * CHUNK
    linear += b * dv + (4 + 4 + b) * dv + (4 + b) * dv + b * dv
    blocks = (
        Block(_linear_layers(text), 2 * norm + linear + mlp, mlp, b * h),
        Block(full_layers(text), 2 * norm + attention + mlp, mlp, b * h),
    )
    return Activations(
        blocks=tuple(block for block in blocks if block.count),
        rest=last + 2 * b * text.head_dim // 4,  # and cosines and sines of the rotated quarter
    )


def kv_bytes_per_token(config: Sizes, itemsize: int) -> int:
    """A key and a value row in each full layer."""
    text = _text(config)
    return 2 * full_layers(text) * text.num_key_value_heads * text.head_dim * itemsize


def state_bytes_per_sequence(config: Sizes, itemsize: int) -> int:
    """A float32 state and the last inputs of the convolution in each linear layer."""
    text = _text(config)
    _, _, keys, values = _widths(text)
    state = text.linear_num_value_heads * text.linear_key_head_dim * text.linear_value_head_dim
    inputs = (text.linear_conv_kernel_dim - 1) * (2 * keys + values)
    return _linear_layers(text) * (4 * state + itemsize * inputs)


def divides(config: Sizes, gpus: int) -> bool:
    text = _text(config)
    return text.linear_num_key_heads % gpus == 0 and text.linear_num_value_heads % gpus == 0

