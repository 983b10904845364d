"""``ovlt distill RECIPE``: questions with images -> reasoning traces for SFT.

captions    a vision-language model describes each image
details     with distill.refine: the teacher says what a description leaves open
recaptions  with distill.refine: the images are described again, with that in mind
answers     a text-only teacher answers each question from the description, k times; or, without a
            teacher, the captioner answers from the image itself. The answers are graded while the
            next ones are being sampled. At the end a rule chooses one correct trace of each
            question; it is filtered and written as an SFT row, the others with their reason

Each phase has processes of its own, so that the next model finds the memory free. vLLM samples,
each rank its share of the questions, and records are written as they come: if it is killed, the
same command goes on.
"""

from __future__ import annotations

import functools
from dataclasses import replace

from ovlt.config import DistillConfig, Recipe
from ovlt.config.load import recipe_from
from ovlt.config.trees import merged
from ovlt.data.rows import RowReader
from ovlt.distill.assemble import assemble
from ovlt.distill.generate import Task, generate, verify
from ovlt.distill.phases import (
    Phase,
    captioner_keywords,
    generation_settings,
    grading_settings,
    phase_and_before,
    phases,
    teacher_keywords,
)
from ovlt.distill.requests import Asker, Requests, digest_of
from ovlt.distill.shards import PhaseFolders
from ovlt.model.contents import folder_digest
from ovlt.model.load import ModelFolder, open_folder, open_text_model
from ovlt.reward.pool import RewardPool
from ovlt.rollout.engine import Sampling
from ovlt.rollout.open import check_engine, engine_dtype, open_engine
from ovlt.run.folder import lock_folder
from ovlt.system import launch
from ovlt.system.runtime import Runtime


def drive(recipe: Recipe) -> None:
    """Start the phases one after the other, each on ranks of its own."""
    config = recipe.distill
    lock_folder(recipe.folder / config.stage)
    ranks = config.ranks or (1 if config.engine.tensor_parallel > 1 else launch.default_ranks())
    if config.phase != "all":
        order = [config.phase]
    else:
        order = ["answers"] if config.answers_of else phases(config)
    for phase in order:
        tree = merged(recipe.resolved(), {"distill": {"phase": phase}})
        path = recipe.folder / "recipes" / f"{config.stage}.{phase}.json"
        launch.torchrun("ovlt.distill.rank", launch.write_recipe(recipe_from(tree), path), ranks)


def work(runtime: Runtime, recipe: Recipe) -> None:
    """Run the phase that ``distill.phase`` names, on every rank. Raises ValueError."""
    config = recipe.distill
    phase, before = phase_and_before(config)
    home = recipe.folder / config.stage
    home.mkdir(parents=True, exist_ok=True)
    path = recipe.expand(config.captioner or recipe.model.path)
    captioner = teacher = open_folder(path, *captioner_keywords(config, recipe.model))
    if config.teacher:
        teacher = open_text_model(recipe.expand(config.teacher), *teacher_keywords(config))
    check_contexts(config, captioner, teacher)
    check_engine(captioner, recipe.engine, max_tokens=0)
    samplings = [sampling_of(config, "answers")]
    check_engine(teacher, recipe.engine, max_tokens=0, samplings=samplings)
    rows = RowReader(runtime, recipe.model, recipe.data, captioner).questions(
        recipe.expand(config.data), max_tokens=config.max_prompt_tokens, limit=config.questions
    )
    folders = PhaseFolders(
        recipe.folder / config.answers_of if config.answers_of else home,
        config,
        generation_settings(
            config,
            recipe.model,
            recipe.engine,
            {
                "list of good questions": digest_of(rows),
                "contents of the captioner": folder_digest(captioner),
                "contents of the teacher": folder_digest(teacher),
            },
        ),
        grading_settings(recipe.data, recipe.reward),
    )
    if config.answers_of and not (folders.folder / "answers").is_dir():
        raise ValueError(
            f"distill.answers_of = '{config.answers_of}': no answers are in {folders.folder}"
        )
    earlier = folders.complete_records(before, len(rows)) if before else {}
    requests = Requests(
        config, rows, Asker(captioner.chat, rows.limits), Asker(teacher.chat, rows.limits), earlier
    )
    model = captioner if phase in ("captions", "recaptions") else teacher
    task = Task(
        chat=model.chat,
        prompt=functools.partial(requests.prompt, phase),
        num_questions=len(rows),
        sampling=sampling_of(config, phase),
        seed=config.seed,
        shards=folders.shards(phase),
    )
    open_for_phase = functools.partial(
        open_engine,
        model,
        recipe.engine,
        runtime,
        dtype=engine_dtype(recipe.engine, recipe.model, model, runtime.device),
        max_tokens=config.max_prompt_tokens + task.sampling.max_tokens,
        max_images=rows.max_images,
        max_pixels=recipe.model.max_pixels,
        solo=config.engine,
    )
    run = functools.partial(generate, batch_size=config.shard, workers=recipe.data.workers)
    # In every phase, so that a broken reward is seen before hours of captions.
    pool = RewardPool(recipe.reward, for_verdicts=True)
    if phase != "answers":
        pool.close()
        run(runtime, task, open_for_phase)
        return
    with pool:
        run(runtime, replace(task, grade=functools.partial(verify, pool)), open_for_phase)
    if runtime.is_main:
        assemble(config, home, rows, task.shards.read(), suffix=recipe.data.suffix)


def sampling_of(config: DistillConfig, phase: Phase) -> Sampling:
    """Return how a phase samples: k answers, or one text of any other kind."""
    if phase != "answers":
        return Sampling(1, config.caption_temperature, config.max_caption_tokens)
    return Sampling(
        config.k,
        config.temperature,
        config.max_response_tokens,
        top_p=config.top_p,
        top_k=config.top_k,
    )


def check_contexts(config: DistillConfig, captioner: ModelFolder, teacher: ModelFolder) -> None:
    """Raise ValueError, before anything is sampled, if a model is too short for its texts."""
    caption = config.max_caption_tokens, "distill.max_caption_tokens"
    response = config.max_response_tokens, "distill.max_response_tokens"
    limits = [(teacher, *response)]
    if config.teacher:
        limits = [(captioner, *caption), *[(teacher, *caption)] * config.refine, *limits]
    for model, max_tokens, key in limits:
        longest = config.max_prompt_tokens + max_tokens
        context = model.text_config.max_position_embeddings
        if longest > context:
            raise ValueError(
                f"{model.path} takes {context} tokens, but distill.max_prompt_tokens + {key} are "
                f"{longest}: lower one of them"
            )
