"""The row passes of ``row_logp`` in Triton, for GPUs; under TRITON_INTERPRET=1 they run on a CPU.

Two kernels, each bound by memory: one reads every logit once and keeps a running maximum m, the sum
S of exp(z - m) and the sum D of exp(z - m) (z - m), as csrc/row_logp.cpp does; the other reads it
again and writes the gradient over it. All arithmetic is float32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 4096  # columns that one program holds at a time: 16 KiB of float32 in registers of 8 warps


@triton.jit
def _stats_kernel(
    logits, target, inv_temperature, logp, entropy, lse, stride, vocab, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)  # rows x vocab passes 2^31
    logits += row * stride
    scale = tl.load(inv_temperature + row)
    columns = tl.arange(0, BLOCK)
    m = float("-inf")
    s = 0.0
    d = 0.0
    for begin in range(0, vocab, BLOCK):
        inside = begin + columns < vocab
        z = tl.load(logits + begin + columns, mask=inside, other=float("-inf")).to(tl.float32)
        z = z * scale
        highest = tl.maximum(m, tl.max(z, axis=0))
        # -inf - -inf is NaN: until there is a finite logit, measure from 0
        shift = tl.where(highest == float("-inf"), 0.0, highest)
        step = tl.where(m == float("-inf"), 0.0, m - shift)
        factor = tl.where(m == float("-inf"), 0.0, tl.exp(step))
        below = z - shift
        e = tl.exp(below)
        d = factor * (d + step * s) + tl.sum(tl.where(e == 0.0, 0.0, e * below), axis=0)
        s = factor * s + tl.sum(e, axis=0)
        m = highest
    z = tl.load(logits + tl.load(target + row)).to(tl.float32) * scale
    log_s = tl.log(s)
    # z - m before - log S: both small, where m + log S would already have been rounded
    tl.store(logp + row, (z - m) - log_s)
    tl.store(entropy + row, log_s - d / s)
    tl.store(lse + row, m + log_s)


@triton.jit
def _grad_kernel(logits, target, per_row, rows, stride, vocab, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    base = tl.load(per_row + row)
    shift = tl.load(per_row + rows + row)
    entropy = tl.load(per_row + 2 * rows + row)
    g = tl.load(per_row + 3 * rows + row)
    h = tl.load(per_row + 4 * rows + row)
    at_target = tl.load(per_row + 5 * rows + row)
    scale = tl.load(per_row + 6 * rows + row)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < vocab
    here = logits + row * stride + columns
    z = tl.load(here, mask=inside, other=float("-inf")).to(tl.float32) * scale
    log_p = (z - base) + shift
    p = tl.exp(log_p)
    # a token that is left out has log_p = -inf, and no gradient
    dz = tl.where(p == 0.0, 0.0, -(g + h * (log_p + entropy)) * p)
    dz = tl.where(columns == tl.load(target + row), at_target, dz) * scale
    dz = tl.where((g == 0.0) & (h == 0.0), 0.0, dz)  # of a row that may hold NaN
    tl.store(here, dz.to(logits.dtype.element_ty), mask=inside)


def row_stats(
    logits: Tensor, target: Tensor, inv_temperature: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """``(logp, entropy, lse)``, float32 ``[R]`` each, as ``row_logp``; the logits' last dimension
    must be contiguous. inv_temperature: float32 ``[R]``. Target ids are not checked."""
    rows, vocab = logits.shape
    logp, entropy, lse = (
        torch.empty(rows, dtype=torch.float32, device=logits.device) for _ in range(3)
    )
    if rows:
        _stats_kernel[(rows,)](
            logits, target, inv_temperature, logp, entropy, lse, logits.stride(0), vocab,
            BLOCK=_block(vocab), num_warps=8,
        )  # fmt: skip
    return logp, entropy, lse


def row_grad_(
    logits: Tensor,
    target: Tensor,
    stats: tuple[Tensor, Tensor, Tensor],
    grad_logp: Tensor,
    grad_entropy: Tensor,
    inv_temperature: Tensor,
) -> Tensor:
    """Overwrite ``logits`` with the gradient with respect to them, as ``row_logp_grad_``."""
    rows, vocab = logits.shape
    if not rows:
        return logits
    logp, entropy, lse, g, h = (t.float() for t in (*stats, grad_logp, grad_entropy))
    at_target = g * -torch.expm1(logp) - h * logp.exp() * (logp + entropy)
    # Logits far from 0 make lse large and its rounding the error of every p: measure from the
    # target instead where its log-prob is the smaller number.
    near = logp.abs() < lse.abs()
    z = logits.gather(1, target[:, None])[:, 0].float() * inv_temperature
    base, shift = torch.where(near, z, 0.0), torch.where(near, logp, -lse)
    block = _block(vocab)
    per_row = torch.stack((base, shift, entropy, g, h, at_target, inv_temperature))
    _grad_kernel[(rows, triton.cdiv(vocab, block))](
        logits, target, per_row, rows, logits.stride(0), vocab, BLOCK=block, num_warps=8
    )  # fmt: skip
    return logits


def _block(vocab: int) -> int:
    return min(_BLOCK, 1 << (vocab - 1).bit_length())  # a power of two
