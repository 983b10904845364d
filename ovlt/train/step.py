"""One optimizer step: gradients over packed micro-batches, the invariants, the update."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from ovlt.config import OptimConfig
from ovlt.model.batch import PackedBatch
from ovlt.model.objective import LossOutput, Objective
from ovlt.model.packed_model import PackedModel
from ovlt.model.weights import to_masters
from ovlt.system.collectives import gather_json
from ovlt.system.hardware import PEAK_FLOPS
from ovlt.system.runtime import Runtime
from ovlt.train.balance import BatchPlan
from ovlt.train.feed import feed
from ovlt.train.optim import clip_gradients, learning_rate, set_lr

# Before the first update of a rollout the policy ratio is 1 up to rounding: bfloat16 recomputes a
# log-prob to within 0.01, so 0.02 means other weights or another packing.
MAX_FIRST_RATIO_DEV = 0.02
# KL(engine || trainer), nats per token. bfloat16 engines stay below 0.01; beyond 0.1 the engine
# samples from something else.
MAX_MISMATCH_KL = 0.1
FORWARD_AND_BACKWARD = 3  # FLOPs of forward and backward, in forwards: backward costs two


@dataclass(frozen=True)
class Update:
    """Totals and maxima of one optimizer step over all ranks.

    ``sums`` are totals over tokens, with "tokens" and "loss" among them; ``maxima`` the largest
    values. ``policy_loss`` and ``cross_entropy`` say which names there are.
    """

    sums: dict[str, float]
    maxima: dict[str, float]
    grad_norm: float  # before clipping
    lr: float


def optimizer_step(
    model: PackedModel,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[PackedBatch],
    objective: Objective,
    config: OptimConfig,
    runtime: Runtime,
    *,
    number: int,
    total: int,
    first: bool = False,
    reduce_each: bool = False,
) -> Update:
    """Run update ``number`` of ``total`` on this rank's micro-batches. Collective.

    ``first``: it is the first after a rollout, so the policy ratio must be 1. ``reduce_each``: see
    ``forward_backward``. Raises RuntimeError if an invariant is broken, before the weights change.
    """
    totals = forward_backward(model, batches, objective, runtime, reduce_each=reduce_each)
    # The one wait for the device in an update, for all numbers together.
    sums, maxima, norm = totals.read(clip_gradients(model, config.max_grad_norm))
    check_update(number, norm, sums, maxima, first=first)  # before a bad gradient does harm
    lr = learning_rate(number, total, config)
    set_lr(optimizer, lr)
    optimizer.step()
    optimizer.zero_grad()
    return Update(sums, maxima, norm, lr)


def forward_backward(
    model: PackedModel,
    batches: Sequence[PackedBatch],
    objective: Objective,
    runtime: Runtime,
    *,
    reduce_each: bool = False,
) -> Totals:
    """Accumulate the gradients of one optimizer step over this rank's micro-batches. Collective.

    The loss weights already hold the normaliser of the step, so losses add up; FSDP averages
    gradients over ranks, which the factor ``world_size`` undoes. ``reduce_each``: over ranks after
    every micro-batch, so that no rank holds whole gradients. Nothing waits for the device, nor do
    the numbers that it returns before they are read.
    """
    assert isinstance(model, FSDPModule), "the model must be sharded (load_sharded)"
    outputs: list[LossOutput] = []
    with feed(model, batches, runtime.device) as placed:
        for i, batch in enumerate(placed):
            # Gradients are reduced over ranks with the last micro-batch, or with each one.
            model.set_requires_gradient_sync(reduce_each or i == len(batches) - 1)
            out = model(batch, objective)
            # FSDP averages over ranks; the loss is already a share of the whole step's mean.
            (out.loss * runtime.world_size).backward()
            outputs.append(replace(out, loss=out.loss.detach()))
    return Totals(outputs)


class Totals:
    """Numbers of this rank's micro-batches, for the log and the checks, not yet read."""

    def __init__(self, outputs: Sequence[LossOutput]) -> None:
        first = outputs[0]
        self._names, self._peaks = ["loss", *first.sums], list(first.maxima)
        table = torch.stack(  # float64 [micro-batches, names and peaks]
            [torch.stack([o.loss.double(), *o.sums.values(), *o.maxima.values()]) for o in outputs]
        )
        summed, largest = table.split([len(self._names), len(self._peaks)], dim=1)
        self._numbers = torch.cat([summed.sum(0), largest.amax(0)])

    def read(self, norm: Tensor) -> tuple[dict[str, float], dict[str, float], float]:
        """Return sums ("loss" among them) and maxima over all ranks, and ``norm``.

        ``norm`` is a scalar on the same device. Waits for the device once. Collective.
        """
        *numbers, norm_value = torch.cat([self._numbers, norm.double()[None]]).tolist()
        everyone = gather_json(numbers)
        sums = [sum(values) for values in zip(*everyone, strict=True)]
        maxima = [max(values) for values in zip(*everyone, strict=True)]
        count = len(self._names)
        return (
            dict(zip(self._names, sums[:count], strict=True)),
            dict(zip(self._peaks, maxima[count:], strict=True)),
            norm_value,
        )


