"""What a distillation takes: the engines of each phase, their memory, and seconds."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from ovlt.distill.phases import phases
from ovlt.plan.engine import GIB, SamplingWork, engine_seconds
from ovlt.plan.run import Run
from ovlt.system.row_count import num_rows


@dataclass(frozen=True)
class PlannedPhase:
    """One phase of a distillation: a model, on engines that share the questions."""

    name: str
    model: str  # its folder
    engines: int
    work: SamplingWork  # one full batch of an engine
    positions: int  # longest context that the model takes; 0: unknown
    longest_prompt: int


def planned_phases(run: Run) -> list[PlannedPhase]:
    """The phases in order."""
    return [_planned_phase(run, name) for name in phases(run.recipe.distill)]


def question_count(run: Run) -> int:
    """Number of questions of distill.data that the recipe uses; 0 if unknown."""
    cfg = run.recipe.distill
    rows = num_rows(Path(run.recipe.expand(cfg.data)))
    if rows and cfg.questions:
        return min(rows, cfg.questions)
    return rows or cfg.questions or run.assumed.questions


def phase_seconds(run: Run, phase: PlannedPhase) -> float:
    """Expected seconds of a phase: each engine's batches one after the other.

    Every batch of distill.shard questions ends with a wait for its longest answer. 0 if the number
    of questions is unknown.
    """
    per_engine = math.ceil(question_count(run) / phase.engines)
    full, rest = divmod(per_engine, run.recipe.distill.shard)
    total = full * engine_seconds(phase.work, run.node.gpu, run.assumed)
    if rest:
        total += engine_seconds(replace(phase.work, prompts=rest), run.node.gpu, run.assumed)
    return total


def _planned_phase(run: Run, name: str) -> PlannedPhase:
    cfg, assumed, recipe = run.recipe.distill, run.assumed, run.recipe
    # Who works in this phase: the captioner, from images, or the teacher, from their captions.
    sees = name in ("captions", "recaptions") or not cfg.teacher
    model = recipe.expand((cfg.captioner or recipe.model.path) if sees else cfg.teacher)
    prompt = assumed.question_tokens + (run.image_tokens if sees else 0)
    if not sees or name == "recaptions":  # recaptions: the missing details, about as long
        prompt += assumed.caption_tokens
    if name != "answers":
        n, mean, longest = 1, assumed.caption_tokens, cfg.max_caption_tokens
    else:
        n, longest = cfg.k, cfg.max_response_tokens
        mean = assumed.teacher_response_tokens if cfg.teacher else assumed.response_tokens
    config = run.others.get(model, run.config)
    return PlannedPhase(
        name=name,
        model=model,
        engines=1 if cfg.engine.tensor_parallel > 1 else cfg.ranks or run.node.count,
        work=SamplingWork(
            config=config,
            itemsize=run.engine_itemsize,
            gpus=cfg.engine.tensor_parallel,
            share=cfg.engine.gpu_memory * run.node.gpu.memory_gib * GIB,
            workspace=assumed.engine_workspace_gib * GIB,
            max_sequences=cfg.engine.max_sequences or recipe.engine.max_sequences,
            prompts=cfg.shard,
            n=n,
            prompt_tokens=min(prompt, cfg.max_prompt_tokens),
            images=assumed.images_per_question if sees else 0.0,
            grid=run.grid,
            response_tokens=min(mean, longest),
            longest=longest,
        ),
        positions=config.text_config.max_positions,
        longest_prompt=cfg.max_prompt_tokens,
    )
