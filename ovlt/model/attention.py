"""Attention limited to segments of a packed row, behind transformers' public attention interface.

``varlen(module, q, k, v, ...)`` is registered under two names. The decoder uses ``ovlt_varlen``
and finds the sample boundaries under the private keyword ``ovlt_cu`` (the public name
``cu_seqlens`` is taken by the vision tower's own bookkeeping). The tower uses a name that contains
"flash", which makes transformers hand over all windows or images in one call, with
``cu_seq_lens_q``, instead of looping over them in Python.

Backends, best first: flash-attn where it is installed, ``torch.nn.attention.varlen`` on CUDA, and
on a CPU scaled-dot-product attention over segments grouped by equal length.
"""

from __future__ import annotations

import functools
import importlib.util
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TEXT_ATTENTION = "ovlt_varlen"
VISION_ATTENTION = "ovlt_flash_varlen"  # the word "flash" decides how transformers calls it


@functools.cache
def backend(device_type: str) -> str:
    """'flash', 'torch_varlen' or 'sdpa': the best that this machine has for ``device_type``."""
    if device_type == "cuda":
        if importlib.util.find_spec("flash_attn") is not None:
            return "flash"
        if importlib.util.find_spec("torch.nn.attention.varlen") is not None:
            return "torch_varlen"
    return "sdpa"


@dataclass(frozen=True)
class Groups:
    """Segments of a packed row, gathered by equal length."""

    shapes: list[tuple[int, int]]  # (segments, length) of each group
    order: Tensor | None  # row indices, group after group; None: the row is in this order already
    inverse: Tensor | None


def groups_of(cu_seqlens: Tensor) -> Groups:
    """Group segments by length. cu_seqlens int32 [S+1], strictly increasing.

    The result is remembered on the tensor itself: every layer of a forward, and the recomputation
    in backward, asks for the same boundaries. Raises ValueError for an empty segment.
    """
    cached = getattr(cu_seqlens, "_ovlt_groups", None)
    if cached is not None:
        return cached
    starts = cu_seqlens[:-1].long()
    lengths = cu_seqlens[1:].long() - starts
    if bool((lengths <= 0).any()):
        raise ValueError("cu_seqlens must be strictly increasing: a segment of length 0 was packed")
    shapes, rows = [], []
    for length in torch.unique(lengths).tolist():
        first = starts[lengths == length]
        rows.append((first[:, None] + torch.arange(length, device=first.device)).flatten())
        shapes.append((len(first), length))
    order = torch.cat(rows)
    identity = torch.arange(order.numel(), device=order.device)
    groups = Groups(shapes, None, None)
    if not torch.equal(order, identity):
        groups = Groups(shapes, order, torch.empty_like(order).index_copy_(0, order, identity))
    cu_seqlens._ovlt_groups = groups  # type: ignore[attr-defined]
    return groups


def sdpa_segments(
    q: Tensor, k: Tensor, v: Tensor, cu: Tensor, scale: float, causal: bool
) -> Tensor:
    """Plain PyTorch varlen attention. q [T,Hq,D], k and v [T,Hkv,D], cu int32 [S+1] -> [T,Hq,D].

    One SDPA call per distinct segment length, which is about three times faster than one call per
    segment. One permutation and one split, whose backward is one concatenation: a gather per
    group would fill and add a whole row each (a seventh of a training step, measured).
    """
    groups = groups_of(cu)
    grouped_query = q.shape[1] != k.shape[1]
    if groups.order is not None:
        q, k, v = (x.index_select(0, groups.order) for x in (q, k, v))
    sizes = [segments * length for segments, length in groups.shapes]
    pieces = []
    for (segments, length), *qkv in zip(
        groups.shapes, q.split(sizes), k.split(sizes), v.split(sizes), strict=True
    ):
        gq, gk, gv = (x.reshape(segments, length, *x.shape[1:]).transpose(1, 2) for x in qkv)
        out = F.scaled_dot_product_attention(
            gq, gk, gv, is_causal=causal and length > 1, scale=scale, enable_gqa=grouped_query
        )
        pieces.append(out.transpose(1, 2).reshape(sizes[len(pieces)], *q.shape[1:]))
    joined = torch.cat(pieces) if len(pieces) > 1 else pieces[0]
    return joined if groups.inverse is None else joined.index_select(0, groups.inverse)


def varlen(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: q [1,Hq,T,D], k, v [1,Hkv,T,D] -> ([1,T,Hq,D], None)."""
    causal = bool(module.is_causal)
    cu: Tensor = kwargs["ovlt_cu"] if causal else kwargs["cu_seq_lens_q"]
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # [T,H,D]
    scale = scaling if scaling is not None else q.shape[-1] ** -0.5
    name = backend(q.device.type)
    if name == "sdpa" or q.dtype == torch.float32:
        return sdpa_segments(q, k, v, cu, scale, causal)[None], None
    longest = kwargs.get("ovlt_max_len") if causal else kwargs.get("max_length_q")
    if longest is None:
        longest = int((cu[1:] - cu[:-1]).max())
    if name == "flash":
        from flash_attn import flash_attn_varlen_func

        out = flash_attn_varlen_func(
            q, k, v, cu, cu, longest, longest, softmax_scale=scale, causal=causal
        )
    else:
        from torch.nn.attention.varlen import varlen_attn

        groups = q.shape[1] // k.shape[1]
        if groups > 1:  # torch 2.11 has no enable_gqa here
            k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        # (left, right) window: -1 is unlimited, 0 on the right is causal
        out = varlen_attn(
            q, k, v, cu, cu, longest, longest, scale=scale, window_size=(-1, 0 if causal else -1)
        )
    return out[None], None


def register() -> None:
    """Make both names known to transformers. Safe to call again."""
    from transformers import AttentionInterface

    AttentionInterface.register(TEXT_ATTENTION, varlen)
    AttentionInterface.register(VISION_ATTENTION, varlen)
