"""The gated delta rule and the short convolution before it, limited to segments of a packed row.

Layers of this kind (Gated DeltaNet, arXiv 2412.06464) keep a state instead of keys and values. A
state knows no boundaries: unless both operations are told where samples end, each sample runs on
into the next, without any error. Here a segment starts from nothing, or from where the prompt that
it continues ends (``segments.py``): the delta rule from the prompt's last state, the convolution
from the prompt's last inputs. So a prompt is computed once for all its responses, and its gradient
is the sum of what its copies' would be.

Backends: ``fla`` on a GPU (``delta_fla.py``), ``torch`` everywhere (``delta_torch.py``).

Shapes: T tokens of a packed row, Hk key heads, Hv value heads (a multiple), K and V their head
dims, C channels, W taps of the convolution.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ovlt.model import delta_fla
from ovlt.model.delta_layout import layout_of
from ovlt.model.delta_torch import conv_torch, delta_torch
from ovlt.model.segments import Segments

BACKENDS = ("fla", "torch")
EPSILON = 1e-6  # added to the squared lengths of queries and keys


def gated_delta(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    segments: Segments,
    *,
    backend: str | None = None,
) -> Tensor:
    """Return what the queries read from the state that keys and values were written to.

    With q and k of length 1, q divided by the root of K, and S = 0 or the prompt's last state,
    token by token:

        S <- exp(g) S;  S <- S + k (beta (v - S^T k))^T;  out = S^T q

    Args:
        q, k: ``[T, Hk, K]``, of any length. Value head h reads query and key head h // (Hv / Hk).
        v: ``[T, Hv, V]``, dtype and device of ``q``.
        g: ``[T, Hv]``, the logarithm of the decay, <= 0. Held in float32 at least.
        beta: ``[T, Hv]``, how much of what the state holds for a key is replaced, 0 to 1.
        segments: of the row.
        backend: one of ``BACKENDS``; None: see :func:`choose_backend`.

    Returns:
        ``[T, Hv, V]`` in the dtype of ``q``, differentiable in all five. Computed in float32, in
        float64 for such inputs; the states and their gradients are never rounded to less.

    Raises:
        ValueError: for shapes, dtypes, devices or segments that do not fit, and for a backend that
            cannot run here.
    """
    _check_delta(q, k, v, g, beta, segments)
    name = choose_backend(q.device, q.dtype, backend)
    layout = layout_of(segments)
    if name == "fla":
        return delta_fla.delta_fla(q, k, v, g.float(), beta, layout)
    wide = torch.promote_types(q.dtype, torch.float32)
    share = v.shape[1] // k.shape[1]
    q, k = (_unit(x.to(wide)) for x in (q, k))
    q, k = (x.repeat_interleave(share, dim=1) if share > 1 else x for x in (q, k))
    q = q * q.shape[-1] ** -0.5
    return delta_torch(q, k, v.to(wide), g.to(wide), beta.to(wide), layout).to(v.dtype)


def causal_conv(
    x: Tensor, weight: Tensor, segments: Segments, *, backend: str | None = None
) -> Tensor:
    """Return SiLU of a convolution of each channel over a token and the W - 1 before it.

    Before a segment are zeros, or the last tokens of the prompt that it continues.

    Args:
        x: ``[T, C]``.
        weight: ``[C, W]``, dtype and device of ``x``; the last tap is the token's own.
        segments: of the row.
        backend: as for :func:`gated_delta`.

    Returns:
        ``[T, C]`` in the dtype of ``x``, differentiable in both.

    Raises:
        ValueError: as :func:`gated_delta` does.
    """
    if x.dim() != 2 or weight.dim() != 2 or x.shape[1] != weight.shape[0]:
        raise ValueError(
            f"x must be [T, C] and weight [C, W], not {list(x.shape)} and {list(weight.shape)}: a "
            "packed row has no batch dimension."
        )
    _check_like((x, weight), segments)
    name = choose_backend(x.device, x.dtype, backend)
    if name == "fla":
        return delta_fla.conv_fla(x, weight, layout_of(segments))
    wide = torch.promote_types(x.dtype, torch.float32)
    return F.silu(conv_torch(x.to(wide), weight.to(wide), layout_of(segments))).to(x.dtype)


def choose_backend(device: torch.device, dtype: torch.dtype, backend: str | None = None) -> str:
    """Return the backend for inputs on ``device``: 'fla' on a GPU, 'torch' on a CPU.

    The torch backend runs on a GPU too, if it is named: tens of times slower, so it is not taken in
    silence. Raises ValueError if the backend cannot run here, with the cure.
    """
    if backend is None:
        backend = "fla" if device.type == "cuda" else "torch"
    if backend == "torch":
        return backend
    why = f"ovlt knows {BACKENDS}"
    if backend == "fla" and not (why := delta_fla.obstacle(device, dtype)):
        return backend
    raise ValueError(f"the gated delta rule cannot use its backend '{backend}': {why}")


def gated_delta_reference(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, segments: Segments
) -> Tensor:
    """The plain statement of :func:`gated_delta`: token by token, in the inputs' dtype, no checks.

    The states of all tokens are kept for backward, ``[T, Hv, K, V]``.
    """
    share = v.shape[1] // k.shape[1]
    q, k = (_unit(x).repeat_interleave(share, dim=1) for x in (q, k))
    ends: list[Tensor] = []  # the state after each segment, [Hv, K, V]
    out: list[Tensor] = []
    for start, length, prefix in zip(
        segments.starts, segments.lengths, segments.prefix, strict=True
    ):
        state = ends[prefix] if prefix >= 0 else v.new_zeros(*k.shape[1:], v.shape[2])
        for t in range(start, start + length):
            state = state * g[t].exp()[:, None, None]
            missing = v[t] - torch.einsum("hkv,hk->hv", state, k[t])
            state = state + torch.einsum("hk,h,hv->hkv", k[t], beta[t], missing)
            out.append(torch.einsum("hkv,hk->hv", state, q[t]) * k.shape[2] ** -0.5)
        ends.append(state)
    return torch.stack(out)


def causal_conv_reference(x: Tensor, weight: Tensor, segments: Segments) -> Tensor:
    """The plain statement of :func:`causal_conv`: one segment at a time, without checks."""
    taps = weight.shape[1]
    out: list[Tensor] = []
    for start, length, prefix in zip(
        segments.starts, segments.lengths, segments.prefix, strict=True
    ):
        before = x.new_zeros(taps - 1, x.shape[1])
        if prefix >= 0:
            begin = segments.starts[prefix]
            before = torch.cat([before, x[begin : begin + segments.lengths[prefix]]])
            before = before[len(before) - taps + 1 :]
        row = torch.cat([before, x[start : start + length]])  # [W - 1 + L, C]
        window = row.unfold(0, taps, 1)  # [L, C, W]
        out.append(F.silu((window * weight).sum(-1)))
    return torch.cat(out)


def _unit(x: Tensor) -> Tensor:
    return x * torch.rsqrt((x * x).sum(-1, keepdim=True) + EPSILON)


def _check_delta(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, segments: Segments
) -> None:
    if q.dim() != 3 or v.dim() != 3 or q.shape != k.shape:
        shapes = ", ".join(str(list(x.shape)) for x in (q, k, v))
        raise ValueError(
            f"q and k must be [T, Hk, K] and v [T, Hv, V], not {shapes}: a packed row has no batch "
            "dimension."
        )
    if k.shape[1] == 0 or v.shape[1] % k.shape[1]:
        raise ValueError(
            f"{v.shape[1]} value heads cannot share {k.shape[1]} key heads evenly: the number of "
            "value heads must be a multiple."
        )
    if not g.shape == beta.shape == v.shape[:2]:
        raise ValueError(
            f"g and beta must be [T, Hv] = {list(v.shape[:2])}, not {list(g.shape)} and "
            f"{list(beta.shape)}."
        )
    _check_like((q, k, v), segments)
    for name, x in (("g", g), ("beta", beta)):
        if not x.is_floating_point() or x.device != q.device:
            raise ValueError(f"{name} must be floating point on {q.device}, not {x.dtype} there.")


def _check_like(tensors: tuple[Tensor, ...], segments: Segments) -> None:
    """Check that the tensors have one floating dtype, one device, and the rows of the segments."""
    first = tensors[0]
    if not first.is_floating_point() or any(x.dtype != first.dtype for x in tensors):
        dtypes = ", ".join(str(x.dtype) for x in tensors)
        raise ValueError(f"the inputs must have one floating dtype, not {dtypes}: cast them.")
    devices = {str(x.device) for x in tensors} | {str(segments.device)}
    if len(devices) > 1:
        raise ValueError(
            f"the inputs and the segments must be on one device, not {', '.join(sorted(devices))}."
        )
    if segments.total != first.shape[0]:
        raise ValueError(
            f"the segments end at {segments.total}, but the inputs have {first.shape[0]} rows."
        )
