"""Attention limited to segments of a packed row, and its place in transformers.

:func:`varlen_attention` is the operation: every segment attends to itself only. Its backends, best
first: flash-attn where it is installed, ``torch.nn.attention.varlen`` on CUDA, and everywhere
scaled-dot-product attention over segments grouped by equal length.

``varlen(module, q, k, v, ...)`` puts it behind transformers' public attention interface, under two
names. The decoder uses ``ovlt_varlen`` and gets the sample boundaries as the keyword ``ovlt_cu``
(transformers' own ``cu_seqlens`` belongs to the vision tower). The tower uses a name that contains
"flash", which makes transformers pass all windows or images in one call, with ``cu_seq_lens_q``,
instead of looping over them in Python.

Shapes: T tokens of a packed row, S segments, Hq query heads, Hkv key and value heads, D head
dimension, L length of one segment.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor

BACKENDS = ("flash", "torch_varlen", "sdpa")  # best first

TEXT_ATTENTION = "ovlt_varlen"
VISION_ATTENTION = "ovlt_flash_varlen"  # the word "flash" decides how transformers calls it
_ATTRIBUTE = "_ovlt_segments"  # of a boundaries tensor, see segments_of


class CausalModule(Protocol):
    """A transformers attention layer, as far as it is used here."""

    is_causal: bool


def varlen_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    *,
    max_length: int | None = None,
    causal: bool,
    scale: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """Return softmax(scale q k^T) v within each segment of a packed row.

    Args:
        q: ``[T, Hq, D]``, floating point.
        k, v: ``[T, Hkv, D]``, dtype and device of ``q``. Hkv divides Hq: query head h reads key and
            value head h // (Hq / Hkv).
        cu_seqlens: int32 ``[S + 1]``, on the same device: segment s is the rows from
            ``cu_seqlens[s]`` up to ``cu_seqlens[s + 1]``; from 0 to T, strictly increasing. The
            values are read once and remembered on the tensor, so pass the same tensor to every
            layer. On a GPU that first read waits for the device, and nothing else here does; it is
            not needed for boundaries that :func:`to_device` moved there.
        max_length: an upper bound of the segments' lengths, in tokens; None: the longest.
        causal: whether a row sees only itself and the rows of its segment before it.
        scale: > 0, multiplies the scores; None: D ** -0.5.
        backend: one of ``BACKENDS``; None: the first of :func:`available_backends`. float32 always
            goes through 'sdpa', since the fused kernels take 16-bit numbers only.

    Returns:
        ``[T, Hq, D]`` in the dtype of ``q``, differentiable in q, k and v.

    Raises:
        ValueError: for shapes, dtypes, devices, boundaries or a bound that do not fit, and for a
            backend that is unknown or cannot run here; the text names those that can.
    """
    _check_inputs(q, k, v, cu_seqlens, scale)
    segments = segments_of(cu_seqlens)
    if segments.total != q.shape[0]:
        raise ValueError(
            f"cu_seqlens ends at {segments.total}, but q has {q.shape[0]} rows: the last boundary "
            "is the number of tokens."
        )
    if max_length is None:
        max_length = segments.longest
    elif max_length < segments.longest:
        raise ValueError(
            f"max_length={max_length} is below the longest segment ({segments.longest}): its end "
            "would be ignored. Pass an upper bound, or None."
        )
    name, factor = _choose(backend, q), _scale(scale, q)
    if name == "sdpa":
        return _sdpa(q, k, v, cu_seqlens, factor, causal)
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    fused = _flash if name == "flash" else _torch_varlen
    return fused(q, k, v, cu_seqlens, max_length, factor, causal)


def varlen_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    *,
    causal: bool,
    scale: float | None = None,
) -> Tensor:
    """The plain statement of :func:`varlen_attention`: one segment at a time, in the inputs' dtype.

    Holds the scores of a segment, ``[Hq, L, L]``. Without checks.
    """
    share, factor = q.shape[1] // k.shape[1], _scale(scale, q)
    out: list[Tensor] = []
    for start, end in itertools.pairwise(cu_seqlens.tolist()):
        queries = q[start:end].transpose(0, 1)  # [Hq, L, D]
        keys, values = (
            x[start:end].repeat_interleave(share, dim=1).transpose(0, 1) for x in (k, v)
        )  # [Hq, L, D] each
        scores = queries @ keys.mT * factor  # [Hq, L, L]
        if causal:
            future = torch.ones_like(scores, dtype=torch.bool).triu(1)
            scores = scores.masked_fill(future, -torch.inf)
        out.append((scores.softmax(-1) @ values).transpose(0, 1))  # [L, Hq, D]
    return torch.cat(out)


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
    if device.type != "cuda":
        return f"it needs CUDA tensors, not {device.type}"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"it takes bfloat16 and float16, not {dtype}"
    if head_dim % 8 or head_dim > 256:
        return f"it takes head dims up to 256 that 8 divides, not {head_dim}"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "it needs a GPU of compute capability 8.0 or newer"
    if backend == "flash" and _flash_function() is None:
        return "flash-attn cannot be imported (requirements/flash-attn.txt installs it)"
    if backend == "torch_varlen" and _torch_function() is None:
        return f"torch {torch.__version__} has no torch.nn.attention.varlen with a window; 2.11 has"
    return ""


def _choose(backend: str | None, q: Tensor) -> str:
    facts = (q.device, q.dtype, q.shape[-1])
    available = available_backends(*facts)
    if backend is None:
        return available[0]
    if backend not in available:
        why = _obstacle(backend, *facts) if backend in BACKENDS else f"ovlt knows {BACKENDS}"
        raise ValueError(
            f"attention backend '{backend}' cannot be used: {why}. Available here: "
            f"{', '.join(available)}; None takes the first."
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
    q: Tensor, k: Tensor, v: Tensor, cu: Tensor, longest: int, scale: float, causal: bool
) -> Tensor:
    attend = _flash_function()
    assert attend is not None
    return attend(
        q,
        k,
        v,
        cu,
        cu,
        longest,
        longest,
        softmax_scale=scale,
        causal=causal,
        # flash-attn sums dq with atomics, in any order, unless this is set; it ignores torch's flag
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )


def _torch_varlen(
    q: Tensor, k: Tensor, v: Tensor, cu: Tensor, longest: int, scale: float, causal: bool
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
    # (left, right) window: -1 is unlimited, 0 on the right is causal
    window = (-1, 0 if causal else -1)
    return attend(q, k, v, cu, cu, longest, longest, scale=scale, window_size=window, **options)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, cu: Tensor, scale: float, causal: bool) -> Tensor:
    """Call SDPA once per distinct segment length: about three times faster than once per segment.

    The rows are permuted once and split once, whose backward is one concatenation. A gather per
    group would instead fill and add a whole row each in backward (measured: a seventh of a training
    step).
    """
    groups = segments_of(cu).groups()
    share = q.shape[1] // k.shape[1]
    if share > 1 and q.is_cuda:
        # The memory-efficient kernel, the best for float32 on CUDA, takes equal heads only; the
        # fallback without it keeps all scores.
        k, v = (x.repeat_interleave(share, dim=1) for x in (k, v))
    if groups.order is not None:
        q, k, v = (x.index_select(0, groups.order) for x in (q, k, v))
    sizes = [segments * length for segments, length in groups.shapes]
    pieces: list[Tensor] = []
    for (segments, length), *qkv in zip(
        groups.shapes, q.split(sizes), k.split(sizes), v.split(sizes), strict=True
    ):
        # [segments, heads, L, D] each
        gq, gk, gv = (x.reshape(segments, length, *x.shape[1:]).transpose(1, 2) for x in qkv)
        grouped_query = gq.shape[1] != gk.shape[1]
        out = F.scaled_dot_product_attention(
            gq, gk, gv, is_causal=causal and length > 1, scale=scale, enable_gqa=grouped_query
        )
        pieces.append(out.transpose(1, 2).reshape(sizes[len(pieces)], *q.shape[1:]))
    joined = torch.cat(pieces) if len(pieces) > 1 else pieces[0]  # [T, Hq, D]
    return joined if groups.inverse is None else joined.index_select(0, groups.inverse)


@dataclass(frozen=True)
class Groups:
    """Segments of a packed row, gathered by equal length."""

    shapes: list[tuple[int, int]]  # (segments, length) of each group
    order: Tensor | None  # int64 [T], group after group; None: the row is in this order already
    inverse: Tensor | None  # int64 [T], the permutation back


class Segments:
    """The values of a ``cu_seqlens``, held on the host.

    Raises ValueError if they do not start at 0 or do not increase.
    """

    def __init__(self, cu_seqlens: Tensor, device: torch.device) -> None:
        bounds = cu_seqlens.cpu().long()
        self.device = device
        self.starts, self.lengths = bounds[:-1], bounds.diff()
        if int(bounds[0]) != 0:
            raise ValueError(f"cu_seqlens must start at 0, not at {int(bounds[0])}.")
        if bool((self.lengths <= 0).any()):
            where = int((self.lengths <= 0).nonzero()[0])
            raise ValueError(
                f"cu_seqlens must be strictly increasing, but segment {where} has the length "
                f"{int(self.lengths[where])}: leave out samples without tokens."
            )
        self.total = int(bounds[-1])
        self.longest = int(self.lengths.max())
        self._groups: Groups | None = None

    def groups(self) -> Groups:
        """Return the segments gathered by equal length; computed once."""
        if self._groups is None:
            rows: list[Tensor] = []
            shapes: list[tuple[int, int]] = []
            for length in self.lengths.unique().tolist():
                first = self.starts[self.lengths == length]
                rows.append((first[:, None] + torch.arange(length)).flatten())
                shapes.append((len(first), length))
            order = torch.cat(rows)
            identity = torch.arange(order.numel())
            if torch.equal(order, identity):
                self._groups = Groups(shapes, None, None)
            else:
                inverse = torch.empty_like(order).index_copy_(0, order, identity)
                self._groups = Groups(shapes, order.to(self.device), inverse.to(self.device))
        return self._groups


def segments_of(cu_seqlens: Tensor) -> Segments:
    """Return the Segments of int32 ``[S + 1]`` boundaries, remembered on the tensor itself.

    Every layer of a forward, and the recomputation in backward, asks for the same boundaries. They
    are remembered on the tensor, not in a field of the batch, since the tensor is all that
    transformers passes on: its vision tower chooses between windows and whole images per layer, and
    hands the attention that one ``cu_seqlens``. A tensor that was written to since is read again.

    Raises ValueError, as Segments does.
    """
    segments, version = getattr(cu_seqlens, _ATTRIBUTE, (None, -1))
    if segments is None or version != _version(cu_seqlens):
        segments = _remember(cu_seqlens, Segments(cu_seqlens, cu_seqlens.device))
    return segments


def to_device(value: Tensor, device: torch.device | str) -> Tensor:
    """Return ``value`` on ``device``, without waiting for the copy.

    Boundaries (int32) take their Segments along, so no layer has to read them from a GPU, which
    would wait for the device. Raises ValueError, as Segments does.
    """
    moved = value.to(device, non_blocking=True)
    if value.dtype == torch.int32 and moved is not value and value.device.type == "cpu":
        _remember(moved, Segments(value, moved.device))
    return moved


def _remember(cu_seqlens: Tensor, segments: Segments) -> Segments:
    setattr(cu_seqlens, _ATTRIBUTE, (segments, _version(cu_seqlens)))
    return segments


def _version(tensor: Tensor) -> int:
    """Return how often the tensor was written to in place; inference tensors do not count it."""
    return 0 if tensor.is_inference() else tensor._version


def _check_inputs(q: Tensor, k: Tensor, v: Tensor, cu: Tensor, scale: float | None) -> None:
    """Check everything but the values, which would have to be read from the device."""
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
    if not q.device == k.device == v.device == cu.device:
        raise ValueError(
            f"q, k, v and cu_seqlens must be on one device, not {q.device}, {k.device}, "
            f"{v.device} and {cu.device}."
        )
    if cu.dim() != 1 or cu.numel() < 2:
        raise ValueError(
            f"cu_seqlens must be [S + 1] boundaries of at least one segment, not {list(cu.shape)}."
        )
    if cu.dtype != torch.int32:
        raise ValueError(f"cu_seqlens must be int32, not {cu.dtype}: the kernels read it as such.")
    if scale is not None and not (scale > 0 and math.isfinite(scale)):
        raise ValueError(f"scale must be > 0 and finite, not {scale}; None takes D ** -0.5.")


def varlen(
    module: CausalModule,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    ovlt_cu: Tensor | None = None,
    ovlt_max_len: int | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Attend as transformers' attention interface asks: ``([1, T, Hq, D], no weights)``.

    Args:
        module: the layer's attention; ``is_causal`` tells the decoder's from the tower's.
        query: ``[1, Hq, T, D]``.
        key, value: ``[1, Hkv, T, D]``.
        attention_mask: not used; the boundaries say it all.
        scaling: of the scores; None: D ** -0.5.
        dropout: must be 0.
        ovlt_cu, ovlt_max_len: boundaries of samples and their longest, in the decoder.
        cu_seq_lens_q, max_length_q: boundaries of windows or images, in the tower.

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
    cu, longest = (ovlt_cu, ovlt_max_len) if causal else (cu_seq_lens_q, max_length_q)
    if cu is None:
        raise RuntimeError("attention was called without segment boundaries: use PackedModel")
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # [T, heads, D] each
    out = varlen_attention(q, k, v, cu, max_length=longest, causal=causal, scale=scaling)
    return out[None], None


def register() -> None:
    """Register both names with transformers. Safe to call again."""
    from transformers import AttentionInterface  # here: batches need this file, not transformers

    AttentionInterface.register(TEXT_ATTENTION, varlen)
    AttentionInterface.register(VISION_ATTENTION, varlen)
