"""Attention limited to segments of a packed row, and its place in transformers.

:func:`varlen_attention` is the operation: a token sees its own segment and the prompt that the
segment continues (``segments.py``). Its backends, best first: flash-attn if it is installed,
``torch.nn.attention.varlen`` on CUDA, PyTorch's fused kernel in few calls on a CPU
(``attention_cpu``), and everywhere scaled-dot-product attention over segments of equal lengths.

``varlen(module, q, k, v, ...)`` puts it behind transformers' public attention interface, under two
names. The decoder uses ``ovlt_varlen`` and gets the segments as the keyword ``ovlt_segments``
(transformers' own ``cu_seqlens`` belongs to the vision tower). The tower uses a name that contains
"flash", which makes transformers pass all windows or images in one call, with ``cu_seq_lens_q``,
instead of looping over them in Python.

Shapes: T tokens of a packed row, S segments, K keys that all segments see together, Hq query heads,
Hkv key and value heads, D head dimension, L length of one segment, P of the prompt before it.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import math
from collections.abc import Callable
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from ovlt.model.attention_cpu import CPU_DTYPES, cpu_attention
from ovlt.model.segments import Call, Segments, segments_of

BACKENDS = ("flash", "torch_varlen", "cpu", "sdpa")  # best first

TEXT_ATTENTION = "ovlt_varlen"
VISION_ATTENTION = "ovlt_flash_varlen"  # the word "flash" decides how transformers calls it


class CausalModule(Protocol):
    """A transformers attention layer, as far as it is used here."""

    is_causal: bool


def varlen_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    segments: Segments | Tensor,
    *,
    causal: bool,
    scale: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """Return softmax(scale q k^T) v, where each token sees its segment and what that continues.

    Args:
        q: ``[T, Hq, D]``, floating point.
        k, v: ``[T, Hkv, D]``, dtype and device of ``q``. Hkv divides Hq: query head h reads key and
            value head h // (Hq / Hkv).
        segments: their Segments, or int32 boundaries ``[S + 1]`` on the device of ``q``: segment s
            is the rows from ``cu_seqlens[s]`` up to ``cu_seqlens[s + 1]``; from 0 to T, strictly
            increasing. The values of a tensor are read once and remembered on it, so pass the same
            tensor to every layer. On a GPU that first read waits for the device, and nothing else
            here does; it is not needed for boundaries that :func:`to_device` moved there.
        causal: whether a row sees only itself and the rows of its segment before it, and all rows
            of the prompt that the segment continues.
        scale: > 0, multiplies the scores; None: D ** -0.5.
        backend: one of ``BACKENDS``; None: the first of :func:`available_backends`. float32 on CUDA
            always goes through 'sdpa', since the fused kernels take 16-bit numbers only.

    Returns:
        ``[T, Hq, D]`` in the dtype of ``q``, differentiable in q, k and v.

    Raises:
        ValueError: for shapes, dtypes, devices or segments that do not fit, and for a backend that
            is unknown or cannot run here; the text names those that can.
    """
    _check_inputs(q, k, v, scale)
    if isinstance(segments, Tensor):
        _check_boundaries(segments)
        segments = segments_of(segments)
    if segments.device != q.device:
        raise ValueError(
            f"q and the segments must be on one device, not {q.device} and {segments.device}."
        )
    if segments.total != q.shape[0]:
        raise ValueError(
            f"cu_seqlens ends at {segments.total}, but q has {q.shape[0]} rows: the last boundary "
            "is the number of tokens."
        )
    if segments.shared and not causal:
        raise ValueError("segments that continue a prompt are causal: pass causal=True.")
    name, factor = _choose(backend, q, causal=causal), _scale(scale, q)
    if name == "sdpa":
        return _sdpa(q, k, v, segments, factor, causal)
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    if name == "cpu":
        return cpu_attention(q, k, v, segments, factor)
    if segments.key_index is not None:
        # The kernels want the keys of a segment side by side: its prompt's, then its own.
        k, v = (gather_rows(x, segments.key_index) for x in (k, v))  # [K, Hkv, D]
    fused = _flash if name == "flash" else _torch_varlen
    return fused(q, k, v, segments, factor, causal)


def varlen_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    segments: Segments | Tensor,
    *,
    causal: bool,
    scale: float | None = None,
) -> Tensor:
    """The plain statement of :func:`varlen_attention`: one segment at a time, in the inputs' dtype.

    Holds the scores of a segment, ``[Hq, L, P + L]``. Without checks.
    """
    if isinstance(segments, Tensor):
        segments = segments_of(segments)
    share, factor = q.shape[1] // k.shape[1], _scale(scale, q)
    spans = [slice(a, a + n) for a, n in zip(segments.starts, segments.lengths, strict=True)]
    out: list[Tensor] = []
    for own, prefix in zip(spans, segments.prefix, strict=True):
        queries = q[own].transpose(0, 1)  # [Hq, L, D]
        visible = (spans[prefix], own) if prefix >= 0 else (own,)
        keys, values = (
            torch.cat([x[span] for span in visible]).repeat_interleave(share, dim=1).transpose(0, 1)
            for x in (k, v)
        )  # [Hq, P + L, D] each
        scores = queries @ keys.mT * factor  # [Hq, L, P + L]
        if causal:
            before = keys.shape[1] - queries.shape[1]  # P
            future = torch.ones_like(scores, dtype=torch.bool).triu(before + 1)
            scores = scores.masked_fill(future, -torch.inf)
        out.append((scores.softmax(-1) @ values).transpose(0, 1))  # [L, Hq, D]
    return torch.cat(out)


def gather_rows(x: Tensor, index: Tensor) -> Tensor:
    """Return ``x[index]`` for rows that may repeat; the gradients of one row are summed in float32.

    ``index_select``'s own backward adds 16-bit numbers one by one and rounds each time.
    """
    return cast("Tensor", _GatherRows.apply(x, index))


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.shape, ctx.dtype = x.shape, x.dtype
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (index,), (grad,) = ctx.saved_tensors, grads
        wide = torch.promote_types(ctx.dtype, torch.float32)
        total = torch.zeros(ctx.shape, dtype=wide, device=grad.device)
        return total.index_add_(0, index, grad.to(wide)).to(ctx.dtype), None


def _scale(scale: float | None, q: Tensor) -> float:
    return q.shape[-1] ** -0.5 if scale is None else scale


@functools.cache
def available_backends(
    device: torch.device | str, dtype: torch.dtype, head_dim: int
) -> tuple[str, ...]:
    """Return the backends that can run such inputs here, best first; the last is 'sdpa'."""
    return tuple(b for b in BACKENDS if not _obstacle(b, torch.device(device), dtype, head_dim))


@functools.cache
def _obstacle(backend: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> str:
    """Return why ``backend`` cannot run such inputs here; empty if it can."""
    if backend == "sdpa":
        return ""
    if backend == "cpu":
        fits = device.type == "cpu" and dtype in CPU_DTYPES
        return "" if fits else f"it takes {CPU_DTYPES} on a CPU, not {dtype} on {device.type}"
    if device.type != "cuda":
        return f"it needs CUDA tensors, not {device.type}"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"it takes bfloat16 and float16, not {dtype}"
    if head_dim % 8 or head_dim > 256:
        return f"it takes head dims up to 256 that 8 divides, not {head_dim}"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "it needs a GPU of compute capability 8.0 or newer"
    if backend == "flash" and _flash_function() is None:
        return "flash-attn cannot be imported (make install FLASH=1 installs it)"
    if backend == "torch_varlen" and _torch_function() is None:
        return f"torch {torch.__version__} has no torch.nn.attention.varlen with a window; 2.11 has"
    return ""


def _choose(backend: str | None, q: Tensor, *, causal: bool) -> str:
    facts = (q.device, q.dtype, q.shape[-1])
    available = available_backends(*facts)
    if not causal:  # what fills a call of 'cpu' up is hidden by causality alone
        available = tuple(name for name in available if name != "cpu")
    if backend is None:
        return available[0]
    if backend not in available:
        why = _obstacle(backend, *facts) if backend in BACKENDS else f"ovlt knows {BACKENDS}"
        raise ValueError(
            f"attention backend '{backend}' cannot be used: {why or 'it is causal'}. Available "
            f"here: {', '.join(available)}; None takes the first."
        )
    return backend


@functools.cache
def _flash_function() -> Callable[..., Tensor] | None:
    """Return flash-attn's function, or None if it cannot be imported."""
    try:
        from flash_attn import flash_attn_varlen_func
    except ImportError:  # not installed, another major version, or built for another torch
        return None
    return flash_attn_varlen_func


