"""The row passes of ``row_logp`` in Triton, for GPUs; under TRITON_INTERPRET=1 they run on a CPU.

Two kernels, bound by memory. The first reads every logit x once. Each lane keeps the maximum m of
the logits that it saw, S = sum exp((x - m) / T) and D = sum exp((x - m) / T) (x - m), and the lanes
are merged at the end, as in csrc/row_math.h: reducing over the whole program for each block of
columns would take longer than reading the block. The second reads the logits again and writes the
gradient over them, given the upstream gradients g of logp and h of entropy (``row_logp`` states the
formula). All arithmetic is float32.
"""

# Triton types the arguments of a kernel when it compiles it, for the tensors that it is given.
# pyright: reportMissingParameterType=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 4096  # columns that a program holds at a time: 16 KiB of float32 in registers of 8 warps
_LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)
_LOWEST: tl.constexpr = tl.constexpr(-3.4028234663852886e38)


@triton.jit
def _stats_kernel(
    logits, at_target, inv_temperature, logp, entropy, lse, stride, vocab,
    LANES: tl.constexpr, EACH: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)  # rows x vocab passes 2^31
    logits += row * stride
    # EACH columns of 16 bytes are one load of one thread, and are summed without the others
    columns = tl.arange(0, LANES)[:, None] * EACH + tl.arange(0, EACH)[None, :]
    scale = tl.load(inv_temperature + row)
    rate = scale * _LOG2_E  # exp2 is what a GPU computes
    m = tl.full((LANES,), float("-inf"), tl.float32)
    s = tl.zeros((LANES,), tl.float32)
    d = tl.zeros((LANES,), tl.float32)
    for begin in range(0, vocab, LANES * EACH):
        inside = begin + columns < vocab
        x = tl.load(logits + begin + columns, mask=inside, other=float("-inf")).to(tl.float32)
        highest = tl.maximum(m, tl.max(x, axis=1))
        # -inf - -inf is NaN: until there is a finite logit, measure from 0
        shift = tl.where(highest == float("-inf"), 0.0, highest)
        step = tl.where(m == float("-inf"), 0.0, m - shift)
        factor = tl.exp2(step * rate)
        below = x - shift[:, None]
        e = tl.exp2(below * rate)
        # 0 * -inf of a masked token is NaN; so is a difference of two logits near the lowest float
        finite = tl.maximum(below, _LOWEST)
        d = tl.where(factor == 0.0, 0.0, factor * (d + step * s)) + tl.sum(e * finite, axis=1)
        s = factor * s + tl.sum(e, axis=1)
        m = highest
    highest = tl.max(m, axis=0)
    shift = tl.where(highest == float("-inf"), 0.0, highest)
    step = tl.where(m == float("-inf"), 0.0, m - shift)
    factor = tl.exp2(step * rate)
    d = tl.sum(tl.where(factor == 0.0, 0.0, factor * (d + step * s)), axis=0)
    s = tl.sum(factor * s, axis=0)
    log_s = tl.log(s)
    # x - m before - log S: both small, where m + log S would already have been rounded
    tl.store(logp + row, (tl.load(at_target + row) - highest) * scale - log_s)
    tl.store(entropy + row, log_s - d / s * scale)
    tl.store(lse + row, highest * scale + log_s)


@triton.jit(do_not_specialize=["rows"])  # another number at every call: compile once
def _grad_kernel(logits, per_row, rows, stride, vocab, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    base = tl.load(per_row + row)
    shift = tl.load(per_row + rows + row)
    entropy = tl.load(per_row + 2 * rows + row)
    g = tl.load(per_row + 3 * rows + row)
    h = tl.load(per_row + 4 * rows + row)
    scale = tl.load(per_row + 5 * rows + row)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    here = logits + row * stride + columns
    read = tl.where((g == 0.0) & (h == 0.0), 0, vocab)  # such a row is not read: 0 even for NaN
    x = tl.load(here, mask=columns < read, other=float("-inf")).to(tl.float32)
    log_p = (x - base) * scale + shift
    p = tl.exp2(log_p * _LOG2_E)
    # a masked token has log_p = -inf, and no gradient
    dx = tl.where(p == 0.0, 0.0, (g + h * (log_p + entropy)) * p)
    tl.store(here, dx.to(logits.dtype.element_ty), mask=columns < vocab)


def row_stats(
    logits: Tensor, target: Tensor, inv_temperature: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``(logp, entropy, lse)``, float32 ``[R]`` each, as ``row_logp``.

    Args:
        logits: ``[R, V]``, last dimension contiguous.
        target: int64 ``[R]``.
        inv_temperature: float32 ``[R]``.
    """
    rows, vocab = logits.shape
    logp, entropy, lse = (
        torch.empty(rows, dtype=torch.float32, device=logits.device) for _ in range(3)
    )
    if rows:
        each = 16 // logits.element_size()
        _stats_kernel[(rows,)](
            logits, _at_target(logits, target), inv_temperature, logp, entropy, lse,
            logits.stride(0), vocab,
            LANES=max(1, _block(vocab) // each), EACH=each, num_warps=8,  # pyright: ignore[reportCallIssue]
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
    # If the logits are far from 0, lse is large and its rounding is the error of every p: measure
    # from the target's logit instead if its log-prob is the smaller number.
    live = (g != 0) | (h != 0)
    near = live & (logp.abs() < lse.abs())
    base = torch.where(near, _at_target(logits, target), 0.0)
    shift = torch.where(near, logp, torch.where(live, -lse, 0.0))
    slopes = (-g * inv_temperature, -h * inv_temperature)
    block = _block(vocab)
    per_row = torch.stack((base, shift, entropy, *slopes, inv_temperature))
    _grad_kernel[(rows, triton.cdiv(vocab, block))](
        logits, per_row, rows, logits.stride(0), vocab, BLOCK=block,
        num_warps=8,  # pyright: ignore[reportCallIssue]
    )  # fmt: skip
    at_target = torch.where(live, at_target * inv_temperature, 0.0)
    return logits.scatter_(1, target[:, None], at_target.to(logits.dtype)[:, None])


def _at_target(logits: Tensor, target: Tensor) -> Tensor:
    """Return the logit of the target, float32 ``[R]``.

    Not in the kernel: gather lets the device report an id that is out of range.
    """
    return logits.gather(1, target[:, None])[:, 0].float()


def _block(vocab: int) -> int:
    """Return how many columns a program takes at a time: a power of two, as Triton's ranges are."""
    return min(_BLOCK, 1 << (vocab - 1).bit_length())
