"""Validation by sampling during a stage, and the one held-out measurement at its end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ovlt.config import EvaluateConfig
from ovlt.data.rows import GoodRows, RowReader
from ovlt.evaluate.accuracy import evaluate_rows, held_out, sentence, write_evaluation
from ovlt.reward.pool import RewardPool
from ovlt.rollout.engine import Engine, Sampling
from ovlt.rollout.sync import WeightSync
from ovlt.run.stage import StageFolder


@dataclass
class Validator:
    """Validation questions, an engine fed with the model's weights, and a grader.

    ``open_engine`` is called at the first use, so a stage that never validates never pays for an
    engine; what it returns is owned, and closed, by the caller.

    Attributes:
        sampling: of the sampled answers; n is 1.
        max_prompt_tokens: longer questions are refused.
        suffix: follows ``data.suffix`` in validation questions, as in the stage's rollouts.
    """

    reader: RowReader
    evaluate: EvaluateConfig
    validation: str  # path of the validation questions
    held_out: str  # path of the held-out questions; empty: none
    open_engine: Callable[[], tuple[Engine, WeightSync]]
    pool: RewardPool | None  # None: nothing is ever measured
    sampling: Sampling
    max_prompt_tokens: int
    seed: int
    suffix: str = ""
    _rows: GoodRows | None = field(default=None, init=False)

    def measure(self) -> dict[str, float]:
        """Greedy and sampled accuracy of the model as it is now. Collective."""
        if not self.validation:
            raise ValueError("eval_every is set but data.validation names no file of questions")
        if self._rows is None:
            self._rows = self.reader.questions(
                self.validation,
                max_tokens=self.max_prompt_tokens,
                suffix=self.suffix,
                limit=self.reader.data.validation_questions,
            )
        assert self.pool is not None
        engine, sync = self.open_engine()
        with engine.awake():
            sync()
            figures = evaluate_rows(
                engine, self.reader, self._rows, self.pool, self.sampling, self.seed
            )
        return {
            "val/greedy": figures["greedy"]["accuracy"],
            "val/sampled": figures["sampled"]["accuracy"],
            "val/tokens_mean": figures["response_tokens"]["sampled"],
        }

    def finish(self, stage: StageFolder) -> None:
        """Measure the stage's model on held-out data, if the recipe has any. Collective."""
        if not self.held_out:
            return
        assert self.pool is not None
        engine, sync = self.open_engine()
        model = str(stage.path / "model")
        with engine.awake():
            sync()
            figures = held_out(engine, self.reader, self.evaluate, self.held_out, self.pool, model)
        if self.reader.runtime.is_main:
            write_evaluation(stage.path, figures)
        self.reader.runtime.say(f"held-out: {sentence(figures)}")
