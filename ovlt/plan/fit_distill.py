"""Whether the engines of a distillation fit, and what makes them fit."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from ovlt.plan.distill import Phase, phases_of
from ovlt.plan.engine import GIB
from ovlt.plan.memory import Run
from ovlt.plan.stages import Part


def distill_lack(part: Part) -> str:
    """What is wrong with a distillation, in words; "" where nothing is."""
    run, cfg = part.run, part.run.recipe.distill
    gpus, has = cfg.engine.tensor_parallel, run.node.count
    if gpus > has:
        has_text = f"{run.node.name} has {has} GPUs"
        return f"{part.name}: distill.engine.tensor_parallel={gpus}, but {has_text}"
    if cfg.ranks > has:
        return f"{part.name}: distill.ranks={cfg.ranks}, but {run.node.name} has {has} GPUs"
    for phase in phases_of(run):
        if not _divides(phase, gpus):
            return (
                f"{part.name}: distill.engine.tensor_parallel={gpus} does not divide the heads of "
                f"{phase.model}"
            )
        longest = phase.longest_prompt + phase.work.longest
        if phase.positions and longest > phase.positions:
            return (
                f"{part.name}: {phase.model} takes {phase.positions} tokens, but prompt and answer "
                f"may have {longest}"
            )
        least = phase.work.least_share(phase.longest_prompt)
        if least > phase.work.share:
            share = cfg.engine.gpu_memory
            return (
                f"{part.name}: {phase.model} needs {least / GIB:.1f} GiB of each GPU with one "
                f"longest sequence of {longest} tokens, distill.engine.gpu_memory={share} of "
                f"{run.node.gpu.memory_gib:.1f} gives {phase.work.share / GIB:.1f}"
            )
    return ""


def distill_mends(part: Part) -> Iterator[list[tuple[str, Any]]]:
    """Settings to try: more GPUs for an engine, then fewer, then more memory, shorter answers."""
    run, cfg = part.run, part.run.recipe.distill
    if cfg.ranks > run.node.count:
        yield [("distill.ranks", 0)]
    found = phases_of(run)
    fitting = [
        gpus
        for gpus in range(1, run.node.count + 1)
        if all(_divides(phase, gpus) for phase in found)
    ]
    more = [gpus for gpus in fitting if gpus > cfg.engine.tensor_parallel]
    fewer = [gpus for gpus in reversed(fitting) if gpus < cfg.engine.tensor_parallel]
    for gpus in (*more, *fewer):
        ranks = [("distill.ranks", 0)] if cfg.ranks > 1 else []
        yield [("distill.engine.tensor_parallel", gpus), *ranks]
    yield [("distill.engine.gpu_memory", _least_share(run, found))]
    for phase in found:
        room = phase.positions - phase.longest_prompt
        if phase.name == "answers" and room > 0:
            yield [("distill.max_response_tokens", room)]


def _least_share(run: Run, found: list[Phase]) -> float:
    least = max(phase.work.least_share(phase.longest_prompt) for phase in found)
    return min(1.0, math.ceil(100 * least / (run.node.gpu.memory_gib * GIB)) / 100)


def _divides(phase: Phase, gpus: int) -> bool:
    """Whether vLLM can spread the model: whole heads each; key-value heads may be held twice."""
    text, vision = phase.work.config.text_config, phase.work.config.vision_config
    heads, shared = text.num_attention_heads, text.num_key_value_heads
    whole = heads % gpus == 0 and (shared % gpus == 0 or gpus % shared == 0)
    inner = (text.intermediate_size, vision.intermediate_size, vision.num_heads)
    return whole and all(size % gpus == 0 for size in inner)