def forward_only(
    model: PackedModel,
    batches: Sequence[PackedBatch],
    runtime: Runtime,
    *,
    keep_features: bool = False,
) -> list[Tensor]:
    """Log-probs [R] of each micro-batch, for its ``old_logp`` or ``ref_logp``. Collective.

    They stay on the device. The weights do not stay gathered: nothing follows that would use them.
    ``keep_features``: the tower's output stays in the micro-batches, for later passes of models
    with the same tower, and their pixels are let go. ``batches`` must then hold on to them.
    """
    logps: list[Tensor] = []
    with torch.no_grad(), feed(model, batches, runtime.device) as placed:
        for i, batch in enumerate(placed):
            asking = replace(batch, wants_features=keep_features)
            logps.append(model(asking).logp)
            if keep_features:
                batches[i].keep(asking.features)
    to_masters(model)
    return logps


def check_update(
    number: int,
    norm: float,
    sums: dict[str, float],
    maxima: dict[str, float],
    *,
    first: bool = False,
) -> None:
    """Raise RuntimeError if this update breaks an invariant that nothing else would notice."""
    if not math.isfinite(norm):
        raise RuntimeError(
            f"gradient norm is {norm} in update {number}: lower the learning rate, or look for "
            "broken rows among this step's samples"
        )
    deviation = maxima.get("ratio_dev", 0.0)
    if first and deviation > MAX_FIRST_RATIO_DEV:
        raise RuntimeError(
            f"update {number}: before any update the policy ratio is already off 1 by "
            f"{deviation:.3g}: the old log-probs belong to other weights or other packing"
        )
    mismatch = sums.get("mismatch_kl", 0.0) / max(1.0, sums["tokens"])
    if mismatch > MAX_MISMATCH_KL:
        raise RuntimeError(
            f"update {number}: KL(engine || trainer) is {mismatch:.3g} nats per token, far beyond "
            "what numerics explain: the engine samples from other weights, temperature or images"
        )


def token_mean(updates: Sequence[Update], *names: str) -> float:
    """Mean per token of the sum of these ``sums``, over all updates."""
    tokens = sum(update.sums["tokens"] for update in updates)
    return sum(update.sums[name] for update in updates for name in names) / max(1.0, tokens)


def mfu(
    plans: Sequence[BatchPlan], seconds: float, runtime: Runtime, *, frozen_tower: bool
) -> dict[str, float]:
    """Model FLOP/s of forward and backward; and their share of the chips' peak, if it is known.

    What is computed counts: a shared prompt once, the last MLP and the head for what carries loss,
    no backward of a frozen tower; activations that are computed again do not.
    """
    # Of a plan's FLOPs, those of one forward, the backward costs twice as much again.
    tower = 1 if frozen_tower else FORWARD_AND_BACKWARD
    flops = sum(FORWARD_AND_BACKWARD * plan.text + tower * plan.tower for plan in plans)
    rate = flops / max(seconds, 1e-9)
    values = {"model_gflops_per_second": rate / 1e9}
    if runtime.device.type == "cuda":
        name = torch.cuda.get_device_name(runtime.device)
        peak = next((v for k, v in PEAK_FLOPS.items() if k in name), None)
        if peak:
            values["mfu"] = rate / (peak * runtime.world_size)
    return values
