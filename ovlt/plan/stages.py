"""The stages of a plan, those of a cycle or a recipe's own, and their seconds."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from ovlt.config import GrpoConfig, SftConfig
from ovlt.cycle.stages import Kind, cycle_stages
from ovlt.plan.distill import phase_seconds, planned_phases, question_count
from ovlt.plan.memory import checkpoint_bytes
from ovlt.plan.run import Run, StageKind
from ovlt.plan.seconds import generation_seconds, seconds_per_step
from ovlt.system.row_count import num_rows


@dataclass(frozen=True)
class PlannedStage:
    """One stage, with the run that its own recipe makes."""

    name: str
    table: Kind
    iteration: int  # 0: outside the iterations
    run: Run
    rows: int = 0  # of SFT; 0: unknown

    @property
    def trains(self) -> StageKind | None:
        """The kind of training; None if it does not train."""
        return self.table if self.table in ("sft", "grpo") else None

    @property
    def steps(self) -> int:
        """Steps of SFT or GRPO; 0 if the number of rows is unknown."""
        if self.table == "grpo":
            return self.run.recipe.grpo.steps
        cfg = self.run.recipe.sft
        return cfg.steps or math.ceil(cfg.epochs * self.rows / cfg.batch_samples)

    @property
    def validations(self) -> int:
        """How often a training stage is validated while it runs."""
        every = self._training.eval_every
        return math.ceil(self.steps / every) if every else 0

    @property
    def checkpoints(self) -> int:
        """How many checkpoints a training stage writes."""
        every = self._training.save_every
        return math.ceil(self.steps / every) if every else 1

    @property
    def _training(self) -> SftConfig | GrpoConfig:
        return self.run.recipe.sft if self.table == "sft" else self.run.recipe.grpo


def planned_stages(run: Run) -> list[PlannedStage]:
    """Every stage, in order. Raises ValueError if the recipe of a stage is impossible."""
    recipe, stages = run.recipe, []
    if not recipe.cycle.iterations:
        if recipe.distill.data:
            stages.append(PlannedStage("distill", "distill", 0, run))
        if recipe.sft.data:
            stages.append(PlannedStage("sft", "sft", 0, run, _sft_rows(run, 0)))
        if recipe.grpo.data:
            stages.append(PlannedStage("grpo", "grpo", 0, run))
        return stages
    questions = 0  # of the iteration's distillation, whose traces SFT learns
    for step in cycle_stages(recipe):
        stage_run = replace(run, recipe=step.recipe)
        if step.table == "distill":
            questions = question_count(stage_run)
        rows = _sft_rows(stage_run, questions) if step.table == "sft" else 0
        stages.append(PlannedStage(step.name, step.table, step.iteration, stage_run, rows))
    return stages


def _sft_rows(run: Run, questions: int) -> int:
    """Rows of sft.data: assumed, else counted in the file, else those of the questions' traces."""
    in_file = num_rows(Path(run.recipe.expand(run.recipe.sft.data)))
    return run.assumed.sft_rows or in_file or round(questions * run.assumed.kept_share)


def stage_seconds(stage: PlannedStage) -> dict[str, float]:
    """Expected seconds of a stage, by what they are spent on.

    Empty if the number of its rows is unknown, or a sample exceeds its token budget.
    """
    run, assumed = stage.run, stage.run.assumed
    if stage.table == "distill":
        return _distill_seconds(run)
    if stage.trains is None:
        return {"held-out": _held_out_seconds(run), "start": assumed.start_seconds}
    if not stage.steps:
        return {}
    try:
        step = sum(seconds_per_step(run, stage.trains).values())
    except ValueError:  # a sample that is too long; ovlt.plan.fit says so
        return {}
    validation = generation_seconds(run, run.recipe.data.validation_questions, 1)
    return {
        "steps": stage.steps * step,
        "validations": stage.validations * 2 * validation,  # greedy, and sampled
        "checkpoints": stage.checkpoints * checkpoint_bytes(run) / assumed.disk_rate,
        "held-out": _held_out_seconds(run),
        "start": assumed.start_seconds,
    }


def _distill_seconds(run: Run) -> dict[str, float]:
    if not question_count(run):
        return {}
    phases = planned_phases(run)
    sampling = {phase.name: phase_seconds(run, phase) for phase in phases}
    return sampling | {"start": len(phases) * run.assumed.start_seconds}


def held_out_questions(run: Run) -> int:
    """Number of questions answered at the end of a stage; 0 if the recipe names no file of them."""
    cfg = run.recipe.evaluate
    path = cfg.data or run.recipe.data.held_out
    if not path:
        return 0
    rows = num_rows(Path(run.recipe.expand(path))) or run.assumed.held_out_questions
    return min(rows, cfg.limit) if cfg.limit else rows


def _held_out_seconds(run: Run) -> float:
    """Expected seconds of a greedy answer and ``evaluate.n`` samples to every held-out question."""
    cfg, questions = run.recipe.evaluate, held_out_questions(run)
    if not questions:
        return 0.0
    longest = cfg.max_response_tokens
    sampled = generation_seconds(run, questions, cfg.n, longest) if cfg.n else 0.0
    return generation_seconds(run, questions, 1, longest) + sampled
