"""``python -m ovlt.cycle.check NAME:TABLE=RECIPE ...``: what stages name, looked at first.

A process of its own, because it loads transformers; it takes seconds. Of every stage it opens the
models that are there, reads the first rows of each file, loads the rewards, and compares the
limits, so that no stage ends after hours with a mistake that could be seen before the first.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from ovlt.config import Recipe, RewardConfig
from ovlt.config.load import load_recipe
from ovlt.cycle.stages import Kind
from ovlt.data.rows import RowReader
from ovlt.data.sources import load_conversations, load_questions
from ovlt.distill.command import check_contexts
from ovlt.distill.phases import captioner_keywords, teacher_keywords
from ovlt.model.load import ModelFolder, open_folder, open_text_model
from ovlt.model.tokenizer import MODEL_KEYWORDS
from ovlt.reward.pool import RewardPool
from ovlt.rollout.engine import sampling_of
from ovlt.rollout.open import check_engine
from ovlt.system.hub import is_hub_name
from ovlt.system.row_count import num_rows
from ovlt.system.runtime import Runtime, sentence_of, start

FIRST_ROWS = 16  # that are read of each file


@functools.cache
def open_once(path: str, template: str, key: str, *, text_only: bool = False) -> ModelFolder:
    """Open a folder once with the same keywords for its chat template, which are given as JSON."""
    return (open_text_model if text_only else open_folder)(path, json.loads(template), key)


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
            check = StageCheck(runtime, recipe, cast("Kind", table))
            check.inputs()
            files |= check.files
            rewards |= dict.fromkeys(check.rewards(), recipe.reward)
        for spec, config in rewards.items():
            name = f"reward {spec}"
            changes = {"function": spec, "verdict": "", "workers": 1}
            RewardPool(config.model_copy(update=changes)).close()
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


@dataclass
class StageCheck:
    """What one stage names, as far as it is there. Methods raise ValueError."""

    runtime: Runtime
    recipe: Recipe
    table: Kind
    files: dict[str, int] = field(default_factory=dict)  # path -> rows

    @property
    def measures(self) -> bool:
        """Whether the stage asks held-out questions."""
        return self.table == "evaluate" or bool(self.recipe.data.held_out)

    def rewards(self) -> list[str]:
        """Return the rewards that the stage uses, as the recipe names them."""
        reward, table = self.recipe.reward, self.table
        verdict = reward.verdict or reward.function
        if table == "grpo":
            return [reward.function, verdict]
        validates = table == "sft" and bool(self.recipe.sft.eval_every)
        return [verdict] if table != "sft" or self.measures or validates else []

    def inputs(self) -> None:
        """Open models, compare limits, and read the first rows of files."""
        recipe, table = self.recipe, self.table
        base = recipe.expand(recipe.model.path)
        starts = {
            "distill": recipe.distill.captioner, "evaluate": recipe.evaluate.model,
            "sft": recipe.sft.start, "grpo": recipe.grpo.start,
        }  # fmt: skip
        # A model that an earlier stage will make has the sizes and the template of the base.
        model = self._opened(recipe.expand(starts[table]) or base) or self._opened(base)
        if model is None:
            return
        longest = self.limits(model)
        reader = RowReader(self.runtime, recipe.model, recipe.data, model)
        limits, suffix = reader.limits(longest), recipe.data.suffix
        for path in self.questions():
            rows = load_questions(
                path, model.chat, limits, suffix=suffix, limit=FIRST_ROWS, ignore=recipe.data.ignore
            )
            rows.require(1.0)
            self.files[path] = num_rows(Path(path))
        path = recipe.expand(recipe.sft.data)
        if table == "sft" and Path(path).is_file():
            limits = reader.limits(recipe.sft.token_budget)
            load_conversations(
                path, model.chat, limits, limit=FIRST_ROWS, ignore=recipe.data.ignore
            ).require(1.0)
            self.files[path] = num_rows(Path(path))

    def questions(self) -> list[str]:
        """Return the files of questions that the stage reads and that are there."""
        recipe, table = self.recipe, self.table
        asked = {"distill": recipe.distill.data, "grpo": recipe.grpo.data}
        every = {"sft": recipe.sft.eval_every, "grpo": recipe.grpo.eval_every}
        paths = [asked.get(table, ""), recipe.data.validation if every.get(table) else ""]
        paths += [recipe.data.held_out] if self.measures else []
        return [path for path in map(recipe.expand, paths) if path and Path(path).is_file()]

    def limits(self, model: ModelFolder) -> int:
        """Compare lengths with the model's context; return the longest prompt."""
        recipe, engine, evaluate = self.recipe, self.recipe.engine, self.recipe.evaluate
        longest, samplings = 0, [sampling_of(evaluate)] if self.measures else []
        if self.table == "distill":
            path = recipe.expand(recipe.distill.teacher)
            teacher = model
            if _is_there(path):
                keywords, key = teacher_keywords(recipe.distill)
                teacher = open_once(path, json.dumps(keywords), key, text_only=True)
            check_contexts(recipe.distill, model, teacher)
            check_engine(teacher, engine, max_tokens=0)
            return recipe.distill.max_prompt_tokens
        if self.table == "grpo":
            rollout = recipe.grpo.rollout
            self._opened(recipe.expand(recipe.grpo.reference))
            longest = rollout.max_prompt_tokens + rollout.max_response_tokens
            samplings.append(sampling_of(rollout))
        if self.measures:
            longest = max(longest, evaluate.max_tokens)
        check_engine(model, engine, max_tokens=longest, samplings=samplings)
        return max(evaluate.max_prompt_tokens, recipe.grpo.rollout.max_prompt_tokens)

    def _opened(self, path: str) -> ModelFolder | None:
        """Open a model folder, or the Hub's; None if none is named or it has yet to be made."""
        keywords, key = self.recipe.model.chat_template_kwargs, MODEL_KEYWORDS
        if self.table == "distill":
            keywords, key = captioner_keywords(self.recipe.distill, self.recipe.model)
        return open_once(path, json.dumps(keywords), key) if _is_there(path) else None


def _is_there(path: str) -> bool:
    """Return whether a model folder, or the Hub's, is named and no stage has yet to make it."""
    return bool(path) and (is_hub_name(path) or Path(path).is_dir())


if __name__ == "__main__":
    main(sys.argv[1:])
