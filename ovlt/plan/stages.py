"""The stages that ``ovlt.plan`` plans: those of the cycle, or a recipe's own; and their seconds."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from ovlt.cycle.stages import Kind, steps
from ovlt.plan.distill import phases_of, questions, sampling_seconds
from ovlt.plan.memory import Run, Stage, checkpoint_bytes
from ovlt.plan.seconds import generation_seconds, step_seconds
from ovlt.system.files import num_rows


@dataclass(frozen=True)
class Part:
    """One stage, with the run that its own recipe makes."""

    name: str
    table: Kind
    iteration: int  # 0: of no iteration
    run: Run
    rows: int = 0  # of SFT; 0: unknown

    @property
    def trains(self) -> Stage | None:
        """The kind of training, if it is one."""
        return self.table if self.table in ("sft", "grpo") else None

    @property
    def steps(self) -> int:
        """Of SFT or GRPO; 0 where the rows are unknown."""
        if self.table == "grpo":
            return self.run.recipe.grpo.steps
        cfg = self.run.recipe.sft
        return cfg.steps or math.ceil(cfg.epochs * self.rows / cfg.batch_samples)


def parts(run: Run) -> list[Part]:
    """Every stage, in order. Raises ValueError where a stage's recipe is impossible."""
    recipe, found = run.recipe, []
    if not recipe.cycle.iterations:
        for table in ("distill", "sft", "grpo"):
            if getattr(recipe, table).data:
                rows = _sft_rows(run, 0) if table == "sft" else 0
                found.append(Part(table, table, 0, run, rows))
        return found
    asked = 0  # questions of the iteration's distillation
    for step in steps(recipe):
        own = replace(run, recipe=step.recipe)
        if step.table == "distill":
            asked = questions(own)
        rows = _sft_rows(own, asked) if step.table == "sft" else 0
        found.append(Part(step.name, step.table, step.iteration, own, rows))
    return found


def _sft_rows(run: Run, asked: int) -> int:
    there = num_rows(Path(run.recipe.expand(run.recipe.sft.data)))
    return run.assumed.sft_rows or there or round(asked * run.assumed.kept_share)


def part_seconds(part: Part) -> dict[str, float]:
    """Seconds of a stage by what they are spent on; empty where its number of rows is unknown, or a
    sample exceeds its budget."""
    run, a, table = part.run, part.run.assumed, part.trains
    if part.table == "distill":
        if not questions(run):
            return {}
        planned = phases_of(run)
        return {phase.name: sampling_seconds(run, phase) for phase in planned} | {
            "start": len(planned) * a.start_seconds
        }
    if table is None:
        return {"held-out": _held_out(run), "start": a.start_seconds}
    try:
        step = sum(step_seconds(run, table).values())
    except ValueError:
        return {}
    if not part.steps:
        return {}
    validation = generation_seconds(run, run.recipe.data.validation_questions, 1)
    return {
        "steps": part.steps * step,
        "validations": looks(part) * 2 * validation,  # greedy, and sampled
        "checkpoints": saves(part) * checkpoint_bytes(run) / a.disk_rate,
        "held-out": _held_out(run),
        "start": a.start_seconds,
    }


def looks(part: Part) -> int:
    """Validations during the stage."""
    every = getattr(part.run.recipe, part.table).eval_every
    return math.ceil(part.steps / every) if every else 0


def saves(part: Part) -> int:
    every = getattr(part.run.recipe, part.table).save_every
    return math.ceil(part.steps / every) if every else 1


def held_out_questions(run: Run) -> int:
    """Measured when a stage has ended; 0: the recipe names no file of them."""
    cfg = run.recipe.evaluate
    path = cfg.data or run.recipe.data.held_out
    if not path:
        return 0
    rows = num_rows(Path(run.recipe.expand(path))) or run.assumed.held_out_questions
    return min(rows, cfg.limit) if cfg.limit else rows


def _held_out(run: Run) -> float:
    """Seconds of a greedy answer and ``evaluate.n`` samples."""
    cfg, asked = run.recipe.evaluate, held_out_questions(run)
    if not asked:
        return 0.0
    most = cfg.max_response_tokens
    sampled = generation_seconds(run, asked, cfg.n, most) if cfg.n else 0.0
    return generation_seconds(run, asked, 1, most) + sampled
