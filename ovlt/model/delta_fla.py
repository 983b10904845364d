"""The gated delta rule and the short convolution of packed segments by fla, on a GPU.

flash-linear-attention (https://github.com/fla-org/flash-linear-attention) has both as Triton
kernels with boundaries. Its package ``fla-core`` is optional; a version that was not tried is
refused, since a keyword that a function drops without a word would let samples leak into each
other.
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from ovlt.model.attention import gather_rows
from ovlt.model.delta_layout import DeltaLayout

VERSIONS = ("0.6.0",)  # those that the tests were run with
CURE = f"pip install 'fla-core=={VERSIONS[-1]}'"


def obstacle(device: torch.device, dtype: torch.dtype) -> str:
    """Return why fla cannot run here, with the cure; empty if it can."""
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"it needs CUDA tensors, not {device.type}"
    if dtype not in (torch.bfloat16, torch.float16, torch.float32):
        return f"it takes bfloat16, float16 and float32, not {dtype}"
    try:
        version = importlib.metadata.version("fla-core")
    except importlib.metadata.PackageNotFoundError:
        return f"fla-core is not installed: {CURE}"
    if version not in VERSIONS:
        return f"fla-core {version} was not tried with ovlt: {CURE}"
    return ""


def delta_fla(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, layout: DeltaLayout
) -> Tensor:
    """Return the outputs [T, Hv, V] of the delta rule in the dtype of q.

    q and k are [T, Hk, K] as projected, v is [T, Hv, V], g and beta are [T, Hv].
    """
    rule = _rule()

    def call(inputs: list[Tensor], number: int, state: Tensor | None) -> tuple[Tensor, Tensor]:
        boundaries = layout.levels[number].boundaries
        out, ends = rule(
            *(x[None] for x in inputs),
            initial_state=state,
            output_final_state=number + 1 < len(layout.levels),
            use_qk_l2norm_in_kernel=True,
            cu_seqlens=boundaries.there,
            cu_seqlens_cpu=boundaries.host,
        )
        return out[0], ends

    inputs, levels = [q, k, v, g, beta], layout.levels
    if len(levels) == 1:
        return call(inputs, 0, None)[0]
    first, second = levels
    assert first.rows is not None
    assert second.rows is not None
    assert second.parents is not None
    out, ends = call([x.index_select(0, first.rows) for x in inputs], 0, None)
    state = gather_rows(ends, second.parents)  # float32; backward sums over the responses
    more, _ = call([x.index_select(0, second.rows) for x in inputs], 1, state)
    places = torch.cat([first.rows, second.rows])
    return torch.empty_like(v, dtype=out.dtype).index_copy(0, places, torch.cat([out, more]))


def conv_fla(x: Tensor, weight: Tensor, layout: DeltaLayout) -> Tensor:
    """Return SiLU of the convolution of x [T, C] with weight [C, W], in the dtype of x."""
    shared = len(layout.levels) == 2
    if shared:  # copies of a prompt's last inputs stand before each of its responses
        contexts = layout.contexts(weight.shape[1] - 1, zeros=False)
        index = contexts.own.new_empty(contexts.total)
        index[contexts.own] = torch.arange(len(x), device=x.device)
        index[contexts.places] = contexts.sources
        x = gather_rows(x, index)
        boundaries = contexts.boundaries
    else:
        contexts, boundaries = None, layout.levels[0].boundaries
    out, _ = _convolution()(
        x[None],
        weight,
        activation="silu",
        cu_seqlens=boundaries.there,
        cu_seqlens_cpu=boundaries.host,
    )
    return out[0] if contexts is None else out[0].index_select(0, contexts.own)


# Imported when they are called: fla is optional, and wants a GPU's driver when it is imported.


def _rule() -> Callable[..., Any]:
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule

    return chunk_gated_delta_rule


def _convolution() -> Callable[..., Any]:
    from fla.modules.causal_conv1d import causal_conv1d

    # What its type is depends on a decorator that checkers read in different ways.
    return cast("Callable[..., Any]", causal_conv1d)
