"""Log-prob and entropy of each row from hidden states and the head, without keeping the logits.

With z = (hidden @ weight.T) / temperature and p = softmax(z)::

    lse = log sum_v exp z_v       logp = z[target] - lse       entropy = -sum_v p_v log p_v

and, for upstream gradients g of logp and h of entropy::

    dL/dz_v = g (1[v = target] - p_v) - h p_v (log p_v + entropy)

The logits exist for one block of rows at a time and are computed again in backward, so a row keeps
three numbers between the passes in place of V. Rows whose upstream gradients are both zero (filler,
clipped tokens, groups without signal) are dropped before the products of backward.
"""

from __future__ import annotations

import math
import sys
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ovlt_kernels.row_logp import row_logp, row_logp_reference

_LOGITS_DTYPES = (None, torch.bfloat16, torch.float32)


class HeadOutput(NamedTuple):
    """What the head says about each row that carries loss; natural logarithms (nats)."""

    logp: Tensor  # float32 [R]  log-prob of the target
    entropy: Tensor  # float32 [R]  entropy of the whole distribution
    lse: Tensor  # float32 [R]  log of the normaliser; carries no gradient


def linear_logp(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    temperature: float = 1.0,
    logits_dtype: torch.dtype | None = None,
    banned_ids: Tensor | None = None,
    chunk_bytes: int = 256 << 20,
    entropy_grad: bool = True,
) -> HeadOutput:
    """Log-prob of ``target``, entropy and log-sum-exp of each row.

    Args:
        hidden: ``[R, H]``, floating point; R may be 0.
        weight: ``[V, H]``, dtype and device of ``hidden``.
        target: int64 ``[R]``, each in ``[0, V)``.
        temperature: > 0; divides the logits in float32, after any rounding, as vLLM does.
        logits_dtype: None: the logits as the matmul gives them in the dtype of the inputs;
            bfloat16: rounded to it (the rounding is passed over in backward); float32: not rounded
            even where the inputs are bfloat16. Choose what the sampling engine does.
        banned_ids: int64 ``[B]``, tokens that the engine cannot sample: left out of the normaliser.
        chunk_bytes: bytes of one float32 block of logits; up to about six of them live at once on
            a GPU, three on a CPU.
        entropy_grad: whether gradient flows through ``entropy``.

    Returns:
        ``HeadOutput``; float32, or float64 for float64 inputs (so that gradcheck works).
        Gradients come in the dtypes of ``hidden`` and ``weight``; that of ``weight`` is summed over
        the blocks in float32 and rounded once. First derivatives only.

    Raises:
        ValueError: for shapes, dtypes, devices, ids or a temperature that do not fit, and for a
            DTensor. Checking the ids waits for the device once.
    """
    _check(hidden, weight, target, temperature, logits_dtype, banned_ids)
    if chunk_bytes < 1:
        raise ValueError(f"chunk_bytes must be > 0, not {chunk_bytes}.")
    rows = max(1, chunk_bytes // (4 * weight.shape[0]))
    logp, entropy, lse = _LinearLogp.apply(
        hidden, weight, target, banned_ids, float(temperature), logits_dtype, rows, entropy_grad
    )
    return HeadOutput(logp, entropy, lse)


def linear_logp_reference(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    temperature: float = 1.0,
    logits_dtype: torch.dtype | None = None,
    banned_ids: Tensor | None = None,
    entropy_grad: bool = True,
) -> HeadOutput:
    """The plain statement of :func:`linear_logp`: all logits at once, and autograd."""
    _check(hidden, weight, target, temperature, logits_dtype, banned_ids)
    wide = _wide(hidden.dtype)
    if logits_dtype == torch.float32:
        logits = hidden.to(wide) @ weight.to(wide).t()
    else:
        logits = hidden @ weight.t()
    if logits_dtype == torch.bfloat16:
        exact = logits.detach()
        logits = logits + (exact.to(torch.bfloat16).to(exact.dtype) - exact)
    logits = logits.to(wide)
    if banned_ids is not None:
        logits = logits.index_fill(1, banned_ids, -math.inf)
    logp, entropy, lse = row_logp_reference(logits, target, temperature)
    return HeadOutput(logp, entropy if entropy_grad else entropy.detach(), lse.detach())


class _LinearLogp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        target: Tensor,
        banned_ids: Tensor | None,
        temperature: float,
        logits_dtype: torch.dtype | None,
        rows: int,
        entropy_grad: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        output = hidden.new_empty(3, len(hidden), dtype=_wide(hidden.dtype))
        for first in range(0, len(hidden), rows):
            block = slice(first, first + rows)
            logits = _logits(hidden[block], weight, logits_dtype, banned_ids)
            for value, found in zip(
                output, row_logp(logits, target[block], temperature), strict=True
            ):
                value[block] = found
        # Apart, so that a small tensor that someone keeps does not hold the other two.
        logp, entropy, lse = (value.clone() for value in output)
        ctx.save_for_backward(hidden, weight, target, banned_ids, logp, entropy, lse)
        ctx.temperature, ctx.logits_dtype, ctx.rows = temperature, logits_dtype, rows
        ctx.mark_non_differentiable(*((lse,) if entropy_grad else (entropy, lse)))
        ctx.set_materialize_grads(False)
        return logp, entropy, lse

    @staticmethod
    @once_differentiable  # pyright reads its result as taking ctx by position only
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Any
    ) -> tuple[Tensor | None, ...]:
        grad_logp, grad_entropy, _ = grad_outputs  # None where nothing flows back
        hidden, weight, target, banned_ids, logp, entropy, lse = ctx.saved_tensors
        want_hidden, want_weight = ctx.needs_input_grad[:2]
        wide = logp.dtype
        if grad_logp is None:
            grad_logp = torch.zeros_like(logp)
        live = grad_logp != 0
        if grad_entropy is not None:
            live = live | (grad_entropy != 0)
        grad_hidden = torch.zeros_like(hidden) if want_hidden else None
        # float32 over the blocks: a bfloat16 sum would err more the more blocks there are.
        grad_weight = torch.zeros_like(weight, dtype=wide) if want_weight else None

        for block in live.nonzero()[:, 0].split(ctx.rows):
            x, ids = hidden[block], target[block, None]
            g, row_logp_ = grad_logp[block, None], logp[block, None]
            log_p = _logits(x, weight, ctx.logits_dtype, banned_ids)
            log_p.div_(ctx.temperature).sub_(lse[block, None])
            p = log_p.exp()
            # The target's column from the saved log-prob: p - 1 would cancel as p goes to 1.
            at_target = g * -torch.expm1(row_logp_)
            if grad_entropy is None:
                dz = p.mul_(-g)
            else:
                h, row_entropy = grad_entropy[block, None], entropy[block, None]
                # The floor keeps 0 * -inf of banned tokens from being NaN; exp(-1e4) is 0 anyway.
                dz = log_p.clamp_(min=-1e4).add_(row_entropy).mul_(h).add_(g).mul_(p).neg_()
                at_target = at_target - h * row_logp_.exp() * (row_logp_ + row_entropy)
            dz = dz.scatter_(1, ids, at_target).div_(ctx.temperature).to(weight.dtype)
            if grad_hidden is not None:
                grad_hidden[block] = dz @ weight
            if grad_weight is not None:
                grad_weight += _product(dz.t(), x, wide)

        if grad_weight is not None:
            grad_weight = grad_weight.to(weight.dtype)
        return grad_hidden, grad_weight, None, None, None, None, None, None


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """a @ b, returned in ``dtype`` without rounding to that of the inputs in between."""
    if a.dtype == dtype:
        return a @ b
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=dtype)
    return a.to(dtype) @ b.to(dtype)  # no CPU product has an output wider than its inputs


