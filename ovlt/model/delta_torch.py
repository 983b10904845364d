"""The gated delta rule and the short convolution of packed segments in plain PyTorch.

The backend of a CPU. A segment of the delta rule is computed in chunks: within one, all tokens at
once; between two, the state is passed on. Segments of as many chunks stand side by side in a batch,
so a row of dozens of short segments takes a few calls.

Let S be the state at the start of a chunk, G_i the sum of the log decays up to token i of it. What
token i writes along its key is (Gated DeltaNet, arXiv 2412.06464, section 3.3)

    u_i = beta_i (v_i - exp(G_i) S^T k_i - sum_{j < i} exp(G_i - G_j) (k_i . k_j) u_j),

a triangular system for all u; with it

    o_i = exp(G_i) S^T q_i + sum_{j <= i} exp(G_i - G_j) (q_i . k_j) u_j
    S'  = exp(G_C) S + sum_j exp(G_C - G_j) k_j u_j^T.

Shapes: N segments of a call, H value heads, n chunks, C tokens of a chunk, K and V head dims of
keys and values; T, F and W as in ``delta.py`` and ``delta_layout.py``.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from ovlt.model.delta_layout import ChunkCall, DeltaLayout


def delta_torch(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, layout: DeltaLayout
) -> Tensor:
    """Return the outputs [T, H, V] of the delta rule, for normalised and scaled q and k [T, H, K].

    v is [T, H, V], g and beta are [T, H]; all in one dtype, float32 or float64.
    """
    chunks = layout.chunks
    filled = [x.index_select(0, chunks.filled) for x in (q, k, v)]  # [F, H, K or V]
    # A token that only fills writes nothing and decays nothing: the state passes it unchanged.
    gates = [x.index_select(0, chunks.filled) * chunks.real[:, None] for x in (g, beta)]  # [F, H]
    sizes = [len(call.segments) * call.chunks * call.size for call in chunks.calls]
    outs: list[Tensor] = []
    states: list[Tensor] = []  # at the ends of the first level's segments
    ends: Tensor | None = None
    for call, *inputs in zip(
        chunks.calls, *(x.split(sizes) for x in (*filled, *gates)), strict=True
    ):
        batch = [_batched(x, call) for x in inputs]
        if call.parents is None:
            state = batch[0].new_zeros(len(call.segments), *q.shape[1:], v.shape[2])
        else:
            if ends is None:
                ends = torch.cat(states)
            state = ends.index_select(0, call.parents)  # backward sums over the responses
        out, state = _in_chunks(*batch, state)
        states.append(state)
        outs.append(out.permute(0, 2, 3, 1, 4).flatten(0, 2))  # [N * n * C, H, V]
    return torch.cat(outs).index_select(0, chunks.inverse)


def conv_torch(x: Tensor, weight: Tensor, layout: DeltaLayout) -> Tensor:
    """Return the convolution of x [T, C] with weight [C, W], float32 or float64 as the inputs."""
    return cast("Tensor", _Conv.apply(x, weight, layout))


def _batched(x: Tensor, call: ChunkCall) -> Tensor:
    """[N * n * C, H, ...] -> [N, H, n, C, ...]."""
    return x.unflatten(0, (len(call.segments), call.chunks, call.size)).movedim(3, 1)


def _in_chunks(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Outputs [N, H, n, C, V] and the last state [N, H, K, V] of segments that start at ``state``.

    q and k are [N, H, n, C, K], v is [N, H, n, C, V], g and beta are [N, H, n, C].
    """
    total = g.cumsum(-1)  # G
    above = torch.ones(g.shape[-1], g.shape[-1], dtype=torch.bool, device=g.device).triu(1)
    # Masked before the exponential, which would overflow above the diagonal.
    decay = (total[..., :, None] - total[..., None, :]).masked_fill(above, -torch.inf).exp()
    from_start = total.exp()[..., None]
    to_end = (total[..., -1:] - total).exp()[..., None]
    writes = beta[..., None]
    system = (k * writes) @ k.mT * decay  # its diagonal is not read: it stands for ones
    right = torch.cat([v, k * from_start], -1) * writes
    solved = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
    new, old = solved.split([v.shape[-1], k.shape[-1]], -1)  # u = new - old S
    within = q @ k.mT * decay
    outs: list[Tensor] = []
    pieces = (new, old, q * from_start, within, (k * to_end).mT, from_start[..., -1:, :])
    for u, reads, query, seen, key, passed in zip(*(x.unbind(2) for x in pieces), strict=True):
        written = u - reads @ state  # [N, H, C, V]
        outs.append(query @ state + seen @ written)
        state = passed * state + key @ written
    return torch.stack(outs, 2), state


class _Conv(torch.autograd.Function):
    """Each segment behind W - 1 rows of context, and one shifted product for each tap."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, layout: DeltaLayout) -> Tensor:
        taps = weight.shape[1]
        contexts = layout.contexts(taps - 1, zeros=True)
        row = x.new_zeros(contexts.total, x.shape[1]).index_copy_(0, contexts.own, x)
        row.index_copy_(0, contexts.places, x.index_select(0, contexts.sources))
        ctx.save_for_backward(row, weight)
        ctx.contexts = contexts
        length = contexts.total - taps + 1
        out = row[:length] * weight[:, 0]
        for tap in range(1, taps):
            out.addcmul_(row[tap : tap + length], weight[:, tap])
        return out.index_select(0, contexts.own - (taps - 1))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        (row, weight), (grad,), contexts = ctx.saved_tensors, grads, ctx.contexts
        taps = weight.shape[1]
        length = contexts.total - taps + 1
        spread = grad.new_zeros(length, grad.shape[1])
        spread.index_copy_(0, contexts.own - (taps - 1), grad)
        in_row = torch.zeros_like(row)
        by_tap: list[Tensor] = []
        for tap in range(taps):
            in_row[tap : tap + length].addcmul_(spread, weight[:, tap])
            by_tap.append((spread * row[tap : tap + length]).sum(0))
        in_x = in_row.index_select(0, contexts.own)
        # A prompt's last inputs are those of all its responses too.
        in_x.index_add_(0, contexts.sources, in_row.index_select(0, contexts.places))
        return in_x, torch.stack(by_tap, 1), None
