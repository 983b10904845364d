"""What SFT and GRPO share round their loops: the stage folder, validated rows, one update."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch.distributed.fsdp import FSDPModule

from ovlt.model.batch import PackedBatch
from ovlt.model.objective import Objective
from ovlt.model.packed_model import PackedModel
from ovlt.system.hardware import PEAK_FLOPS
from ovlt.system.runtime import Runtime


def forward_backward(
    model: PackedModel,
    batches: Sequence[PackedBatch],
    objective: Objective,
    runtime: Runtime,
) -> tuple[dict[str, float], dict[str, float]]:
    """Gradients of one optimizer step over this rank's micro-batches. Collective.

    The loss weights already hold the normaliser of the step, so losses add up; FSDP averages
    gradients over ranks, which the factor ``world_size`` undoes. Returns the step's sums (with
    "loss" among them) and maxima over all ranks.
    """
    assert isinstance(model, FSDPModule), "the model must be sharded (load_sharded)"
    totals: defaultdict[str, float] = defaultdict(float)
    maxima: dict[str, float] = {}
    for i, batch in enumerate(batches):
        model.set_requires_gradient_sync(i == len(batches) - 1)
        out = model(batch.to(runtime.device), objective)
        (out.loss * runtime.world_size).backward()
        totals["loss"] += float(out.loss.detach())
        for name, value in out.sums.items():
            totals[name] += float(value)
        for name, value in out.maxima.items():
            maxima[name] = max(maxima.get(name, 0.0), float(value))
    everyone = runtime.gather_json([totals, maxima])
    sums: dict[str, float] = {k: sum(t[k] for t, _ in everyone) for k in totals}
    return sums, {k: max(m[k] for _, m in everyone) for k in maxima}


def forward_only(
    model: PackedModel, batches: Sequence[PackedBatch], runtime: Runtime
) -> list[torch.Tensor]:
    """Log-probs [R] of each micro-batch, for its ``old_logp`` or ``ref_logp``. Collective."""
    with torch.no_grad():
        return [model(batch.to(runtime.device)).logp.cpu() for batch in batches]


def check_update(
    step: int, update: int, norm: float, sums: dict[str, float], maxima: dict[str, float]
) -> None:
    """Invariants whose breach crashes nothing and only bends the curve: RuntimeError instead."""
    if not math.isfinite(norm):
        raise RuntimeError(
            f"gradient norm is {norm} at step {step}: lower the learning rate, or look for broken "
            "rows among this step's samples"
        )
    if update == 0 and maxima.get("ratio_dev", 0.0) > 0.02:
        raise RuntimeError(
            f"step {step}: before any update the policy ratio is already off 1 by "
            f"{maxima['ratio_dev']:.3g}: the old log-probs belong to other weights or other packing"
        )
    mismatch = sums.get("mismatch_kl", 0.0) / max(1.0, sums["tokens"])
    if mismatch > 0.1:
        raise RuntimeError(
            f"step {step}: KL(engine || trainer) is {mismatch:.3g} nats per token, far beyond what "
            "numerics explain: the engine samples from other weights, temperature or images"
        )


def means(sums: dict[str, float], names: Sequence[str]) -> dict[str, float]:
    tokens = max(1.0, sums["tokens"])
    return {name: sums[name] / tokens for name in names}


def mfu(flops: float, seconds: float, runtime: Runtime) -> dict[str, float]:
    """Model FLOP/s of the step, and the share of the chips' peak where that is known."""
    rate = flops / max(seconds, 1e-9)
    values = {"model_gflops_per_second": rate / 1e9}
    if runtime.device.type == "cuda":
        name = torch.cuda.get_device_name(runtime.device)
        peak = next((v for k, v in PEAK_FLOPS.items() if k in name), None)
        if peak:
            values["mfu"] = rate / (peak * runtime.world_size)
    return values
