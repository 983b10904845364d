"""What the operators of the head share: blocks of logits, and products summed in float32.

Shapes: R rows that carry loss, H hidden size, V vocabulary.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ovlt_kernels.row_logp import wide_dtype

# Float32 bytes of one block of logits if the caller names none, by device. Large blocks, since each
# reads the head and adds to its gradient once: 4,352 rows of Qwen2.5's vocabulary on a GPU
# (1.2 GiB in bfloat16), 1,024 rows of 32k tokens on a CPU.
CHUNK_BYTES = {"cuda": 2560 << 20, "cpu": 128 << 20}


def rows_per_block(chunk_bytes: int | None, weight: Tensor) -> int:
    """Return how many rows of logits, in float32, fit into ``chunk_bytes``; at least one.

    From 128 rows on a multiple of 128, the rows of one tile of a GPU's matrix product.
    """
    if chunk_bytes is None:
        chunk_bytes = CHUNK_BYTES.get(weight.device.type, CHUNK_BYTES["cpu"])
    if chunk_bytes < 1:
        raise ValueError(f"chunk_bytes must be > 0, not {chunk_bytes}.")
    rows = max(1, chunk_bytes // (4 * weight.shape[0]))
    return rows - rows % 128 if rows >= 128 else rows


def product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``a @ b`` in ``dtype`` without rounding to that of the inputs in between."""
    if a.dtype == dtype:
        return a @ b
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=dtype)
    return a.to(dtype) @ b.to(dtype)  # no CPU product has an output wider than its inputs


def add_product_(total: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Add ``a @ b`` to a float32 ``total``: the gradient of the head, summed over blocks.

    On a GPU nothing is rounded in between, and there is no temporary of the size of the head. A CPU
    has no product wider than its inputs, and a float32 one takes four times as long as a bfloat16
    one: there each block's product is rounded once, and their sum is float32, so that the error is
    flat in the number of blocks.
    """
    if a.dtype == total.dtype:
        return torch.addmm(total, a, b, out=total)
    if a.is_cuda:
        return torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
    return total.add_(a @ b)


def add_gradients_(
    grad_hidden: Tensor | None,
    grad_weight: Tensor | None,
    dz: Tensor,
    hidden: Tensor,
    weight: Tensor,
    rows: Tensor | slice,
) -> None:
    """Do the two products of backward for a block of n rows, in place.

    ``grad_hidden[rows] = dz @ weight`` and ``grad_weight += dz.T @ hidden``.

    Args:
        grad_hidden: ``[R, H]``; None: not needed.
        grad_weight: float32 ``[V, H]``; None: not needed.
        dz: gradient of the block's logits, ``[n, V]``.
        hidden: the block's rows, ``[n, H]``.
        weight: ``[V, H]``.
        rows: where the block's rows are in ``grad_hidden``.
    """
    dz = dz.to(weight.dtype)
    if grad_hidden is not None and isinstance(rows, slice):
        torch.mm(dz, weight, out=grad_hidden[rows])
    elif grad_hidden is not None:
        grad_hidden[rows] = dz @ weight
    if grad_weight is not None:
        add_product_(grad_weight, dz.t(), hidden)


def keep_rows_(matrix: Tensor, rows: Tensor) -> Tensor:
    """Return ``matrix[rows]`` for increasing ``rows``, moved to the front of ``matrix`` itself.

    A block of logits is the largest tensor there is, and a copy of most of it would double that.
    """
    step = 256  # rows copied at a time: 1/17 of a full block on a GPU
    for i, part in enumerate(rows.split(step)):
        matrix[i * step : i * step + len(part)] = matrix.index_select(0, part)
    return matrix[: len(rows)]


def block_logits(
    hidden: Tensor, weight: Tensor, logits_dtype: torch.dtype | None, banned_ids: Tensor | None
) -> Tensor:
    """Return one block of logits ``[rows, V]``, a fresh tensor, before the temperature.

    Its dtype is the one that the logits are rounded to; float16 becomes float32, since float16 has
    no exponent for a logit of 1e5 and the gradient is written over the block.
    """
    wide = wide_dtype(hidden.dtype)
    logits = product(hidden, weight.t(), wide if logits_dtype == torch.float32 else hidden.dtype)
    if logits_dtype == torch.bfloat16:
        logits = logits.to(torch.bfloat16)
    if logits.dtype == torch.float16:
        logits = logits.float()
    return logits if banned_ids is None else logits.index_fill_(1, banned_ids, -math.inf)
