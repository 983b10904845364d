"""A loss that is a sum over rows, from hidden states and the head; its gradients made in forward.

If the loss of a row depends on nothing but that row's log-prob and entropy (cross-entropy, and
every token-level policy loss), the gradient of a block of logits can be written over the block as
soon as it is there, and both products of backward follow at once: three products in all, where
:func:`linear_logp` takes four, since its backward has to make the logits again. The price is that
the gradients of hidden states and head wait from forward to backward. A loss that ties rows
together (one ratio per response, GSPO) needs ``linear_logp``.

``g`` and ``h`` below are the gradients of the loss with respect to log-prob and entropy, ``[R]``;
:mod:`ovlt_kernels.linear_logp` states the gradient of the logits that follows from them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ovlt_kernels.blocks import add_gradients_, block_logits, keep_rows_, rows_per_block
from ovlt_kernels.head import PLAIN, HeadOptions, HeadOutput, check_head
from ovlt_kernels.linear_logp import linear_logp_reference
from ovlt_kernels.row_logp import row_logp, row_logp_grad_, wide_dtype
from ovlt_kernels.waits import can_read

if TYPE_CHECKING:
    from torch.autograd.function import FunctionCtx

    class Context(FunctionCtx):
        """What the forward leaves for the backward."""

        weight_dtype: torch.dtype
        needs_input_grad: tuple[bool, ...]
        saved_tensors: tuple[Tensor | None, Tensor | None]


# The share of a block's rows from which on the products that they save take longer than moving the
# other rows' logits together (measured with a hidden size of 256; with a larger one, even less).
_WORTH_DROPPING = 1 / 8

RowObjective = Callable[[HeadOutput, slice], Tensor]


def linear_loss(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    objective: RowObjective,
    options: HeadOptions = PLAIN,
    *,
    chunk_bytes: int | None = None,
) -> tuple[Tensor, HeadOutput]:
    """Return the sum over blocks of ``objective(head output of the block, rows of the block)``.

    Args:
        hidden: ``[R, H]``; as in :func:`ovlt_kernels.linear_logp`, like the other arguments but
            the objective.
        weight: ``[V, H]``.
        target: int64 ``[R]``.
        objective: gets the log-prob, entropy and log-sum-exp of some rows and which rows they are;
            returns a scalar that is differentiable in the first two. It must be a sum over rows:
            it is called once per block, and what it returns is added up. Rows whose gradients are
            both zero have no part in the gradients, whatever they hold; if a block has more than a
            few of them, they are dropped before its two products (on a CPU: on a GPU counting
            them would wait for the device).
        options: temperature, rounding of the logits, banned tokens.
        chunk_bytes: bytes of one block of logits.

    Returns:
        The loss, a scalar in float32 (float64 for float64 inputs), and the HeadOutput of all rows,
        without gradient. If autograd is off, or neither input wants a gradient, only the forward
        product is done. First derivatives only.

    Raises:
        ValueError: as :func:`ovlt_kernels.linear_logp`; an objective that returns no scalar.
    """
    temperature = check_head(hidden, weight, target, options)
    with torch.autocast(hidden.device.type, enabled=False):  # the dtypes are the caller's choice
        loss, logp, entropy, lse = _LinearLoss.apply(
            hidden, weight, target, options.banned_ids, objective, temperature,
            options.logits_dtype, rows_per_block(chunk_bytes, weight), torch.is_grad_enabled(),
        )  # fmt: skip
    return loss, HeadOutput(logp, entropy, lse)


def linear_loss_reference(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    objective: RowObjective,
    options: HeadOptions = PLAIN,
) -> tuple[Tensor, HeadOutput]:
    """The plain statement of :func:`linear_loss`: all logits at once, and autograd."""
    head = linear_logp_reference(hidden, weight, target, options)
    loss = objective(head, slice(0, len(hidden)))
    return loss, HeadOutput(*(value.detach() for value in head))


class _LinearLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Context,
        hidden: Tensor,
        weight: Tensor,
        target: Tensor,
        banned_ids: Tensor | None,
        objective: RowObjective,
        temperature: Tensor,
        logits_dtype: torch.dtype | None,
        rows: int,
        differentiable: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        needs_hidden, needs_weight = (differentiable and need for need in ctx.needs_input_grad[:2])
        wide = wide_dtype(hidden.dtype)
        output = hidden.new_empty(3, len(hidden), dtype=wide)  # [3, R]
        total = hidden.new_zeros((), dtype=torch.float64)
        grad_hidden = torch.zeros_like(hidden) if needs_hidden else None  # [R, H]
        # float32 over the blocks: a bfloat16 sum would err more the more blocks there are.
        grad_weight = torch.zeros_like(weight, dtype=wide) if needs_weight else None  # [V, H]

        for first in range(0, len(hidden), rows):
            block = slice(first, min(first + rows, len(hidden)))
            x, ids, t = hidden[block], target[block], temperature[block]  # [rows, H], 2 x [rows]
            logits = block_logits(x, weight, logits_dtype, banned_ids)  # [rows, V]
            stats = row_logp(logits, ids, t)  # 3 x [rows]
            for whole, part in zip(output, stats, strict=True):
                whole[block] = part
            loss, g, h = _differentiate(objective, stats, block)  # [], 2 x [rows]
            total += loss
            if not (needs_hidden or needs_weight):
                del logits
                continue
            live = (g != 0) | (h != 0)  # [rows]
            places: Tensor | slice = block  # of the rows of x in hidden
            # None: not counted, since that would wait for the device.
            dropped = len(ids) - int(live.sum()) if can_read(live) else None
            if dropped is not None and dropped > _WORTH_DROPPING * len(ids):
                few = live.nonzero()[:, 0]
                logits, places = keep_rows_(logits, few), few + first
                x, ids, t, g, h = (value.index_select(0, few) for value in (x, ids, t, g, h))
                logp, entropy, lse = (value.index_select(0, few) for value in stats)
                stats = logp, entropy, lse
            elif dropped != 0:  # their rows of dz are 0, and here 0 times NaN must be 0
                x = x.masked_fill(~live[:, None], 0.0)
            dz = row_logp_grad_(logits, ids, stats, g, h, t)  # [rows, V]
            add_gradients_(grad_hidden, grad_weight, dz, x, weight, places)
            del logits, dz  # or this block's would still be there while the next one is made

        # None is allowed, though torch does not declare it.
        ctx.save_for_backward(grad_hidden, grad_weight)  # pyright: ignore[reportArgumentType]
        ctx.weight_dtype = weight.dtype
        logp, entropy, lse = (value.clone() for value in output)
        ctx.mark_non_differentiable(logp, entropy, lse)
        return total.to(wide), logp, entropy, lse

    @staticmethod
    @once_differentiable  # pyright reads its result as taking ctx by position only
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Context, scale: Tensor, *_: Tensor
    ) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        if grad_hidden is not None:
            grad_hidden = grad_hidden * scale.to(grad_hidden.dtype)
        if grad_weight is not None:  # no float32 temporary of its size
            rounded = torch.empty_like(grad_weight, dtype=ctx.weight_dtype)
            grad_weight = torch.mul(grad_weight, scale, out=rounded)
        return grad_hidden, grad_weight, None, None, None, None, None, None, None


def _differentiate(
    objective: RowObjective, stats: tuple[Tensor, Tensor, Tensor], block: slice
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the objective of a block, and its gradients g of log-probs and h of entropies."""
    with torch.enable_grad():
        logp, entropy = (value.detach().requires_grad_() for value in stats[:2])
        loss = objective(HeadOutput(logp, entropy, stats[2]), block)
        if loss.dim():
            raise ValueError(f"the objective must return a scalar, not {tuple(loss.shape)}.")
        if not loss.requires_grad:
            return loss, torch.zeros_like(logp), torch.zeros_like(entropy)
        g, h = torch.autograd.grad(loss, (logp, entropy), allow_unused=True, materialize_grads=True)
    return loss.detach(), g, h
