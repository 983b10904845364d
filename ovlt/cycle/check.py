"""``python -m ovlt.cycle.check NAME:TABLE=RECIPE ...``: what stages name, looked at first.

A process of its own, because it loads transformers; it takes seconds. Of every stage it opens the
models that are there, reads the first rows of each file, loads the rewards, and compares the
limits, so that no stage ends after hours with a mistake that could be seen before the first.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ovlt.config import Recipe, RewardConfig
from ovlt.config.load import load_recipe
from ovlt.cycle.stages import Kind
from ovlt.data.rows import RowReader
from ovlt.data.sources import load_conversations, load_questions
from ovlt.distill.command import check_contexts
from ovlt.model.load import ModelFolder, open_folder, open_text_model
from ovlt.reward.pool import RewardPool
from ovlt.rollout.engine import sampling_of
from ovlt.rollout.open import check_engine
from ovlt.system.files import num_rows
from ovlt.system.hub import is_hub_name
from ovlt.system.runtime import Runtime, sentence_of, start

FIRST_ROWS = 16  # that are read of each file

open_once = functools.cache(open_folder)
open_teacher_once = functools.cache(open_text_model)


def main(arguments: Sequence[str]) -> None:
    """Check the stages whose ``NAME:TABLE=RECIPE`` are given; a mistake ends with status 1."""
    began, runtime, name = time.perf_counter(), None, ""
    rewards: dict[str, RewardConfig] = {}
    files: dict[str, int] = {}
    try:
        for argument in arguments:
            head, _, path = argument.partition("=")
            name, _, table = head.rpartition(":")
            recipe = load_recipe(path)
            runtime = runtime or start(recipe.run)
            files |= check_stage(runtime, recipe, table)  # pyright: ignore[reportArgumentType]
            rewards |= dict.fromkeys(specs(recipe, table), recipe.reward)
        for key, reward in rewards.items():
            name = f"reward {key}"
            RewardPool(
                reward.model_copy(update={"function": key, "verdict": "", "workers": 1})
            ).close()
    except Exception as error:
        if not (text := sentence_of(error)):
            raise
        raise SystemExit(f"ovlt cycle: {name}: {text}") from None
    finally:
        if runtime is not None:
            runtime.close()
    counted = ", ".join(f"{path} ({rows or 'some'} rows)" for path, rows in files.items())
    print(
        f"checked {len(arguments)} stages in {time.perf_counter() - began:.0f} s: models, rewards, "
        f"limits; {counted or 'no files yet'}",
        flush=True,
    )


def specs(recipe: Recipe, table: str) -> list[str]:
    """Return the rewards that a stage uses, as the recipe names them."""
    verdict = recipe.reward.verdict or recipe.reward.function
    if table == "grpo":
        return [recipe.reward.function, verdict]
    measures = recipe.data.held_out or recipe.data.validation
    return [verdict] if table != "sft" or measures else []


def check_stage(runtime: Runtime, recipe: Recipe, table: Kind) -> dict[str, int]:
    """Check one stage, as far as its inputs are there. Return the rows of the files it reads.

    Raises ValueError.
    """
    section = getattr(recipe, table)
    key = {"distill": "captioner", "evaluate": "model"}.get(table, "start")
    base = recipe.expand(recipe.model.path)
    path = recipe.expand(getattr(section, key)) or base
    # A model that an earlier stage will make has the sizes and the template of the base.
    model = _opened(path) or _opened(base)
    if model is None:
        return {}
    longest = _check_limits(recipe, table, model)
    reader = RowReader(runtime, recipe.model, recipe.data, model)
    files: dict[str, int] = {}
    questions = [recipe.data.held_out]
    if table == "sft":
        file, limits = recipe.expand(section.data), reader.limits(section.token_budget)
        if Path(file).is_file():
            load_conversations(file, model.chat, limits, limit=FIRST_ROWS).require(1.0)
            files[file] = num_rows(Path(file))
    else:
        questions.append(section.data)
    if table in ("sft", "grpo") and section.eval_every:
        questions.append(recipe.data.validation)
    for file in map(recipe.expand, filter(None, questions)):
        if Path(file).is_file():
            limits = reader.limits(longest)
            suffix = recipe.data.suffix
            rows = load_questions(file, model.chat, limits, suffix=suffix, limit=FIRST_ROWS)
            rows.require(1.0)
            files[file] = num_rows(Path(file))
    return files


def _check_limits(recipe: Recipe, table: Kind, model: ModelFolder) -> int:
    """Compare lengths with the model's context; return the longest prompt. Raises ValueError."""
    evaluate, engine = recipe.evaluate, recipe.engine
    measures = bool(recipe.data.held_out)
    if table == "distill":
        teacher = recipe.expand(recipe.distill.teacher)
        there = is_hub_name(teacher) or Path(teacher).is_dir()
        asked = open_teacher_once(teacher) if teacher and there else model
        check_contexts(recipe.distill, model, asked)
        check_engine(asked, engine, max_tokens=0)
        return recipe.distill.max_prompt_tokens
    if table == "grpo":
        rollout = recipe.grpo.rollout
        if reference := recipe.expand(recipe.grpo.reference):
            _opened(reference)
        longest = rollout.max_prompt_tokens + rollout.max_response_tokens
        longest = max(longest, evaluate.max_tokens if measures else 0)
        check_engine(model, engine, max_tokens=longest, samplings=[sampling_of(rollout)])
        return max(rollout.max_prompt_tokens, evaluate.max_prompt_tokens)
    if measures or table == "evaluate":
        samplings = [sampling_of(evaluate)]
        check_engine(model, engine, max_tokens=evaluate.max_tokens, samplings=samplings)
    return evaluate.max_prompt_tokens


def _opened(path: str) -> ModelFolder | None:
    """Open a model folder, or the Hub's; None if an earlier stage has yet to make it."""
    there = is_hub_name(path) or not path or Path(path).is_dir()
    return open_once(path) if there else None


if __name__ == "__main__":
    main(sys.argv[1:])
