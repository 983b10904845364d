"""Liger's operations in transformers' modules against the modules as they are.

For a GPU only: on a CPU Liger's kernels do not run, nothing is collected from this file, and
tests/model/test_liger.py shows their parity in Triton's interpreter. A group is one module of one
model in bfloat16, forward and backward: a norm, the MLP, the rotation of queries and keys, a whole
decoder layer over packed segments, a block of the vision tower. "ovlt" has Liger's operations,
"eager" is the module as it is: ``model.liger`` is worth its place where the first is faster.
Errors are those of the output and of the input's gradient, over the first two segments.
"""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from timing import DEVICE, relative_errors, timed
from torch import Tensor, nn
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as theirs

from ovlt.model import attention, liger
from ovlt.model.families import family_named
from ovlt.model.segments import segments_of

__test__ = DEVICE.type == "cuda"

TOKENS, SEGMENT = (16_384, 512) if DEVICE.type == "cuda" else (6, 3)
DTYPE = torch.bfloat16
EXAMINED = 2 * SEGMENT  # rows that are also computed in float64
# hidden, intermediate, query heads, key and value heads (0: the vision tower), as in config.json
SHAPES = {
    "3B": (2048, 11_008, 16, 2),
    "7B": (3584, 18_944, 28, 4),
    "tower": (1280, 3420, 16, 0),
}
PARTS = [
    *((shape, part) for shape in ("3B", "7B") for part in ("norm", "mlp", "rotation", "layer")),
    ("tower", "norm"),
    ("tower", "layer"),
]


@functools.cache  # as in a model, whose layers share them
@functools.cache
def boundaries(rows: int) -> Tensor:
    return torch.arange(0, rows + 1, SEGMENT, dtype=torch.int32, device=DEVICE)


@functools.cache
def turn(rows: int, head_dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin [1,T,D] of random angles, their halves equal as transformers makes them."""
    generator = torch.Generator().manual_seed(1)
    angles = torch.randn(1, TOKENS, head_dim // 2, generator=generator).repeat(1, 1, 2)
    return angles.cos()[:, :rows].to(DEVICE, dtype), angles.sin()[:, :rows].to(DEVICE, dtype)


class Layer(nn.Module):
    """A layer or a part of it: hidden states [1,T,H] -> [1,T,*]."""

    def __init__(self, shape: str, part: str) -> None:
        super().__init__()
        hidden, intermediate, self.heads, self.kv_heads = SHAPES[shape]
        self.part, self.head_dim = part, hidden // self.heads
        self.width = hidden
        if part == "rotation":
            self.width = self.head_dim * (self.heads + self.kv_heads)
        if shape == "tower":
            vision: Any = theirs.Qwen2_5_VLVisionConfig(
                hidden_size=hidden, intermediate_size=intermediate, num_heads=self.heads
            )
            vision._attn_implementation = attention.VISION_ATTENTION
            self.layer: Any = theirs.Qwen2_5_VLVisionBlock(vision)
            self.norm = self.layer.norm1
        else:
            text: Any = theirs.Qwen2_5_VLTextConfig(
                hidden_size=hidden,
                intermediate_size=intermediate,
                num_attention_heads=self.heads,
                num_key_value_heads=self.kv_heads,
            )
            text._attn_implementation = attention.TEXT_ATTENTION
            self.layer = theirs.Qwen2_5_VLDecoderLayer(text, 0)
            self.norm = self.layer.input_layernorm

    def forward(self, x: Tensor) -> Tensor:
        rows = x.shape[1]
        if self.part == "norm":
            return self.norm(x)
        if self.part == "mlp":
            return self.layer.mlp(x)
        cos, sin = turn(rows, self.head_dim, x.dtype)
        if self.part == "rotation":
            rotate = self.layer.self_attn.forward.__func__.__globals__[liger.ROTATION]
            # a copy, as Liger overwrites what it is given
            heads = x.clone().view(1, rows, -1, self.head_dim).transpose(1, 2)
            turned = rotate(*heads.split([self.heads, self.kv_heads], dim=1), cos, sin)
            return torch.cat(turned, dim=1).transpose(1, 2).flatten(2)
        if self.kv_heads:
            return self.layer(
                x,
                position_embeddings=(cos, sin),
                ovlt_segments=segments_of(boundaries(rows)),
            )
        return self.layer(
            x[0],
            position_embeddings=(cos[0], sin[0]),
            cu_seqlens=boundaries(rows),
            max_seqlen=SEGMENT,
        )[None]


def gradients(module: Layer, x: Tensor, upstream: Tensor) -> list[Tensor]:
    """The output, and the gradients of the input and of the weights that take part."""
    x = x.requires_grad_()
    out = module(x)
    kept = out.detach().clone()
    weights = list(module.parameters())
    return [kept, *torch.autograd.grad(out, [x, *weights], upstream, allow_unused=True)]


@pytest.mark.parametrize("which", ["ovlt", "eager"])
@pytest.mark.parametrize(("shape", "part"), PARTS)
def test_module(benchmark: Any, shape: str, part: str, which: str) -> None:
    attention.register()
    torch.manual_seed(0)
    module = Layer(shape, part).to(DEVICE, DTYPE)
    x, upstream = torch.randn(2, 1, TOKENS, module.width).to(DEVICE, DTYPE)
    some = [t[:, :EXAMINED].clone() for t in (x, upstream)]
    exact = gradients(copy.deepcopy(module).double(), *(t.double() for t in some))[:2]
    if which == "ovlt":
        liger.apply(module, family_named("qwen2_5_vl"))
    errors = relative_errors(gradients(module, *some)[:2], exact)
    del exact
    # a norm's backward writes over `upstream`; that changes no time
    timed(
        benchmark,
        f"layer {shape} {part}",
        lambda: gradients(module, x, upstream),
        which=which,
        tokens=TOKENS,
        errors=errors,
    )
