"""Sizes of Qwen3.5 (dense): tokens, parameters, FLOPs, bytes. Two kinds of decoder layers.

Most layers keep a state by the gated delta rule ("linear attention"), every fourth attends to all
tokens. The state costs the engine memory for each running sequence, not for each token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

from ovlt.model.families import qwen3_vl_sizes as tower
from ovlt.model.sizes import Activations, Block, Parameters, Sizes, TextSizes

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
feature_values = tower.feature_values


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
    """What fla's operations keep in the recurrent layers; the torch backend keeps much more."""
    text = _text(config)
    h, b, (q, kv, dk, dv) = text.hidden_size, itemsize, _widths(text)
    norm, mlp = _norm(h, b, liger=liger), (3 if liger else 4) * b * text.intermediate_size
    # Full: the norms of the heads, whose output is rotated; rotated queries and keys, values and
    # output of attention; the gate's sigmoid and the gated output.
    heads = text.num_attention_heads + text.num_key_value_heads
    full = _norm(q + kv, b, liger=liger) + 4 * (heads - 1) + 4 * text.num_attention_heads
    full += round(b * (2 * q + 2 * kv * keys)) + 2 * b * q
    # Recurrent: the convolution's input; queries and keys of length 1 with their lengths, values;
    # the softplus' input and output, decays and betas; the inverse of each chunk's system.
    heads = text.linear_num_value_heads
    linear = b * (2 * dk + dv) + b * (2 * dk + dv) + 8 * text.linear_num_key_heads
    linear += heads * (3 * 4 + b) + b * heads * CHUNK
    # Its gated norm, in transformers' modules: the input, the gate and its SiLU in float32; the
    # normalised row, the same times the weight, and the output.
    linear += (3 * 4 + 3 * b) * dv + 4 * heads
    blocks = (
        Block(_linear_layers(text), 2 * (norm + b * h) + linear + mlp, mlp, b * h),
        Block(full_layers(text), 2 * (norm + b * h) + full + mlp, mlp, b * h),
    )
    rotated = text.head_dim // 4  # cosines and sines are of these
    return Activations(
        blocks=tuple(block for block in blocks if block.count), rest=norm + 2 * b * rotated
    )


def _norm(width: int, itemsize: int, *, liger: bool) -> int:
    """Return the bytes of a zero-centred norm besides its output: it multiplies in float32."""
    return itemsize * width + 4 if liger else 8 * width + 4


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
