"""``python -m ovlt.evaluate [RECIPE] --evaluate.model=FOLDER``: accuracy, greedy and sampled.

Greedy says what the model's most likely answer is worth, sampled (temperature 1) what its
distribution is worth, which is what GRPO changes. Both with 95 % intervals over questions, by
family and kind, with the mean response length. Questions are spread over ranks; the engine opens
the model folder without any trainer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ovlt.config import Recipe
from ovlt.config.load import command_line
from ovlt.evaluate.accuracy import held_out, sentence, write_evaluation

if TYPE_CHECKING:
    from ovlt.system.runtime import Runtime


def main() -> None:
    recipe = command_line("evaluate", "Accuracy of a model folder on questions.", "evaluate")
    from ovlt.system import env

    env.apply("cpu" if recipe.run.device == "cpu" else env.machine())
    from ovlt.system.runtime import running

    with running("evaluate", recipe.run) as runtime:
        evaluate(runtime, recipe)


def evaluate(runtime: Runtime, recipe: Recipe) -> None:
    """Open the model folder in an engine, measure, write evaluation.json."""
    from ovlt.model.load import open_folder
    from ovlt.reward.pool import RewardPool
    from ovlt.rollout.open import engine_dtype, open_engine
    from ovlt.run.stage import Stage

    cfg, config = recipe.evaluate, recipe.grpo.rollout
    path = recipe.expand(cfg.model or recipe.model.path)
    folder = open_folder(path)
    stage = Stage(runtime, recipe, cfg.stage, f"Evaluation of {path}", "evaluate")
    engine = open_engine(
        folder,
        config,
        device=runtime.device,
        dtype=engine_dtype(recipe, folder, runtime.device),
        max_tokens=config.max_prompt_tokens + cfg.max_response_tokens,
        shares_device=False,
    )
    with RewardPool.of(recipe.grpo.reward, verdict=True) as pool:
        figures = held_out(engine, folder, recipe, runtime, pool, path)
    if runtime.is_main:
        write_evaluation(stage.folder, figures)
    stage.update(status="done")
    runtime.say(f"{path}: {sentence(figures)}")
    engine.close()


if __name__ == "__main__":
    main()
    from ovlt.system.runtime import leave

    leave()
