"""``ovlt evaluate [RECIPE] --evaluate.model=FOLDER``: accuracy, greedy and sampled.

Both with 95 % intervals over questions, by source and kind, with the mean response length.
Questions are spread over ranks; the engine opens the model folder without any trainer.
"""

from __future__ import annotations

from ovlt.config import Recipe
from ovlt.data.rows import RowReader
from ovlt.evaluate.accuracy import held_out, sentence, write_evaluation
from ovlt.model.load import open_folder
from ovlt.reward.pool import RewardPool
from ovlt.rollout.open import engine_dtype, open_engine
from ovlt.run.stage import StageFolder
from ovlt.system.runtime import Runtime


def evaluate(runtime: Runtime, recipe: Recipe) -> None:
    """Open the model folder in an engine, measure, write evaluation.json."""
    cfg = recipe.evaluate
    path = recipe.expand(cfg.model or recipe.model.path)
    folder = open_folder(path)
    title = f"Evaluation of {path}"
    stage = StageFolder(runtime, recipe, "evaluate", name=cfg.stage, title=title)
    engine = open_engine(
        folder,
        recipe.engine,
        runtime,
        dtype=engine_dtype(recipe.engine, recipe.model, folder, runtime.device),
        max_tokens=cfg.max_tokens,
        solo=cfg.engine,
    )
    reader = RowReader(runtime, recipe.model, recipe.data, folder)
    questions = recipe.expand(cfg.data or recipe.data.held_out)
    with engine, RewardPool(recipe.reward, for_verdicts=True) as pool:
        figures = held_out(engine, reader, cfg, questions, pool, path)
        if runtime.is_main:
            write_evaluation(stage.path, figures)
        stage.update(status="done")
        runtime.say(f"{path}: {sentence(figures)}")
