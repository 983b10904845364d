"""Log-prob and entropy of each row from hidden states and the head, without keeping the logits.

With z = (hidden @ weight.T) / temperature and p = softmax(z)::

    lse = log sum_v exp z_v       logp = z[target] - lse       entropy = -sum_v p_v log p_v

and, with the upstream gradients g of logp and h of entropy::

    dL/dz_v = g (1[v = target] - p_v) - h p_v (log p_v + entropy)

The logits exist for one block of rows at a time and are computed again in backward, so a row keeps
three numbers between the passes instead of V. Rows whose upstream gradients are both zero (filler,
clipped tokens, groups without signal) have no part in the gradients. On a CPU they are dropped
before the products of backward; on a GPU counting them would wait for the device.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ovlt_kernels.blocks import add_gradients_, block_logits, rows_per_block
from ovlt_kernels.head import PLAIN, HeadOptions, HeadOutput, check_head
from ovlt_kernels.row_logp import row_logp, row_logp_grad_, row_logp_reference, wide_dtype
from ovlt_kernels.waits import can_read

if TYPE_CHECKING:
    from torch.autograd.function import FunctionCtx

    class Context(FunctionCtx):
        """What the forward leaves for the backward."""

        logits_dtype: torch.dtype | None
        rows: int  # of one block
        needs_input_grad: tuple[bool, ...]
        saved_tensors: tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor, Tensor, Tensor, Tensor]


def linear_logp(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    options: HeadOptions = PLAIN,
    *,
    chunk_bytes: int | None = None,
    entropy_grad: bool = True,
) -> HeadOutput:
    """Return log-prob of ``target``, entropy and log-sum-exp of each row.

    Args:
        hidden: ``[R, H]``, floating point; R may be 0.
        weight: ``[V, H]``, dtype and device of ``hidden``.
        target: int64 ``[R]``, each in ``[0, V)``.
        options: temperature, rounding of the logits, banned tokens.
        chunk_bytes: bytes of one block of logits, counted in float32; None: by the device
            (``blocks.CHUNK_BYTES``).
        entropy_grad: whether gradient flows through ``entropy``.

    Returns:
        ``HeadOutput``; float32, or float64 for float64 inputs (so that gradcheck works).
        Gradients come in the dtypes of ``hidden`` and ``weight``; that of ``weight`` is summed over
        the blocks in float32 and rounded once at the end (on a CPU each block's bfloat16 product is
        rounded too). First derivatives only.

    Raises:
        ValueError: for shapes, dtypes, devices, ids or a temperature that do not fit, and for a
            DTensor. On a GPU bad ids end in the device's own error, since reading them would wait.
    """
    temperature = check_head(hidden, weight, target, options)
    rows = rows_per_block(chunk_bytes, weight)
    with torch.autocast(hidden.device.type, enabled=False):  # the dtypes are the caller's choice
        logp, entropy, lse = _LinearLogp.apply(
            hidden, weight, target, options.banned_ids, temperature, options.logits_dtype, rows,
            entropy_grad,
        )  # fmt: skip
    return HeadOutput(logp, entropy, lse)


def linear_logp_reference(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    options: HeadOptions = PLAIN,
    *,
    entropy_grad: bool = True,
) -> HeadOutput:
    """The plain statement of :func:`linear_logp`: all logits at once, and autograd."""
    temperature = check_head(hidden, weight, target, options)
    wide = wide_dtype(hidden.dtype)
    if options.logits_dtype == torch.float32:
        logits = hidden.to(wide) @ weight.to(wide).t()  # [R, V]
    else:
        logits = hidden @ weight.t()  # [R, V]
    if options.logits_dtype == torch.bfloat16:
        exact = logits.detach()
        logits = logits + (exact.to(torch.bfloat16).to(exact.dtype) - exact)
    logits = logits.to(wide)
    if options.banned_ids is not None:
        logits = logits.index_fill(1, options.banned_ids, -math.inf)
    logp, entropy, lse = row_logp_reference(logits, target, temperature)
    return HeadOutput(logp, entropy if entropy_grad else entropy.detach(), lse.detach())


class _LinearLogp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Context,
        hidden: Tensor,
        weight: Tensor,
        target: Tensor,
        banned_ids: Tensor | None,
        temperature: Tensor,
        logits_dtype: torch.dtype | None,
        rows: int,
        entropy_grad: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        output = hidden.new_empty(3, len(hidden), dtype=wide_dtype(hidden.dtype))  # [3, R]
        for first in range(0, len(hidden), rows):
            block = slice(first, first + rows)
            logits = block_logits(hidden[block], weight, logits_dtype, banned_ids)  # [rows, V]
            stats = row_logp(logits, target[block], temperature[block])  # 3 x [rows]
            for whole, part in zip(output, stats, strict=True):
                whole[block] = part
            del logits  # or this block's would still be there while the next one is made
        # Copies, so that a small tensor that someone keeps does not hold the other two.
        logp, entropy, lse = (value.clone() for value in output)
        inputs = hidden, weight, target, banned_ids, temperature
        # None (no banned ids) is allowed, though torch does not declare it.
        ctx.save_for_backward(*inputs, logp, entropy, lse)  # pyright: ignore[reportArgumentType]
        ctx.logits_dtype, ctx.rows = logits_dtype, rows
        ctx.mark_non_differentiable(*((lse,) if entropy_grad else (entropy, lse)))
        ctx.set_materialize_grads(False)
        return logp, entropy, lse

    @staticmethod
    @once_differentiable  # pyright reads its result as taking ctx by position only
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Context, grad_logp: Tensor | None, grad_entropy: Tensor | None, _: None
    ) -> tuple[Tensor | None, ...]:
        with torch.autocast(ctx.saved_tensors[0].device.type, enabled=False):
            return _backward(ctx, grad_logp, grad_entropy)


def _backward(
    ctx: Context, grad_logp: Tensor | None, grad_entropy: Tensor | None
) -> tuple[Tensor | None, ...]:
    """A gradient of None says that nothing flows back through that output."""
    hidden, weight, target, banned_ids, temperature, logp, entropy, lse = ctx.saved_tensors
    needs_hidden, needs_weight = ctx.needs_input_grad[:2]
    wide = logp.dtype
    if grad_logp is None:
        grad_logp = torch.zeros_like(logp)
    live = grad_logp != 0  # [R]
    if grad_entropy is not None:
        live = live | (grad_entropy != 0)
    grad_hidden = torch.zeros_like(hidden) if needs_hidden else None  # [R, H]
    # float32 over the blocks: a bfloat16 sum would err more the more blocks there are.
    grad_weight = torch.zeros_like(weight, dtype=wide) if needs_weight else None  # [V, H]

    blocks: list[Tensor | slice]
    if can_read(live):
        blocks = [*live.nonzero()[:, 0].split(ctx.rows)]
    else:
        blocks = [slice(i, min(i + ctx.rows, len(live))) for i in range(0, len(live), ctx.rows)]
    for block in blocks:
        x, ids = hidden[block], target[block]  # [rows, H], [rows]
        if isinstance(block, slice):  # rows of dz that are 0: 0 times NaN must be 0
            x = x.masked_fill(~live[block, None], 0.0)
        dz = row_logp_grad_(
            block_logits(x, weight, ctx.logits_dtype, banned_ids),
            ids,
            (logp[block], entropy[block], lse[block]),
            grad_logp[block],
            None if grad_entropy is None else grad_entropy[block],
            temperature[block],
        )  # [rows, V]
        add_gradients_(grad_hidden, grad_weight, dz, x, weight, block)
        del dz  # or this block's would still be there while the next one is made

    if grad_weight is not None:
        grad_weight = grad_weight.to(weight.dtype)
    return grad_hidden, grad_weight, None, None, None, None, None, None