def _logits(
    hidden: Tensor, weight: Tensor, logits_dtype: torch.dtype | None, banned_ids: Tensor | None
) -> Tensor:
    """One block of logits, a fresh tensor of at least float32, before the temperature."""
    wide = _wide(hidden.dtype)
    logits = _product(hidden, weight.t(), wide if logits_dtype == torch.float32 else hidden.dtype)
    if logits_dtype == torch.bfloat16:
        logits = logits.to(torch.bfloat16)
    logits = logits.to(wide)
    return logits if banned_ids is None else logits.index_fill_(1, banned_ids, -math.inf)


def _check(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    temperature: float,
    logits_dtype: torch.dtype | None,
    banned_ids: Tensor | None,
) -> None:
    distributed = sys.modules.get("torch.distributed.tensor")  # its import takes most of a second
    if distributed and any(isinstance(t, distributed.DTensor) for t in (hidden, weight)):
        raise ValueError(
            "hidden and weight must be plain tensors, not DTensors: call linear_logp inside the "
            "forward of the FSDP root, where the head's weight is gathered."
        )
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"hidden must be [R, H] and weight [V, H], not {tuple(hidden.shape)} "
            f"and {tuple(weight.shape)}."
        )
    if len(weight) == 0:
        raise ValueError("weight must have at least one row: it is [V, H], as nn.Linear stores it.")
    if target.shape != hidden.shape[:1]:
        raise ValueError(
            f"target must hold one id for each of the {len(hidden)} rows of hidden, "
            f"not the shape {tuple(target.shape)}."
        )
    if not hidden.is_floating_point() or hidden.dtype != weight.dtype:
        raise ValueError(
            f"hidden is {hidden.dtype} and weight is {weight.dtype}: both must have the same "
            "floating dtype; cast one of them."
        )
    if logits_dtype not in _LOGITS_DTYPES:
        raise ValueError(
            f"logits_dtype must be None, torch.bfloat16 or torch.float32, not {logits_dtype}."
        )
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(
            f"temperature must be finite and > 0, not {temperature}: greedy text has no log-prob."
        )
    if banned_ids is not None and banned_ids.dim() != 1:
        raise ValueError(f"banned_ids must be [B], not {tuple(banned_ids.shape)}.")
    for name, tensor in (("weight", weight), ("target", target), ("banned_ids", banned_ids)):
        if tensor is not None and tensor.device != hidden.device:
            raise ValueError(f"{name} is on {tensor.device}, hidden is on {hidden.device}.")
    for name, tensor in (("target", target), ("banned_ids", banned_ids)):
        if tensor is not None and tensor.dtype != torch.int64:
            raise ValueError(f"{name} must be int64, not {tensor.dtype}: use {name}.long().")
    _check_ids(target, banned_ids, len(weight))


def _check_ids(target: Tensor, banned_ids: Tensor | None, vocab: int) -> None:
    outside = ((target < 0) | (target >= vocab)).any()
    banned = unknown = torch.zeros_like(outside)
    if banned_ids is not None:
        banned = torch.isin(target, banned_ids).any()
        unknown = ((banned_ids < 0) | (banned_ids >= vocab)).any()
    if not (outside | banned | unknown):  # one wait for the device, whatever is wrong
        return
    if outside:
        raise ValueError(
            f"target holds ids outside [0, {vocab}): pass only the rows that carry loss "
            "(labels of -100 are no ids)."
        )
    if unknown:
        raise ValueError(f"banned_ids holds ids outside [0, {vocab}): leave those out.")
    raise ValueError(
        "target holds a banned id: its log-prob would be -inf; drop the row, or do not ban the id."
    )