@functools.cache
def _torch_function() -> tuple[Callable[..., Tensor], frozenset[str]] | None:
    """Return ``varlen_attn`` and its parameters' names, which differ between torch versions."""
    if importlib.util.find_spec("torch.nn.attention.varlen") is None:
        return None
    from torch.nn.attention.varlen import varlen_attn

    names = frozenset(inspect.signature(varlen_attn).parameters)
    if not {"window_size", "scale"} <= names:
        return None
    return cast("Callable[..., Tensor]", varlen_attn), names  # a pair only if return_aux is given


def _flash(
    q: Tensor, k: Tensor, v: Tensor, segments: Segments, scale: float, causal: bool
) -> Tensor:
    attend = _flash_function()
    assert attend is not None
    return attend(
        q,
        k,
        v,
        segments.cu_seqlens,
        segments.cu_seqlens_keys,
        segments.longest,
        segments.longest_keys,
        softmax_scale=scale,
        causal=causal,  # aligned to the bottom right: the last query sees the last key
        # flash-attn sums dq with atomics, in any order, unless this is set; it ignores torch's flag
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )


def _torch_varlen(
    q: Tensor, k: Tensor, v: Tensor, segments: Segments, scale: float, causal: bool
) -> Tensor:
    function = _torch_function()
    assert function is not None
    attend, names = function
    options: dict[str, bool | int] = {}
    share = q.shape[1] // k.shape[1]
    if share > 1 and "enable_gqa" in names:
        options["enable_gqa"] = True
    elif share > 1:  # torch 2.11
        k, v = (x.repeat_interleave(share, dim=1) for x in (k, v))
    if torch.__version__ >= "2.15":
        # From 2.15 on torch prefers cuDNN, with other numerics; one split selects flash instead,
        # and makes the result of a segment independent of its neighbours.
        options["num_splits"] = 1
    # (left, right) window: -1 is unlimited, 0 on the right is causal, aligned to the bottom right
    window = (-1, 0 if causal else -1)
    return attend(
        q,
        k,
        v,
        segments.cu_seqlens,
        segments.cu_seqlens_keys,
        segments.longest,
        segments.longest_keys,
        scale=scale,
        window_size=window,
        **options,
    )


