"""Log-prob of the target, entropy and log-sum-exp of each row of a logits matrix.

With z = logits / temperature::

    lse = log sum_v exp z_v      logp = z[target] - lse      entropy = lse - sum_v softmax(z)_v z_v

in nats. A token that is left out of the distribution has the logit ``-inf``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ovlt_kernels.extension import HAS_EXTENSION

if HAS_EXTENSION:

    @torch.library.register_fake("ovlt::row_logp")
    def _row_logp_fake(
        logits: Tensor, target: Tensor, inv_temperature: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        rows = logits.shape[0]
        return logits.new_empty(rows), logits.new_empty(rows), logits.new_empty(rows)


def row_logp(
    logits: Tensor, target: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """The three statistics of each row, float32 (float64 for float64 logits).

    Args:
        logits: ``[R, V]``, any floating dtype and device; computed in at least float32.
        target: int64 ``[R]``, on the device of the logits, each in ``[0, V)``. The range is checked
            on a CPU only: on a GPU that would wait for the device, which reports it by itself.
        temperature: > 0; the logits are divided by it.

    Returns:
        ``(logp [R], entropy [R], lse [R])``, in nats. float32 logits on a CPU that need no gradient
        go through the C++ operator, which reads them once and makes no ``[R, V]`` temporary; all
        others through :func:`row_logp_reference`, which autograd differentiates.

    Raises:
        ValueError: for shapes, dtypes, a temperature or target ids that do not fit.
    """
    _check(logits, target, temperature)
    wants_grad = logits.requires_grad and torch.is_grad_enabled()
    if (
        HAS_EXTENSION
        and logits.device.type == "cpu"
        and logits.dtype == torch.float32
        and not wants_grad
    ):
        return torch.ops.ovlt.row_logp(
            logits.detach().contiguous(), target.contiguous(), 1.0 / temperature
        )
    if logits.dtype != torch.float64:
        logits = logits.float()
    return row_logp_reference(logits, target, temperature)


def row_logp_reference(
    logits: Tensor, target: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """The plain statement of :func:`row_logp`, in the dtype of the logits, without checks."""
    z = logits / temperature
    lse = torch.logsumexp(z, dim=-1)
    log_softmax = torch.log_softmax(z, dim=-1)
    logp = log_softmax.gather(-1, target[:, None])[:, 0]
    # 0 * -inf is NaN: a token that is left out adds nothing to the entropy.
    finite = log_softmax.masked_fill(log_softmax == -torch.inf, 0.0)
    entropy = -(log_softmax.exp() * finite).sum(dim=-1)
    return logp, entropy, lse


def _check(logits: Tensor, target: Tensor, temperature: float) -> None:
    if logits.dim() != 2 or logits.shape[1] == 0:
        raise ValueError(f"logits must be [R, V] with V > 0, not {tuple(logits.shape)}.")
    if not logits.is_floating_point():
        raise ValueError(f"logits must be floating point, not {logits.dtype}.")
    rows, vocab = logits.shape
    if target.shape != (rows,):
        raise ValueError(
            f"target must hold one id for each of the {rows} rows of logits, "
            f"not the shape {tuple(target.shape)}."
        )
    if target.dtype != torch.int64:
        raise ValueError(f"target must be int64, not {target.dtype}: use target.long().")
    if target.device != logits.device:
        raise ValueError(f"target is on {target.device}, logits are on {logits.device}.")
    if not temperature > 0:
        raise ValueError(f"temperature must be > 0, not {temperature}: greedy has no log-prob.")
    # Not while tracing: reading a value there would break the graph.
    if target.device.type == "cpu" and rows and not torch.compiler.is_compiling():
        low, high = torch.aminmax(target)
        if low < 0 or high >= vocab:
            bad = int(low if low < 0 else high)
            raise ValueError(
                f"target holds the id {bad}, outside [0, {vocab}): pass only the rows that carry "
                "loss (labels of -100 are no ids)."
            )
