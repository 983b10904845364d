"""What SFT and GRPO share round their loops: the stage folder, validated rows, one update."""

from __future__ import annotations

import math
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ovlt.config import Recipe
from ovlt.data.sources import Limits, Rows, bad_images, load_conversations, load_questions
from ovlt.files import read_json, write_json
from ovlt.hardware import PEAK_FLOPS
from ovlt.loss import LossOutput
from ovlt.model import qwen2_5_vl as family
from ovlt.model.load import Folder
from ovlt.run_folder import claim_run_folder
from ovlt.runtime import Runtime
from ovlt.types import PackedBatch


class Stage:
    """The folder of one stage and its ``stage.json``, which the report reads."""

    def __init__(self, runtime: Runtime, recipe: Recipe, name: str, title: str, table: str):
        self.runtime, self.recipe = runtime, recipe
        self.folder = recipe.folder / name
        own = {k: recipe.resolved()[k] for k in ("run", "model", "data", table)}
        claim_run_folder(self.folder, own, recipe.run.resume)
        self.identity = own
        self._started = time.time()
        self._record = {
            "stage": table,
            "title": title,
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "status": "running",
            "command": " ".join([Path(sys.argv[0]).stem, *sys.argv[1:]]),
            "ranks": runtime.world_size,
            "order": int(time.time()),
        }
        old = self.folder / "stage.json"
        self._before = 0.0
        if old.is_file():
            earlier = read_json(old)
            self._record |= {k: earlier[k] for k in ("created", "order") if k in earlier}
            self._before = float(earlier.get("seconds", 0.0))
        self.update(steps=0)

    def update(self, **values: Any) -> None:
        """Merge values into stage.json (rank 0)."""
        self._record |= values
        self._record["seconds"] = round(self._before + time.time() - self._started, 1)
        if self.runtime.is_main:
            write_json(self.folder / "stage.json", self._record)


def limits_of(recipe: Recipe, folder: Folder, max_tokens: int) -> Limits:
    """What images and samples may be under this recipe and model. Raises ValueError."""
    low, high = folder.pixel_range
    if recipe.model.min_pixels < low or recipe.model.max_pixels > high:
        raise ValueError(
            f"model.min_pixels={recipe.model.min_pixels}, max_pixels={recipe.model.max_pixels} "
            f"leave the range {low}..{high} of the model's own preprocessor_config.json, so the "
            "engine would resize images again; stay inside that range"
        )
    return Limits(
        factor=family.merged_patch(folder.config),
        min_pixels=recipe.model.min_pixels,
        max_pixels=recipe.model.max_pixels,
        max_tokens=max_tokens,
    )


def read_rows(
    runtime: Runtime,
    recipe: Recipe,
    folder: Folder,
    path: str,
    *,
    what: str,
    max_tokens: int,
    suffix: str = "",
    limit: int = 0,
) -> tuple[Rows, Limits]:
    """Good rows of a questions ('questions') or SFT ('conversations') file, the same on all ranks.

    ``suffix`` goes after ``data.suffix``. Text is checked by every rank, pixels by each rank for
    its share. What is bad is said once.
    """
    path = recipe.expand(path)
    if not path:
        raise ValueError(
            f"no data file given for {what}; set it in the recipe or on the command line"
        )
    limits = limits_of(recipe, folder, max_tokens)
    if what == "questions":
        rows = load_questions(
            path, folder.chat, limits, suffix=recipe.data.suffix + suffix, limit=limit
        )
    else:
        rows = load_conversations(path, folder.chat, limits, limit=limit)
    mine = range(runtime.rank, len(rows.rows), runtime.world_size)
    broken = bad_images([rows.rows[i] for i in mine], limits, recipe.data.workers)
    told = runtime.gather_json([[mine[i], reason] for i, reason in broken.items()])
    bad = {int(i): str(reason) for rank in told for i, reason in rank}
    rows.rows = [row for i, row in enumerate(rows.rows) if i not in bad]
    rows.bad += Counter(bad.values())
    runtime.say(rows.report())
    return rows.require(recipe.data.max_bad_share), limits


def forward_backward(
    model: Any,
    batches: Sequence[PackedBatch],
    objective: Callable[[Any, PackedBatch], LossOutput],
    runtime: Runtime,
    by_row: bool = False,
) -> tuple[dict[str, float], dict[str, float]]:
    """Gradients of one optimizer step over this rank's micro-batches. Collective.

    The loss weights already hold the normaliser of the step, so losses add up; FSDP averages
    gradients over ranks, which the factor ``world_size`` undoes. ``by_row``: the objective is a sum
    over rows, so its gradients can be made in forward. Returns the step's sums (with "loss" among
    them) and maxima over all ranks.
    """
    totals: defaultdict[str, float] = defaultdict(float)
    maxima: dict[str, float] = {}
    for i, batch in enumerate(batches):
        model.set_requires_gradient_sync(i == len(batches) - 1)
        out = model(batch.to(runtime.device), objective, by_row)
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
    model: Any, batches: Sequence[PackedBatch], runtime: Runtime
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
