"""Validation by sampling during a stage, and the one held-out measurement at its end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ovlt.config import EvaluateConfig, RolloutConfig
from ovlt.data.rows import GoodRows, RowReader
from ovlt.evaluate.accuracy import (
    evaluate_rows,
    measure_held_out,
    read_held_out,
    sentence,
    write_evaluation,
)
from ovlt.evaluate.benchmarks import (
    ValidationBenchmark,
    measure_benchmarks,
    read_validation_benchmarks,
)
from ovlt.reward.pool import RewardPool
from ovlt.rollout.engine import Engine, Sampling
from ovlt.rollout.sync import WeightSync
from ovlt.run.stage import StageFolder


@dataclass(frozen=True)
class EvaluationRows:
    """What a stage is measured on, read before it starts, so that a mistake is seen then."""

    validation: GoodRows | None
    held_out: GoodRows | None
    held_out_path: str
    benchmarks: tuple[ValidationBenchmark, ...] = ()

    @property
    def any(self) -> bool:
        return self.validation is not None or self.held_out is not None

    @property
    def max_images(self) -> int:
        """Most images of one question."""
        counts = [rows.max_images for rows in (self.validation, self.held_out) if rows]
        # An image of a benchmark may stand twice in a prompt.
        counts += [2 * len(item.images) for b in self.benchmarks for item in b.items]
        return max(counts, default=0)


def longest_of(rollout: RolloutConfig, evaluate: EvaluateConfig, rows: EvaluationRows) -> int:
    """Return the most tokens of prompt and response among all that ask the engine of a rollout.

    Validation asks as the rollout does, held-out questions as [evaluate] says.
    """
    longest = rollout.max_prompt_tokens + rollout.max_response_tokens
    return max(longest, evaluate.max_tokens) if rows.held_out is not None else longest


def read_evaluation_rows(
    reader: RowReader,
    evaluate: EvaluateConfig,
    *,
    validation: str,
    held_out: str,
    eval_every: int,
    max_prompt_tokens: int,
    suffix: str = "",
) -> EvaluationRows:
    """Read validation questions, if the stage validates, and held-out ones, if the recipe has any.

    ``validation`` and ``held_out`` are paths. ``suffix`` follows ``data.suffix`` in validation
    questions, as in the stage's rollouts. Collective; raises ValueError.
    """
    if eval_every and not validation:
        raise ValueError(
            "eval_every is set but data.validation names no file of questions: name one, or set "
            "eval_every = 0"
        )
    rows = None
    if eval_every:
        limit = reader.data.validation_questions
        rows = reader.questions(
            validation, max_tokens=max_prompt_tokens, suffix=suffix, limit=limit
        )
    last = read_held_out(reader, evaluate, held_out) if held_out else None
    benchmarks = read_validation_benchmarks(evaluate.benchmark) if eval_every else ()
    return EvaluationRows(rows, last, held_out, benchmarks)


@dataclass
class Validator:
    """Questions, an engine fed with the model's weights, and a grader.

    ``open_engine`` is called at each use, and not in a stage that measures nothing; what it returns
    is owned, and closed, by the caller.

    Attributes:
        pool: None if there are no questions.
        sampling: how the sampled answers of a validation are drawn; n is 1.
    """

    reader: RowReader
    evaluate: EvaluateConfig
    rows: EvaluationRows
    open_engine: Callable[[], tuple[Engine, WeightSync]]
    pool: RewardPool | None
    sampling: Sampling
    seed: int

    def measure(self) -> dict[str, float]:
        """Sync the weights and measure the model on validation questions. Collective."""
        assert self.pool is not None
        assert self.rows.validation is not None
        engine, sync = self.open_engine()
        with engine.awake():
            sync()
            figures = evaluate_rows(
                engine, self.reader, self.rows.validation, self.pool, self.sampling, self.seed
            )
            benchmarks = measure_benchmarks(
                self.rows.benchmarks,
                self.evaluate.benchmark,
                engine,
                self.reader,
                max_prompt_tokens=self.rows.validation.limits.max_tokens,
                max_response_tokens=self.sampling.max_tokens,
            )
        return {
            "val/greedy": figures["greedy"]["accuracy"],
            "val/sampled": figures["sampled"]["accuracy"],
            "val/tokens_mean": figures["response_tokens"]["sampled"],
            **benchmarks,
        }

    def finish(self, stage_folder: StageFolder) -> None:
        """Sync the weights and measure on held-out questions, if there are any. Collective."""
        if self.rows.held_out is None:
            return
        assert self.pool is not None
        engine, sync = self.open_engine()
        with engine.awake():
            sync()
            figures = measure_held_out(
                engine, self.reader, self.evaluate, self.rows.held_out, self.pool
            )
        if self.reader.runtime.is_main:
            write_evaluation(
                stage_folder.path,
                figures,
                questions=self.rows.held_out_path,
                model=str(stage_folder.path / "model"),
            )
        self.reader.runtime.say(f"held-out: {sentence(figures)}")
