"""Log-prob of the target, entropy and log-sum-exp of each row of a logits matrix; their gradient.

With z = logits / temperature::

    lse = log sum_v exp z_v      logp = z[target] - lse      entropy = lse - sum_v softmax(z)_v z_v

in nats. A token that is masked (left out of the distribution) has the logit ``-inf``. With the
upstream gradients g of logp and h of entropy, and p = softmax(z)::

    dL/dlogits_v = (g (1[v = target] - p_v) - h p_v (log p_v + entropy)) / temperature

Two kernels for GPUs compute the same: one in Triton (row_logp_triton.py), and one in CUDA
(csrc/row_logp.cu) if that was built. ``OVLT_ROW_KERNEL=triton`` or ``cuda`` chooses, and is read
once. The default stays Triton until ``bench/test_logp.py`` has shown on a GPU that the other is
faster: the CUDA kernel has not been timed yet.
"""

from __future__ import annotations

import functools
import os

import torch
from torch import Tensor

from ovlt_kernels.extension import HAS_CUDA, HAS_EXTENSION
from ovlt_kernels.waits import can_read

if HAS_EXTENSION:

    @torch.library.register_fake("ovlt::row_logp")
    def _row_logp_fake(
        logits: Tensor, target: Tensor, inv_temperature: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        rows = logits.shape[0]
        logp, entropy, lse = logits.new_empty(3, rows, dtype=torch.float32)
        return logp.clone(), entropy.clone(), lse.clone()

    @torch.library.register_fake("ovlt::row_logp_grad_")
    def _row_logp_grad_fake(
        logits: Tensor, target: Tensor, stats: Tensor, upstream: Tensor, inv_temperature: Tensor
    ) -> None:
        return None


def row_logp(
    logits: Tensor, target: Tensor, temperature: float | Tensor = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the three statistics of each row, float32 (float64 for float64 logits).

    Args:
        logits: ``[R, V]``, any floating dtype and device; computed in at least float32.
        target: int64 ``[R]``, on the device of the logits, each in ``[0, V)``. The range is checked
            on a CPU only: on a GPU a check would wait for the device, which reports it anyway.
        temperature: > 0; the logits are divided by it. A number, or one for each row: a floating
            tensor ``[R]``, through which no gradient flows; its values are checked on a CPU only.

    Returns:
        ``(logp [R], entropy [R], lse [R])``, in nats. float32 and bfloat16 logits on a CPU that
        need no gradient go through the C++ operator, those on a GPU (float16 too) through a kernel
        in Triton or CUDA: each reads them once and makes no ``[R, V]`` temporary. All others go
        through :func:`row_logp_reference`, which autograd differentiates.

    Raises:
        ValueError: for shapes, dtypes, a temperature or target ids that do not fit; on a GPU, for
            an ``OVLT_ROW_KERNEL`` that does not exist or was not built.
    """
    temperature = per_row(temperature, logits)
    _check(logits, target, temperature)
    wants_grad = logits.requires_grad and torch.is_grad_enabled()
    if not wants_grad and _in_triton(logits):
        from ovlt_kernels.row_logp_triton import row_stats  # Triton is optional

        return row_stats(logits.detach().contiguous(), target.contiguous(), _inverse(temperature))
    if not wants_grad and _in_extension(logits):
        return torch.ops.ovlt.row_logp(
            logits.detach().contiguous(), target.contiguous(), _inverse(temperature)
        )
    return row_logp_reference(logits.to(wide_dtype(logits.dtype)), target, temperature)


def row_logp_grad_(
    logits: Tensor,
    target: Tensor,
    stats: tuple[Tensor, Tensor, Tensor],
    grad_logp: Tensor,
    grad_entropy: Tensor | None = None,
    temperature: float | Tensor = 1.0,
) -> Tensor:
    """Overwrite ``logits`` with the gradient with respect to them.

    Args:
        logits: ``[R, V]``, contiguous; what :func:`row_logp` was given.
        target: int64 ``[R]``.
        stats: what :func:`row_logp` returned for these rows.
        grad_logp: ``[R]``, upstream gradient g of the log-probs.
        grad_entropy: ``[R]``, upstream gradient h of the entropies; None: zero. A row for which
            both are 0 becomes 0, even if it holds NaN.
        temperature: as in :func:`row_logp`.

    Returns:
        ``logits``, in its own dtype, rounded once from float32 (float64 logits: from float64).

    Raises:
        ValueError: for shapes, dtypes, a temperature or target ids that do not fit, and for logits
            that are not contiguous.
    """
    temperature = per_row(temperature, logits)
    _check(logits, target, temperature)
    if not logits.is_contiguous():
        raise ValueError("logits are overwritten in place: pass a contiguous matrix.")
    per_row_values = [*stats, grad_logp] + ([] if grad_entropy is None else [grad_entropy])
    if any(value.shape != target.shape for value in per_row_values):
        shapes = [tuple(value.shape) for value in per_row_values]
        raise ValueError(f"stats and gradients must be [{len(target)}] each, not {shapes}.")
    if grad_entropy is None:
        grad_entropy = torch.zeros_like(grad_logp)
    if _in_triton(logits):
        from ovlt_kernels.row_logp_triton import row_grad_  # Triton is optional

        inverse, target = _inverse(temperature), target.contiguous()
        return row_grad_(logits.detach(), target, stats, grad_logp, grad_entropy, inverse)
    if _in_extension(logits):
        torch.ops.ovlt.row_logp_grad_(
            logits.detach(),
            target.contiguous(),
            torch.stack(stats).float(),
            torch.stack((grad_logp, grad_entropy)).float(),
            _inverse(temperature),
        )
        return logits
    logp, entropy, lse = (value[:, None] for value in stats)  # [R, 1] each
    g, h = grad_logp[:, None], grad_entropy[:, None]  # [R, 1] each
    wide = wide_dtype(logits.dtype)
    temperature = temperature[:, None].to(wide)  # [R, 1]
    log_p = logits.to(wide) / temperature - lse  # [R, V]
    p = log_p.exp()  # [R, V]
    # The floor keeps 0 * -inf of masked tokens from being NaN; exp(-1e4) is 0 anyway.
    dz = log_p.clamp_(min=-1e4).add_(entropy).mul_(h).add_(g).mul_(p).neg_()
    # The target's column from its log-prob: p - 1 would cancel as p goes to 1.
    at_target = g * -torch.expm1(logp) - h * logp.exp() * (logp + entropy)
    dz = dz.scatter_(1, target[:, None], at_target).div_(temperature)
    return logits.copy_(dz.masked_fill_((g == 0) & (h == 0), 0.0))


def row_logp_reference(
    logits: Tensor, target: Tensor, temperature: float | Tensor = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """The plain statement of :func:`row_logp`, in the dtype of the logits, without checks."""
    z = logits / per_row(temperature, logits)[:, None].to(logits.dtype)
    lse = torch.logsumexp(z, dim=-1)
    log_softmax = torch.log_softmax(z, dim=-1)
    logp = log_softmax.gather(-1, target[:, None])[:, 0]
    # 0 * -inf is NaN, but a masked token adds nothing to the entropy.
    finite = log_softmax.masked_fill(log_softmax == -torch.inf, 0.0)
    entropy = -(log_softmax.exp() * finite).sum(dim=-1)
    return logp, entropy, lse


def per_row(temperature: float | Tensor, like: Tensor) -> Tensor:
    """Return one temperature for each row of ``like``, float64 ``[R]``.

    float64, so that 1 / T is rounded to float32 once.

    Raises:
        ValueError: for a tensor that is not ``[R]``, not floating, on another device, or one that
            requires a gradient.
    """
    if not isinstance(temperature, Tensor):
        return like.new_full((1,), temperature, dtype=torch.float64).expand(len(like))
    if temperature.shape != like.shape[:1] or not temperature.is_floating_point():
        raise ValueError(
            f"temperature must be a number, or a floating tensor of one for each of the "
            f"{len(like)} rows, not {temperature.dtype} {tuple(temperature.shape)}."
        )
    if temperature.device != like.device:
        raise ValueError(f"temperature is on {temperature.device}, the rows are on {like.device}.")
    if temperature.requires_grad:
        raise ValueError("no gradient flows through temperature: pass temperature.detach().")
    return temperature.double()


def _inverse(temperature: Tensor) -> Tensor:
    return temperature.reciprocal().float()  # of an expanded number too, one for each row


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that logits of ``dtype`` are computed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@functools.cache
def gpu_kernel() -> str:
    """Return which kernel serves logits on a GPU, "triton" or "cuda", by ``OVLT_ROW_KERNEL``."""
    name = os.environ.get("OVLT_ROW_KERNEL", "triton")
    if name not in ("triton", "cuda"):
        raise ValueError(f"OVLT_ROW_KERNEL must be triton or cuda, not '{name}'.")
    if name == "cuda" and not HAS_CUDA:
        raise ValueError(
            "OVLT_ROW_KERNEL=cuda, but the CUDA kernels are not built: with an nvcc >= 12 on PATH "
            "run `OVLT_CUDA=ON OVLT_REQUIRE_EXT=1 python setup.py build_native`, or leave "
            "OVLT_ROW_KERNEL unset to use Triton."
        )
    return name


def _in_triton(logits: Tensor) -> bool:
    fits = logits.is_cuda and logits.dtype in (torch.float32, torch.bfloat16, torch.float16)
    return fits and gpu_kernel() == "triton"


def _in_extension(logits: Tensor) -> bool:
    if logits.is_cuda:
        fits = logits.dtype in (torch.float32, torch.bfloat16, torch.float16)
        return fits and gpu_kernel() == "cuda"
    fits = logits.dtype in (torch.float32, torch.bfloat16)
    return fits and logits.device.type == "cpu" and HAS_EXTENSION


def _check(logits: Tensor, target: Tensor, temperature: Tensor) -> None:
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
    # Not while tracing: reading a value there would break the graph.
    if can_read(target) and rows and not torch.compiler.is_compiling():
        low, high = torch.aminmax(temperature)
        if not (low > 0 and high < torch.inf):
            value = float(high if low > 0 else low)
            raise ValueError(
                f"temperature must be finite and > 0, not {value}: greedy has no log-prob."
            )
        low, high = torch.aminmax(target)
        if low < 0 or high >= vocab:
            bad = int(low if low < 0 else high)
            raise ValueError(
                f"target holds the id {bad}, outside [0, {vocab}): pass only the rows that carry "
                "loss (labels of -100 are no ids)."
            )
