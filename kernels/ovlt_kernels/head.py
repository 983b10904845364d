"""The contract that the operators of the head share: options, output, and the checks of both.

Shapes: R rows that carry loss, H hidden size, V vocabulary, B banned tokens.
"""

from __future__ import annotations

import math
import sys
from typing import NamedTuple

import torch
from torch import Tensor

from ovlt_kernels.row_logp import per_row
from ovlt_kernels.waits import can_read

LOGITS_DTYPES = (None, torch.bfloat16, torch.float32)


class HeadOptions(NamedTuple):
    """How logits become log-probs. Choose what the sampling engine does."""

    # > 0; divides the logits in float32, after any rounding, as vLLM does. A number, or a floating
    # tensor [R] with one for each row; no gradient flows through it.
    temperature: float | Tensor = 1.0
    # None: the logits as the matmul gives them in the dtype of the inputs; bfloat16: rounded to it
    # (backward passes over the rounding); float32: not rounded even if the inputs are bfloat16.
    logits_dtype: torch.dtype | None = None
    # int64 [B], tokens that the engine cannot sample: left out of the normaliser.
    banned_ids: Tensor | None = None


PLAIN = HeadOptions()  # temperature 1, no rounding, every token


class HeadOutput(NamedTuple):
    """What the head says about each row that carries loss; natural logarithms (nats)."""

    logp: Tensor  # float32 [R]  log-prob of the target
    entropy: Tensor  # float32 [R]  entropy of the whole distribution
    lse: Tensor  # float32 [R]  log of the normaliser; carries no gradient


def check_head(hidden: Tensor, weight: Tensor, target: Tensor, options: HeadOptions) -> Tensor:
    """Return the temperature of each row, float64 ``[R]``.

    Values are read on a CPU only. On a GPU that would wait for the device: there it is the device
    that stops at a bad value, with a RuntimeError later on. ``check_ids`` says it better, before
    the ids are copied.

    Raises:
        ValueError: for inputs or options that do not fit; the text says how to fix them.
    """
    # Asked of modules already imported: importing DTensor takes most of a second.
    distributed = sys.modules.get("torch.distributed.tensor")
    if distributed and any(isinstance(t, distributed.DTensor) for t in (hidden, weight)):
        raise ValueError(
            "hidden and weight must be plain tensors, not DTensors: call linear_logp inside the "
            "forward of the FSDP root, where the head's weight is gathered."
        )
    _check_shapes(hidden, weight, target, options.banned_ids)
    _check_dtypes(hidden, weight, target, options)
    if not isinstance(options.temperature, Tensor):
        _check_temperature(options.temperature)
    temperature = per_row(options.temperature, hidden)
    if can_read(target):
        _check_values(target, options.banned_ids, temperature, len(weight))
    else:
        bad = torch.stack(_bad_values(target, options.banned_ids, temperature, len(weight)))
        torch._assert_async(~bad.any(), "an id or a temperature does not fit: see check_ids")
    return temperature


def _check_shapes(
    hidden: Tensor, weight: Tensor, target: Tensor, banned_ids: Tensor | None
) -> None:
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
    if banned_ids is not None and banned_ids.dim() != 1:
        raise ValueError(f"banned_ids must be [B], not {tuple(banned_ids.shape)}.")


def _check_dtypes(hidden: Tensor, weight: Tensor, target: Tensor, options: HeadOptions) -> None:
    """Check the dtypes, and that everything is on one device."""
    if not hidden.is_floating_point() or hidden.dtype != weight.dtype:
        raise ValueError(
            f"hidden is {hidden.dtype} and weight is {weight.dtype}: both must have the same "
            "floating dtype; cast one of them."
        )
    if options.logits_dtype not in LOGITS_DTYPES:
        raise ValueError(
            "logits_dtype must be None, torch.bfloat16 or torch.float32, "
            f"not {options.logits_dtype}."
        )
    ids = {"target": target}
    if options.banned_ids is not None:
        ids["banned_ids"] = options.banned_ids
    for name, tensor in {"weight": weight, **ids}.items():
        if tensor.device != hidden.device:
            raise ValueError(f"{name} is on {tensor.device}, hidden is on {hidden.device}.")
    for name, tensor in ids.items():
        if tensor.dtype != torch.int64:
            raise ValueError(f"{name} must be int64, not {tensor.dtype}: use {name}.long().")


def _check_temperature(value: float) -> None:
    if not 0 < value < math.inf:  # NaN too
        raise ValueError(
            f"temperature must be finite and > 0, not {value}: greedy text has no log-prob."
        )


def check_ids(target: Tensor, banned_ids: Tensor | None, vocab: int) -> None:
    """Raise ValueError for ids in CPU memory that a head of ``vocab`` rows cannot score."""
    _check_values(target, banned_ids, torch.ones(1, dtype=torch.float64), vocab)


def _check_values(
    target: Tensor, banned_ids: Tensor | None, temperature: Tensor, vocab: int
) -> None:
    cold, outside, unknown, banned = _bad_values(target, banned_ids, temperature, vocab)
    if not (cold | outside | unknown | banned):
        return
    if cold:
        fits = (temperature > 0) & (temperature < math.inf)
        _check_temperature(float(temperature[~fits][0]))
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


def _bad_values(
    target: Tensor, banned_ids: Tensor | None, temperature: Tensor, vocab: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return whether a temperature, a target or a banned id is impossible, or a target banned."""
    cold = ~((temperature > 0) & (temperature < math.inf)).all()  # NaN too
    outside = ((target < 0) | (target >= vocab)).any()
    banned = unknown = torch.zeros_like(outside)
    if banned_ids is not None:
        unknown = ((banned_ids < 0) | (banned_ids >= vocab)).any()
        # A table: `isin` of hundreds of ids looks for what is unique, which on a GPU waits.
        table = torch.zeros(vocab, dtype=torch.bool, device=target.device)
        table.index_fill_(0, banned_ids.clamp(0, vocab - 1), True)
        banned = table.index_select(0, target.clamp(0, vocab - 1)).any()
    return cold, outside, unknown, banned
