"""Sampling-based validation during a stage, and the one held-out measurement at its end.

GRPO lends the engine it samples with. Otherwise (SFT) one is opened at the first use, so a stage
that never validates never pays for it.
"""

from __future__ import annotations

from typing import Any

from ovlt.config import Recipe
from ovlt.data.rows import read_rows
from ovlt.evaluate.accuracy import evaluate_rows, held_out, sentence, write_evaluation
from ovlt.model.load import ModelFolder
from ovlt.model.packed_model import PackedModel
from ovlt.reward.pool import RewardPool
from ovlt.rollout.engine import Engine
from ovlt.rollout.open import engine_dtype, open_engine
from ovlt.rollout.sync import WeightSync
from ovlt.run.stage import Stage
from ovlt.system.runtime import Runtime


def tolerance_of(recipe: Recipe, dtype: Any) -> float:
    """The largest probe difference that the engine's dtype explains."""
    import torch

    return recipe.grpo.rollout.max_mismatch or (1e-3 if dtype == torch.float32 else 0.5)


class Validator:
    """Validation questions, an engine fed with the model's weights, and a grader."""

    def __init__(
        self,
        runtime: Runtime,
        recipe: Recipe,
        folder: ModelFolder,
        model: PackedModel,
        stage: Stage,
        *,
        temperature: float,
        engine: Engine | None = None,
        sync: WeightSync | None = None,
        pool: RewardPool | None = None,
        suffix: str = "",
    ):
        self.runtime, self.recipe, self.folder = runtime, recipe, folder
        self.model, self.stage, self.temperature = model, stage, temperature
        self._engine, self._sync, self._pool = engine, sync, pool
        if pool is None and (recipe.data.held_out or recipe.evaluate.data):
            # now: a reward that cannot be loaded is known before the training, not after it
            self._pool = RewardPool.of(recipe.grpo.reward, verdict=True)
        self._owns_engine = engine is None
        self._suffix = suffix
        self._rows: Any = None

    def measure(self) -> dict[str, float]:
        """Greedy and sampled accuracy on the validation questions. Collective."""
        if not self.recipe.data.validation:
            raise ValueError("eval_every is set but data.validation names no file of questions")
        engine, pool = self._parts()
        rollout = self.recipe.grpo.rollout
        if self._rows is None:
            self._rows = read_rows(
                self.runtime,
                self.recipe,
                self.folder,
                self.recipe.data.validation,
                what="questions",
                max_tokens=rollout.max_prompt_tokens,
                suffix=self._suffix,
                limit=self.recipe.data.validation_questions,
            )
        rows, limits = self._rows
        figures = evaluate_rows(
            engine,
            self.folder,
            rows.rows,
            limits,
            self.runtime,
            pool,
            n=1,
            temperature=self.temperature,
            max_tokens=rollout.max_response_tokens,
            seed=self.recipe.run.seed,
            workers=self.recipe.data.workers,
        )
        if self._owns_engine:
            engine.sleep()
        return {
            "val/greedy": figures["greedy"]["accuracy"],
            "val/sampled": figures["sampled"]["accuracy"],
            "val/tokens_mean": figures["response_tokens"]["sampled"],
        }

    def finish(self, model_path: str) -> None:
        """Measure on held-out data, if the recipe has any, and close the engine. Collective."""
        if self.recipe.data.held_out or self.recipe.evaluate.data:
            engine, pool = self._parts()
            figures = held_out(engine, self.folder, self.recipe, self.runtime, pool, model_path)
            if self.runtime.is_main:
                write_evaluation(self.stage.folder, figures)
            self.runtime.say(f"held-out: {sentence(figures)}")
        if self._pool is not None:
            self._pool.close()
        if self._engine is not None:
            self._engine.close()

    def _parts(self) -> tuple[Engine, RewardPool]:
        rollout = self.recipe.grpo.rollout
        if self._engine is None or self._sync is None:
            dtype = engine_dtype(self.recipe, self.folder, self.runtime.device)
            self._engine = open_engine(
                self.folder,
                rollout,
                device=self.runtime.device,
                dtype=dtype,
            )
            self._sync = WeightSync(
                self._engine,
                self.model,
                self.folder,
                temperature=self.temperature,
                tolerance=tolerance_of(self.recipe, dtype),
            )
        if self._pool is None:
            self._pool = RewardPool.of(self.recipe.grpo.reward, verdict=True)
        if self._owns_engine:
            self._sync()
        return self._engine, self._pool
