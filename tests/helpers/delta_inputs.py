"""Inputs of the delta rule and the convolution, what transformers makes of them, error checks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ovlt.model.segments import Segments

# [prompt, responses] of each group; a group of one has no responses
LAYOUTS: dict[str, list[tuple[int, list[int]]]] = {
    "alone": [(5, []), (1, []), (70, []), (64, []), (17, []), (130, []), (70, [])],
    "one token": [(1, [])],
    "shared": [(70, [3, 66, 1]), (9, []), (2, [20, 2]), (1, [1]), (64, [64, 65])],
}
NAMES = ("out", "dq", "dk", "dv", "dg", "dbeta")


def delta_inputs(
    tokens: int, heads: tuple[int, int], dims: tuple[int, int], dtype: torch.dtype
) -> tuple[list[Tensor], Tensor]:
    """q, k, v, g, beta and a cotangent; half of the heads forget at once, half hardly ever."""
    generator = torch.Generator().manual_seed(tokens)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    slow = torch.tensor([0.02, 1.5]).repeat(heads[1])[: heads[1]]
    q, k = normal(2, tokens, heads[0], dims[0])
    v, cotangent = normal(2, tokens, heads[1], dims[1])
    g, beta = -normal(tokens, heads[1]).abs() * slow, normal(tokens, heads[1]).sigmoid()
    wide = torch.promote_types(dtype, torch.float32)  # g is never rounded to less
    return [q.to(dtype), k.to(dtype), v.to(dtype), g.to(wide), beta.to(dtype)], cotangent.to(dtype)


def conv_inputs(
    tokens: int, channels: int, taps: int, dtype: torch.dtype
) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    x, cotangent = torch.randn(2, tokens, channels, generator=generator)
    weight = torch.randn(channels, taps, generator=generator)
    return [x.to(dtype), weight.to(dtype)], cotangent.to(dtype)


def results(
    function: Callable[..., Tensor], inputs: list[Tensor], cotangent: Tensor, *, exact: bool = False
) -> list[Tensor]:
    """The output and all gradients; in float64 if ``exact``."""
    if exact:
        inputs, cotangent = [x.double() for x in inputs], cotangent.double()
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, cotangent)]


def check_errors(ours: list[Tensor], theirs: list[Tensor], exact: list[Tensor]) -> None:
    """Output and gradients err at most twice as much as theirs, which have the same dtype."""
    for got, other, true in zip(ours, theirs, exact, strict=True):
        assert got.dtype == other.dtype
        assert got.shape == true.shape
        error, allowed = (float((x.double() - true).abs().max()) for x in (got, other))
        floor = torch.finfo(got.dtype).eps * float(true.abs().max())
        assert error <= 2 * allowed + floor, (list(got.shape), error, allowed)


def one_by_one(function: Callable[..., Tensor], layout: Segments) -> Callable[..., Tensor]:
    """``function`` over [prompt, response], one at a time, each with a copy of its prompt.

    Of arguments whose rows are the tokens; others (a weight) go to every call.
    """
    spans = [slice(a, a + n) for a, n in zip(layout.starts, layout.lengths, strict=True)]

    def packed(*inputs: Tensor) -> Tensor:
        pieces: list[Tensor] = []
        for span, prefix in zip(spans, layout.prefix, strict=True):
            parts = (spans[prefix], span) if prefix >= 0 else (span,)
            rows = [
                torch.cat([x[part] for part in parts]) if len(x) == layout.total else x
                for x in inputs
            ]
            pieces.append(function(*rows)[span.start - span.stop :])
        return torch.cat(pieces)

    return packed


def transformers_delta(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Tensor:
    """One sample by transformers' plain function, whatever packages are installed."""
    from transformers.models.qwen3_5 import modeling_qwen3_5 as theirs

    share = v.shape[1] // k.shape[1]
    q, k = (x.repeat_interleave(share, 1) for x in (q, k))
    rule: Any = theirs.torch_chunk_gated_delta_rule
    while hasattr(rule, "__wrapped__"):
        rule = rule.__wrapped__
    return rule(*(x[None] for x in (q, k, v, g, beta)), use_qk_l2norm_in_kernel=True)[0][0]


def transformers_conv(x: Tensor, weight: Tensor) -> Tensor:
    from transformers.models.qwen3_5 import modeling_qwen3_5 as theirs

    conv: Any = theirs.causal_conv1d_fn
    while hasattr(conv, "__wrapped__"):
        conv = conv.__wrapped__
    return conv(x.T[None], weight, activation="silu")[0].T
