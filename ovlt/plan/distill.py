"""What a distillation takes: the engines of each phase, their memory, and seconds."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from ovlt.distill.phases import phases
from ovlt.plan.engine import GIB, Sampling, seconds
from ovlt.plan.memory import Run, engine_itemsize
from ovlt.system.files import num_rows


@dataclass(frozen=True)
class Phase:
    """One phase of ``ovlt.distill``: a model, on engines that share the questions."""

    name: str
    model: str  # its folder
    engines: int
    work: Sampling  # one full batch of an engine
    positions: int  # the model's longest context; 0: not known
    longest_prompt: int


def phases_of(run: Run) -> list[Phase]:
    """In order. Raises ValueError where a model's sizes are not known."""
    return [_phase(run, name) for name in phases(run.recipe)]


def questions(run: Run) -> int:
    """That distill.data holds and the recipe uses; 0 where nothing says."""
    cfg = run.recipe.distill
    rows = num_rows(Path(run.recipe.expand(cfg.data)))
    if rows and cfg.questions:
        return min(rows, cfg.questions)
    return rows or cfg.questions or run.assumed.questions


def sampling_seconds(run: Run, phase: Phase) -> float:
    """Of one phase: each engine's batches one after the other; 0 where the questions are unknown.

    Every batch of distill.shard questions ends with a wait for its longest answer.
    """
    mine = math.ceil(questions(run) / phase.engines)
    full, rest = divmod(mine, run.recipe.distill.shard)
    one = seconds(phase.work, run.node.gpu, run.assumed)
    last = replace(phase.work, prompts=rest)
    return full * one + (seconds(last, run.node.gpu, run.assumed) if rest else 0.0)


def _phase(run: Run, name: str) -> Phase:
    cfg, a, recipe = run.recipe.distill, run.assumed, run.recipe
    seer = cfg.captioner or recipe.model.path
    sees = name in ("captions", "recaptions") or not cfg.teacher
    model = recipe.expand(seer if sees else cfg.teacher)
    text = a.question_tokens
    text += 0 if sees and name != "recaptions" else a.caption_tokens
    if name != "answers":
        n, mean, longest = 1, a.caption_tokens, cfg.max_caption_tokens
    else:
        n, longest = cfg.k, cfg.max_response_tokens
        mean = a.teacher_response_tokens if cfg.teacher else a.response_tokens
    image = run.image_tokens if sees else 0
    config = run.others.get(model, run.config)
    spread = cfg.engine.tensor_parallel > 1
    return Phase(
        name=name,
        model=model,
        engines=1 if spread else cfg.ranks or run.node.count,
        work=Sampling(
            config=config,
            itemsize=engine_itemsize(run),
            gpus=cfg.engine.tensor_parallel,
            share=cfg.engine.gpu_memory * run.node.gpu.memory_gib * GIB,
            workspace=a.engine_workspace_gib * GIB,
            max_sequences=(cfg.engine.max_sequences or run.recipe.engine.max_sequences),
            prompts=cfg.shard,
            n=n,
            prompt_tokens=min(text + image, cfg.max_prompt_tokens),
            images=a.images_per_question if sees else 0.0,
            grid=run.grid,
            response_tokens=min(mean, longest),
            longest=longest,
        ),
        positions=config.text_config.max_positions,
        longest_prompt=cfg.max_prompt_tokens,
    )
