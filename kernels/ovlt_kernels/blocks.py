"""What the operators of the head share: blocks of logits, products in float32, the checks."""

from __future__ import annotations

import math
import sys

import torch
from torch import Tensor

from ovlt_kernels.row_logp import per_row, wide_dtype

LOGITS_DTYPES = (None, torch.bfloat16, torch.float32)


# By device: float32 bytes of one block of logits where the caller names none. Large blocks, since
# each reads the head and adds to its gradient once: 4,352 rows of Qwen2.5's vocabulary on a GPU
# (1.2 GiB in bfloat16), 1,024 rows of 32k tokens on a CPU.
CHUNK_BYTES = {"cuda": 2560 << 20, "cpu": 128 << 20}


def rows_per_block(chunk_bytes: int | None, weight: Tensor) -> int:
    """Rows whose logits, in float32, fit into ``chunk_bytes``; whole tiles of 128 if that many."""
    if chunk_bytes is None:
        chunk_bytes = CHUNK_BYTES.get(weight.device.type, CHUNK_BYTES["cpu"])
    if chunk_bytes < 1:
        raise ValueError(f"chunk_bytes must be > 0, not {chunk_bytes}.")
    rows = max(1, chunk_bytes // (4 * weight.shape[0]))
    return rows - rows % 128 if rows >= 128 else rows


def product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """a @ b, returned in ``dtype`` without rounding to that of the inputs in between."""
    if a.dtype == dtype:
        return a @ b
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=dtype)
    return a.to(dtype) @ b.to(dtype)  # no CPU product has an output wider than its inputs


def add_product_(total: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """``total += a @ b`` for a float32 ``total``: the gradient of the head, summed over blocks.

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
    """The two products of backward for a block: ``grad_hidden[rows] = dz @ weight`` and
    ``grad_weight += dz.T @ hidden``; None is a gradient that nobody wants."""
    dz = dz.to(weight.dtype)
    if grad_hidden is not None and isinstance(rows, slice):
        torch.mm(dz, weight, out=grad_hidden[rows])
    elif grad_hidden is not None:
        grad_hidden[rows] = dz @ weight
    if grad_weight is not None:
        add_product_(grad_weight, dz.t(), hidden)


def keep_rows_(matrix: Tensor, rows: Tensor) -> Tensor:
    """``matrix[rows]`` for increasing ``rows``, moved to the front of ``matrix`` itself.

    A block of logits is the largest tensor there is, and a copy of most of it would double that.
    """
    step = 256
    for first, some in enumerate(rows.split(step)):
        matrix[first * step : first * step + len(some)] = matrix.index_select(0, some)
    return matrix[: len(rows)]


def block_logits(
    hidden: Tensor, weight: Tensor, logits_dtype: torch.dtype | None, banned_ids: Tensor | None
) -> Tensor:
    """One block of logits, a fresh tensor, before the temperature.

    In the dtype they are rounded to; only bfloat16 and wider ones, since float16 has no exponent
    for a logit of 1e5 and the gradient is written over it.
    """
    wide = wide_dtype(hidden.dtype)
    logits = product(hidden, weight.t(), wide if logits_dtype == torch.float32 else hidden.dtype)
    if logits_dtype == torch.bfloat16:
        logits = logits.to(torch.bfloat16)
    if logits.dtype == torch.float16:
        logits = logits.float()
    return logits if banned_ids is None else logits.index_fill_(1, banned_ids, -math.inf)


def check_head(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    temperature: float | Tensor,
    logits_dtype: torch.dtype | None,
    banned_ids: Tensor | None,
) -> Tensor:
    """The temperature of each row, float64 ``[R]``, or a ValueError that says what to mend."""
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
    if logits_dtype not in LOGITS_DTYPES:
        raise ValueError(
            f"logits_dtype must be None, torch.bfloat16 or torch.float32, not {logits_dtype}."
        )
    if banned_ids is not None and banned_ids.dim() != 1:
        raise ValueError(f"banned_ids must be [B], not {tuple(banned_ids.shape)}.")
    for name, tensor in (("weight", weight), ("target", target), ("banned_ids", banned_ids)):
        if tensor is not None and tensor.device != hidden.device:
            raise ValueError(f"{name} is on {tensor.device}, hidden is on {hidden.device}.")
    for name, tensor in (("target", target), ("banned_ids", banned_ids)):
        if tensor is not None and tensor.dtype != torch.int64:
            raise ValueError(f"{name} must be int64, not {tensor.dtype}: use {name}.long().")
    temperatures = per_row(temperature, hidden)
    _check_values(target, banned_ids, temperatures, len(weight))
    return temperatures


def _check_values(
    target: Tensor, banned_ids: Tensor | None, temperature: Tensor, vocab: int
) -> None:
    outside = ((target < 0) | (target >= vocab)).any()
    cold = ~((temperature > 0) & (temperature < math.inf))
    banned = unknown = torch.zeros_like(outside)
    if banned_ids is not None:
        banned = torch.isin(target, banned_ids).any()
        unknown = ((banned_ids < 0) | (banned_ids >= vocab)).any()
    if not (outside | cold.any() | banned | unknown):  # one wait for the device, for all of them
        return
    if cold.any():
        raise ValueError(
            f"temperature must be finite and > 0, not {float(temperature[cold][0])}: greedy text "
            "has no log-prob."
        )
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
