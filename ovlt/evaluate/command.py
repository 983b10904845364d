"""``ovlt evaluate [RECIPE] --model FOLDER``: accuracy, greedy and sampled, or public benchmarks.

Both with 95 % intervals over questions, by source and kind, with the mean response length.
Questions are spread over ranks; the engine opens the model folder without any trainer.
"""

from __future__ import annotations

from ovlt.benchmarks.jobs import ask_all, prepare
from ovlt.benchmarks.judge import Judge
from ovlt.benchmarks.measure import restyle, score_jobs
from ovlt.benchmarks.places import out_folder
from ovlt.config import EngineConfig, EvaluateConfig, ModelConfig, Recipe
from ovlt.data.digests import rows_digest
from ovlt.data.rows import RowReader
from ovlt.evaluate.accuracy import (
    measure_held_out,
    read_held_out,
    sentence,
    write_evaluation,
)
from ovlt.model.contents import model_contents
from ovlt.model.load import ModelFolder, open_folder
from ovlt.reward.pool import RewardPool
from ovlt.rollout.engine import Engine, sampling_of
from ovlt.rollout.open import check_engine, engine_dtype, open_engine
from ovlt.run.stage import StageFolder
from ovlt.system.runtime import Runtime


def evaluate(runtime: Runtime, recipe: Recipe) -> None:
    """Open the model folder in an engine, measure, write evaluation.json or benchmark results."""
    cfg = recipe.evaluate
    if cfg.benchmark.restyle:
        if runtime.is_main:
            runtime.say("\n".join(restyle(cfg.benchmark)))
        return
    if cfg.engine.tensor_parallel > 1 and runtime.world_size > 1:
        raise ValueError(
            "evaluate.engine.tensor_parallel > 1 is for one process that spreads a model over "
            "GPUs: start it with --ranks=1"
        )
    path = recipe.expand(cfg.model or recipe.model.path)
    model_folder = open_folder(path, recipe.model.chat_template_kwargs)
    if cfg.benchmark.names:
        measure_benchmarks(runtime, cfg, recipe.engine, recipe.model, model_folder)
        return
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


def measure_benchmarks(
    runtime: Runtime,
    config: EvaluateConfig,
    engine: EngineConfig,
    model: ModelConfig,
    folder: ModelFolder,
) -> None:
    """Ask the benchmarks of [evaluate.benchmark], score them, and write their results."""
    dtype = engine_dtype(engine, model, folder, runtime.device)
    name = f"{engine.backend}, {str(dtype).removeprefix('torch.')}"
    out = out_folder(config.benchmark, str(folder.path))
    jobs = prepare(config.benchmark, folder, out, config.seed, name)
    for job in jobs:
        longest = job.asking.max_prompt_tokens + job.asking.sampling.max_tokens
        check_engine(folder, engine, max_tokens=longest, samplings=[job.asking.sampling])
    if config.benchmark.judge.url and runtime.is_main:
        Judge(config.benchmark.judge, out / "judge.jsonl").check()

    def opened(max_tokens: int, max_images: int) -> Engine:
        return open_engine(
            folder,
            engine,
            runtime,
            dtype=dtype,
            max_tokens=max_tokens,
            max_images=max_images,
            solo=config.engine,
        )

    ask_all(jobs, folder, runtime, opened)
    if runtime.is_main:
        runtime.say("\n".join(score_jobs(jobs, config.benchmark)))
        runtime.say(f"results: {out}")
