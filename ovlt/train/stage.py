"""What SFT and GRPO share around their loops: metrics, checkpoints, the best model, the export."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ovlt.config import GrpoConfig, RunConfig, SftConfig
from ovlt.model.packed_model import PackedModel
from ovlt.model.weights import export_folder
from ovlt.run.metrics import MetricsWriter, PhaseTimer
from ovlt.run.profile import StepProfiler
from ovlt.run.stage import StageFolder
from ovlt.train import checkpoint
from ovlt.train.best import Best
from ovlt.types import Group


class TrainingStage:
    """One stage of training, from its restored state to its exported model.

    In a loop: ``profiler.at``, and at the end of a step ``validate_if_due``, ``log``,
    ``save_if_due``. Every method is collective.

    Attributes:
        first: the step to go on from; 0 for a new run.
        position: the sampler's position at that step.
        timer: phases of the current step.
    """

    def __init__(
        self,
        folder: StageFolder,
        run: RunConfig,
        config: SftConfig | GrpoConfig,
        model: PackedModel,
        optimizer: torch.optim.Optimizer,
        *,
        steps: int,
        source: Path,
    ):
        """``source`` is the path of the model that training started from."""
        self.runtime, self.config, self.folder = folder.runtime, config, folder
        runtime = folder.runtime
        self.model, self.optimizer = model, optimizer
        self.steps, self.source = steps, source
        self.keeps_best = isinstance(config, GrpoConfig) and config.keep == "best"
        self.best = Best(runtime, model, source, folder.path)
        self.first = self.position = 0
        self._checkpoints = folder.path / "checkpoints"
        saved = checkpoint.latest(self._checkpoints)
        if saved is not None and (done := int(saved.name.removeprefix("step_"))) > steps:
            raise ValueError(
                f"{folder.path} holds a run of {done} steps, and {config.stage}'s steps (or "
                f"epochs) ask for {steps}: ask for {done} or more, or give another --run.folder"
            )
        if torn := checkpoint.passed_over(self._checkpoints):
            runtime.say(f"checkpoints that are not complete are passed over: {torn}")
        folder.begin()
        if saved is not None:
            state = checkpoint.load(saved, model=model, optimizer=optimizer)
            self.first, self.position = state["step"], state["position"]
            self.best.state = state.get("best", {})
            runtime.say(f"continuing from {saved}")
        self.metrics = MetricsWriter(
            folder.path,
            tensorboard=run.tensorboard,
            wandb=run.wandb or None,
            is_main=runtime.is_main,
            total_steps=steps,
            start_step=self.first,
            description=config.stage,
        )
        self.metrics.resume(self.first)
        self.timer = PhaseTimer()
        self.profiler = StepProfiler(
            folder.path, run.profile, first=self.first, rank=runtime.rank, device=runtime.device
        )

    def validate_if_due(
        self, step: int, measure: Callable[[], dict[str, float]]
    ) -> dict[str, float]:
        """Validate if validation is due after ``step`` steps. Return the figures, or {}."""
        every = self.config.eval_every
        if not every or (step % every and step != self.steps):
            return {}
        with self.timer("validation"):
            figures = measure()
            if self.keeps_best:
                self.best.offer(step, figures["val/greedy"])
        return figures

    def log(
        self,
        step: int,
        values: dict[str, float],
        seconds: dict[str, float],
        groups: Sequence[Group] = (),
    ) -> None:
        """Write the step's line, and its rollouts if there are any."""
        self.metrics.log(step, values, seconds)
        if groups:
            self.metrics.log_rollouts(step, groups)

    def save_if_due(self, step: int, position: int) -> None:
        """Write a checkpoint if one is due after ``step`` steps.

        Save after logging: a run that is killed between the two logs this step again; logging after
        saving could lose the line. So the time of saving counts for the next step.
        """
        every = self.config.save_every
        if step != self.steps and (not every or step % every):
            return
        with self.timer("checkpoint"):
            state = {"step": step, "position": position, "best": self.best.state}
            checkpoint.save(
                self._checkpoints,
                step=step,
                model=self.model,
                optimizer=self.optimizer,
                state=state,
                recipe=self.folder.tables,
            )
            self.best.forget_others()

    def export(self) -> None:
        """Write the stage's model: the one of the last step, or the best by validation."""
        self.metrics.close()
        self.profiler.close()
        if self.best.state and self.best.state["step"] < self.steps:
            step = self.best.state["step"]
            self.runtime.say(f"the best model by validation is that of step {step:.0f}")
            self.best.restore()
        target = self.folder.path / "model"
        export_folder(self.model, self.source, target, is_main=self.runtime.is_main)
        self.runtime.barrier()
        best = {"best": self.best.state} if self.best.state else {}
        self.folder.update(steps=self.steps, **best)

    def done(self) -> None:
        """Mark the stage as done and delete the folders of best models."""
        self.folder.update(status="done")
        self.best.close()
        self.runtime.say(
            f"{self.config.stage}: {self.steps} steps, model in {self.folder.path / 'model'}"
        )