def _sdpa(
    q: Tensor, k: Tensor, v: Tensor, segments: Segments, scale: float, causal: bool
) -> Tensor:
    """Call SDPA once per distinct lengths: about three times faster than once per segment.

    The rows are permuted once and split once, whose backward is one concatenation. A gather per
    call would instead fill and add a whole row each in backward (measured: a seventh of a training
    step).
    """
    equal = segments.equal_calls
    share = q.shape[1] // k.shape[1]
    if share > 1 and q.is_cuda:
        # The memory-efficient kernel, the best for float32 on CUDA, takes equal heads only; the
        # fallback without it keeps all scores.
        k, v = (x.repeat_interleave(share, dim=1) for x in (k, v))
    if equal.queries is not None:
        q = q.index_select(0, equal.queries)  # [T, Hq, D]
    if equal.keys is not None:
        k, v = (gather_rows(x, equal.keys) for x in (k, v))  # [K, Hkv, D]
    elif equal.queries is not None:
        k, v = (x.index_select(0, equal.queries) for x in (k, v))
    sizes = [call.segments * call.length for call in equal.calls]
    key_sizes = [call.segments * (call.prefix + call.length) for call in equal.calls]
    pieces: list[Tensor] = []
    for call, cq, ck, cv in zip(
        equal.calls, q.split(sizes), k.split(key_sizes), v.split(key_sizes), strict=True
    ):
        # [segments, heads, L, D] and [segments, heads, P + L, D]
        cq, ck, cv = (x.unflatten(0, (call.segments, -1)).transpose(1, 2) for x in (cq, ck, cv))
        out = F.scaled_dot_product_attention(
            cq,
            ck,
            cv,
            attn_mask=_bottom_right(call, q.device) if call.prefix else None,
            is_causal=causal and not call.prefix and call.length > 1,
            scale=scale,
            enable_gqa=cq.shape[1] != ck.shape[1],
        )
        pieces.append(out.transpose(1, 2).flatten(0, 1))
    joined = torch.cat(pieces) if len(pieces) > 1 else pieces[0]  # [T, Hq, D]
    return joined if equal.inverse is None else joined.index_select(0, equal.inverse)


