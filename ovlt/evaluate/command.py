"""``ovlt evaluate [RECIPE] --evaluate.model=FOLDER``: accuracy, greedy and sampled.

Both with 95 % intervals over questions, by source and kind, with the mean response length.
Questions are spread over ranks; the engine opens the model folder without any trainer.
"""

from __future__ import annotations

from ovlt.config import Recipe
from ovlt.data.digests import rows_digest
from ovlt.data.rows import RowReader
from ovlt.evaluate.accuracy import (
    measure_held_out,
    read_held_out,
    sentence,
    write_evaluation,
)
from ovlt.model.contents import model_contents
from ovlt.model.load import open_folder
from ovlt.reward.pool import RewardPool
from ovlt.rollout.engine import sampling_of
from ovlt.rollout.open import check_engine, engine_dtype, open_engine
from ovlt.run.stage import StageFolder
from ovlt.system.runtime import Runtime


def evaluate(runtime: Runtime, recipe: Recipe) -> None:
    """Open the model folder in an engine, measure, write evaluation.json."""
    cfg = recipe.evaluate
    if cfg.engine.tensor_parallel > 1 and runtime.world_size > 1:
        raise ValueError(
            "evaluate.engine.tensor_parallel > 1 is for one process that spreads a model over "
            "GPUs: start it with --ranks=1"
        )
    path = recipe.expand(cfg.model or recipe.model.path)
    model_folder = open_folder(path)
    title = f"Evaluation of {path}"
    stage_folder = StageFolder(runtime, recipe, "evaluate", name=cfg.stage, title=title)
    reader = RowReader(runtime, recipe.model, recipe.data, model_folder)
    questions = recipe.expand(cfg.data or recipe.data.held_out)
    # Questions and reward first: a mistake in them is seen before a minute of opening the engine.
    rows = read_held_out(reader, cfg, questions)
    check_engine(
        model_folder, recipe.engine, max_tokens=cfg.max_tokens, samplings=[sampling_of(cfg)]
    )
    contents = model_contents(model_folder, "model")
    contents["rows"] = rows_digest(questions, rows, runtime, recipe.data.workers)
    stage_folder.compare(contents)
    with RewardPool(recipe.reward, for_verdicts=True) as pool:
        engine = open_engine(
            model_folder,
            recipe.engine,
            runtime,
            dtype=engine_dtype(recipe.engine, recipe.model, model_folder, runtime.device),
            max_tokens=cfg.max_tokens,
            max_images=rows.max_images,
            max_pixels=recipe.model.max_pixels,
            solo=cfg.engine,
        )
        stage_folder.begin()
        with engine:
            figures = measure_held_out(engine, reader, cfg, rows, pool)
    if runtime.is_main:
        write_evaluation(stage_folder.path, figures, questions=questions, model=path)
    stage_folder.update(status="done")
    runtime.say(f"{path}: {sentence(figures)}")
