"""Whether the engines of a distillation fit, and what makes them fit."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from ovlt.model.sizes import divides
from ovlt.plan.distill import PlannedPhase, planned_phases
from ovlt.plan.engine import GIB
from ovlt.plan.run import Run
from ovlt.plan.stages import PlannedStage

Setting = tuple[str, object]  # a recipe key, as table.key, and its value


def check_distill(stage: PlannedStage) -> str:
    """Say what is wrong with a distillation; "" if nothing is."""
    run, cfg = stage.run, stage.run.recipe.distill
    gpus, count = cfg.engine.tensor_parallel, run.node.count
    for key, value in (("engine.tensor_parallel", gpus), ("ranks", cfg.ranks)):
        if value > count:
            return f"{stage.name}: distill.{key}={value}, but {run.node.name} has {count} GPUs"
    for phase in planned_phases(run):
        if not divides(phase.work.config, gpus):
            return (
                f"{stage.name}: distill.engine.tensor_parallel={gpus} does not divide the heads of "
                f"{phase.model}"
            )
        longest = phase.longest_prompt + phase.work.longest
        if phase.positions and longest > phase.positions:
            return (
                f"{stage.name}: {phase.model} takes {phase.positions} tokens, but prompt and "
                f"answer may have {longest}"
            )
        least = phase.work.least_share(phase.longest_prompt)
        if least > phase.work.share:
            return (
                f"{stage.name}: {phase.model} needs {least / GIB:.1f} GiB of each GPU with one "
                f"longest sequence of {longest} tokens, but distill.engine.gpu_memory="
                f"{cfg.engine.gpu_memory} of {run.node.gpu.memory_gib:.1f} GiB gives "
                f"{phase.work.share / GIB:.1f}"
            )
    return ""


def distill_fixes(stage: PlannedStage) -> Iterator[list[Setting]]:
    """Settings to try: more GPUs per engine, then fewer, then more memory, then shorter answers."""
    run, cfg = stage.run, stage.run.recipe.distill
    if cfg.ranks > run.node.count:
        yield [("distill.ranks", 0)]
    phases = planned_phases(run)
    possible = [
        gpus
        for gpus in range(1, run.node.count + 1)
        if all(divides(phase.work.config, gpus) for phase in phases)
    ]
    more = [gpus for gpus in possible if gpus > cfg.engine.tensor_parallel]
    fewer = [gpus for gpus in reversed(possible) if gpus < cfg.engine.tensor_parallel]
    ranks: list[Setting] = [("distill.ranks", 0)] if cfg.ranks > 1 else []
    for gpus in (*more, *fewer):
        yield [("distill.engine.tensor_parallel", gpus), *ranks]
    yield [("distill.engine.gpu_memory", _least_share(run, phases))]
    for phase in phases:
        room = phase.positions - phase.longest_prompt
        if phase.name == "answers" and room > 0:
            yield [("distill.max_response_tokens", room)]


def _least_share(run: Run, phases: Sequence[PlannedPhase]) -> float:
    """The least distill.engine.gpu_memory, to a hundredth, that every phase's engine can have."""
    least = max(phase.work.least_share(phase.longest_prompt) for phase in phases)
    return min(1.0, math.ceil(100 * least / (run.node.gpu.memory_gib * GIB)) / 100)