def _bottom_right(call: Call, device: torch.device) -> Tensor:
    """Which of P + L keys each of L queries sees, bool [L, P + L]."""
    every = torch.ones(call.length, call.prefix + call.length, dtype=torch.bool, device=device)
    return every.tril(call.prefix)


def _check_inputs(q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> None:
    """Check shapes, dtypes, devices and the scale."""
    if q.dim() != 3 or k.dim() != 3 or k.shape != v.shape:
        shapes = ", ".join(str(list(x.shape)) for x in (q, k, v))
        raise ValueError(
            f"q must be [T, Hq, D], k and v [T, Hkv, D], not {shapes}: a packed row has no batch "
            "dimension."
        )
    if k.shape[0] != q.shape[0] or k.shape[2] != q.shape[2]:
        raise ValueError(
            f"q {list(q.shape)} and k {list(k.shape)} must agree in tokens and head dim."
        )
    if k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        raise ValueError(
            f"{q.shape[1]} query heads cannot share {k.shape[1]} key and value heads evenly: the "
            "number of query heads must be a multiple."
        )
    if not q.is_floating_point() or not q.dtype == k.dtype == v.dtype:
        raise ValueError(
            f"q, k and v must have one floating dtype, not {q.dtype}, {k.dtype} and {v.dtype}: "
            "cast them, e.g. k.to(q.dtype)."
        )
    if not q.device == k.device == v.device:
        raise ValueError(
            f"q, k and v must be on one device, not {q.device}, {k.device} and {v.device}."
        )
    if scale is not None and not (scale > 0 and math.isfinite(scale)):
        raise ValueError(f"scale must be > 0 and finite, not {scale}; None takes D ** -0.5.")


def _check_boundaries(cu: Tensor) -> None:
    """Check everything but the values, which would have to be read from the device."""
    if cu.dim() != 1 or cu.numel() < 2:
        raise ValueError(
            f"cu_seqlens must be [S + 1] boundaries of at least one segment, not {list(cu.shape)}."
        )
    if cu.dtype != torch.int32:
        raise ValueError(f"cu_seqlens must be int32, not {cu.dtype}: the kernels read it as such.")


def varlen(
    module: CausalModule,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    ovlt_segments: Segments | None = None,
    cu_seq_lens_q: Tensor | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Attend as transformers' attention interface asks: ``([1, T, Hq, D], no weights)``.

    Args:
        module: the layer's attention; ``is_causal`` tells the decoder's from the tower's.
        query: ``[1, Hq, T, D]``.
        key, value: ``[1, Hkv, T, D]``.
        attention_mask: not used; the segments say it all.
        scaling: of the scores; None: D ** -0.5.
        dropout: must be 0.
        ovlt_segments: the segments of the packed row, in the decoder.
        cu_seq_lens_q: boundaries of windows or images, in the tower.

    Raises:
        ValueError: as :func:`varlen_attention` does, and for dropout, which it does not support.
        RuntimeError: without boundaries, since samples would then attend to each other.
    """
    if dropout:
        raise ValueError(
            f"attention dropout {dropout} is not supported: set attention_dropout to 0 in the "
            "model's config.json."
        )
    causal = bool(module.is_causal)
    segments = ovlt_segments if causal else cu_seq_lens_q
    if segments is None:
        raise RuntimeError("attention was called without segment boundaries: use PackedModel")
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # [T, heads, D] each
    out = varlen_attention(q, k, v, segments, causal=causal, scale=scaling)
    return out[None], None


def register() -> None:
    """Register both names with transformers. Safe to call again."""
    from transformers import AttentionInterface  # here: batches need this file, not transformers

    AttentionInterface.register(TEXT_ATTENTION, varlen)
    AttentionInterface.register(VISION_ATTENTION, varlen)
