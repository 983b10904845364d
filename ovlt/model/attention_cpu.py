"""Causal attention within segments on a CPU, in a few calls of PyTorch's own fused kernel.

A micro-batch of a small model has dozens of short segments, and a call costs more than its
arithmetic. So segments of similar lengths are filled up to the longest of them and attended to in
one call: causality alone keeps a token from the filling behind it.

The tokens of all responses to a prompt see the whole prompt, so they attend to it together, in one
call without a mask. That result and the one within each response are joined by log-sum-exps

    L = log(exp(L_own) + exp(L_prompt))
    out = exp(L_own - L) out_own + exp(L_prompt - L) out_prompt

and the backward of each call is the kernel's own, given the joined ``out`` and ``L``: with them it
computes exactly its share of the gradients (FlashAttention-2, arXiv 2307.08691, algorithm 2). No
key or value is copied for another response.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from ovlt.model.segments import Buckets, Segments

CPU_DTYPES = (torch.float32, torch.float64, torch.bfloat16)

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def cpu_attention(q: Tensor, k: Tensor, v: Tensor, segments: Segments, scale: float) -> Tensor:
    """Return causal attention [T, Hq, D] within ``segments`` and to what they continue.

    q is [T, Hq, D], k and v are [T, Hkv, D]; differentiable in all three.
    """
    return cast("Tensor", _CpuAttention.apply(q, k, v, segments, scale))


class _CpuAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, segments: Segments, scale: float
    ) -> Tensor:
        buckets = segments.buckets
        outs: list[Tensor] = []
        lses: list[Tensor] = []
        for bq, bk, bv in zip(*(_pieces(x, buckets) for x in (q, k, v)), strict=True):
            out, lse = _forward(bq, bk, bv, 0.0, True, scale=scale)
            outs.append(_rows(out))
            lses.append(_rows(lse[..., None]))
        out = _unfilled(outs, buckets)  # [T, Hq, D]
        lse = _unfilled(lses, buckets)  # [T, Hq, 1]
        for begin, end, last in segments.continued:
            prompt, responses = slice(begin, end), slice(end, last)
            to_prompt, lse_prompt = _forward(
                _heads(q[responses]), _heads(k[prompt]), _heads(v[prompt]), scale=scale
            )
            _join(out[responses], lse[responses], _rows(to_prompt), _rows(lse_prompt[..., None]))
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.segments, ctx.scale = segments, scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        (grad,) = grads
        segments, scale = ctx.segments, ctx.scale
        buckets = segments.buckets
        # The cotangent of a filling is 0, so its keys get no gradient.
        pieces = [_pieces(x, buckets) for x in (q, k, v, out, lse)]
        pieces.insert(0, _pieces(grad, buckets, fill=False))
        found: list[list[Tensor]] = [[], [], []]
        for bg, bq, bk, bv, bo, bl in zip(*pieces, strict=True):
            parts = _backward(bg, bq, bk, bv, bo, bl[..., 0], 0.0, True, scale=scale)
            for rows, part in zip(found, parts, strict=True):
                rows.append(_rows(part))
        dq, dk, dv = (_unfilled(rows, buckets) for rows in found)
        for begin, end, last in segments.continued:
            prompt, responses = slice(begin, end), slice(end, last)
            parts = _backward(
                *(_heads(x[responses]) for x in (grad, q)),
                *(_heads(x[prompt]) for x in (k, v)),
                _heads(out[responses]), _heads(lse[responses])[..., 0],
                0.0, False, scale=scale,
            )  # fmt: skip
            dq[responses] += _rows(parts[0])
            dk[prompt] += _rows(parts[1])
            dv[prompt] += _rows(parts[2])
        return dq, dk, dv, None, None


def _heads(x: Tensor) -> Tensor:
    """[L, H, D] -> [1, H, L, D], as the kernel takes it."""
    return x.transpose(0, 1)[None]


def _rows(x: Tensor) -> Tensor:
    """[B, H, L, D] -> [B * L, H, D]."""
    return x.transpose(1, 2).flatten(0, 1)


def _pieces(x: Tensor, buckets: Buckets, *, fill: bool = True) -> list[Tensor]:
    """Rows [T, H, D] as one [B, H, L, D] for each bucket; the filling is 0 if not ``fill``."""
    if buckets.filled is not None and buckets.inverse is not None:
        if fill:
            x = x.index_select(0, buckets.filled)
        else:
            x = x.new_zeros(len(buckets.filled), *x.shape[1:]).index_copy_(0, buckets.inverse, x)
    sizes = [call.segments * call.length for call in buckets.calls]
    return [
        part.unflatten(0, (call.segments, call.length)).transpose(1, 2)
        for part, call in zip(x.split(sizes), buckets.calls, strict=True)
    ]


def _unfilled(rows: list[Tensor], buckets: Buckets) -> Tensor:
    """The inverse of ``_pieces``, from ``_rows`` of each bucket: [T, H, D]."""
    joined = torch.cat(rows)  # a copy, also of a single one: it is written to
    return joined if buckets.inverse is None else joined.index_select(0, buckets.inverse)


def _join(out: Tensor, lse: Tensor, other: Tensor, other_lse: Tensor) -> None:
    """Join two attentions of the same queries over different keys; ``out`` and ``lse`` in place."""
    joint = torch.logaddexp(lse, other_lse)
    own = (lse - joint).exp() * out + (other_lse - joint).exp() * other
    out.copy_(own)
    lse.copy_(joint)
