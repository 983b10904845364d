"""AdamW, its learning rate over the steps, and the clipping of gradients."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

if TYPE_CHECKING:
    from ovlt.config import OptimConfig


def build_adamw(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """Fused AdamW over the trainable parameters, after sharding (each keeps its DTensor).

    Decoupled weight decay is for parameters of two or more dimensions: matrices, the patch
    convolution and embeddings, as is usual. Norm gains and biases are left out: decay would draw
    the gains to 0, where their neutral value is 1.

    Raises:
        ValueError: nothing is trainable.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    if not trainable:
        raise ValueError("no parameter of the model requires a gradient: unfreeze a part of it.")
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        fused=True,
    )


def learning_rate(step: int, total_steps: int, config: OptimConfig) -> float:
    """The rate of optimizer step ``step``, counted from 0 to ``total_steps - 1``.

    Warm-up is linear, takes ``warmup_steps`` steps (else ``warmup_ratio`` of all, rounded), and
    reaches ``lr`` at the step after them; its first step is above 0, since a step at rate 0 learns
    nothing. Cosine and linear then fall to ``min_lr_ratio * lr``, which the last step has.

    Raises:
        ValueError: a negative step, or no steps.
    """
    if step < 0 or total_steps < 1:
        raise ValueError(f"step must be >= 0 and total_steps >= 1, not {step} and {total_steps}.")
    warmup = config.warmup_steps or round(config.warmup_ratio * total_steps)
    if step < warmup:
        return config.lr * (step + 1) / (warmup + 1)
    if config.schedule == "constant":
        return config.lr
    done = min(1.0, (step - warmup) / max(1, total_steps - 1 - warmup))
    left = 1 - done if config.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return config.lr * (config.min_lr_ratio + (1 - config.min_lr_ratio) * left)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every parameter group the rate ``lr``."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def clip_gradients(model: nn.Module, max_norm: float) -> Tensor:
    """Scale the gradients so that their norm over all parameters and ranks is at most ``max_norm``.

    Every rank must call it. Returns the L2 norm before clipping, a scalar on the device, not waited
    for. Where it is not finite, so are the gradients afterwards: look before the optimizer steps.
    """
    norm = nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    if isinstance(norm, DTensor):  # whose local value is one rank's part
        norm = norm.full_tensor()
    return norm
