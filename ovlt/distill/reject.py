"""``python -m ovlt.reject RECIPE``: a model's own correct answers as SFT rows (rejection sampling).

The control that GRPO must beat to be worth its trouble: answer questions n times at the rollout
temperature, keep the shortest correct answer of each (the papers' rule), and fine-tune the base
model on these. No reinforcement learning. Reads [grpo] for the questions and [demo] for sizes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ovlt.config import Recipe
from ovlt.config.load import command_line

STAGE = "rejection"


def main() -> None:
    recipe = command_line("reject", "Rejection-sample SFT rows from a model.", "demo")
    from ovlt.system import env

    env.apply("cpu" if recipe.run.device == "cpu" else env.machine())
    from ovlt.system.runtime import running

    with running("reject", recipe.run) as runtime:
        sample(runtime, recipe)


def rows_path(recipe: Recipe) -> Path:
    return recipe.folder / STAGE / "rows.parquet"


def sample(runtime: Any, recipe: Recipe) -> None:
    """Answer, grade, keep the shortest correct answer per question, write sharegpt rows."""
    from ovlt.data.loader import Loader
    from ovlt.data.rows import read_rows
    from ovlt.data.sources import to_prompt
    from ovlt.data.writers import SHAREGPT_COLUMNS, write_rows
    from ovlt.distill.assemble import sft_row
    from ovlt.model.load import open_folder
    from ovlt.reward.functions import RewardInput
    from ovlt.reward.pool import RewardPool
    from ovlt.rollout.engine import request_seeds
    from ovlt.rollout.open import engine_dtype, open_engine

    rollout, n = recipe.grpo.rollout, recipe.demo.rejection_n
    folder = open_folder(recipe.expand(recipe.grpo.start))
    rows, limits = read_rows(
        runtime, recipe, folder, recipe.grpo.data, what="questions",
        max_tokens=rollout.max_prompt_tokens, limit=recipe.demo.rejection_prompts,
    )  # fmt: skip
    mine = list(range(runtime.rank, len(rows), runtime.world_size))
    loader = Loader(lambda i: to_prompt(rows.rows[i], limits), recipe.data.workers)
    prompts = loader.get(mine)
    loader.close()
    engine = open_engine(
        folder, rollout, device=runtime.device,
        dtype=engine_dtype(recipe, folder, runtime.device),
        max_images=max(len(row.images) for row in rows.rows), shares_device=False,
    )  # fmt: skip
    answers = engine.generate(
        prompts, n=n, seeds=request_seeds(recipe.run.seed, 1 << 20, mine, n),
        temperature=rollout.temperature, max_tokens=rollout.max_response_tokens,
    )  # fmt: skip
    texts = [[folder.chat.decode(c.token_ids.tolist()) for c in group] for group in answers]
    with RewardPool.of(recipe.grpo.reward, verdict=True) as pool:
        outputs = pool.score(
            [
                RewardInput.of(text, prompt)
                for prompt, group in zip(prompts, texts, strict=True)
                for text in group
            ]
        )
    kept = []
    for k, (i, group) in enumerate(zip(mine, answers, strict=True)):
        right = [
            (len(c.token_ids), j)
            for j, c in enumerate(group)
            if c.finished and outputs[k * n + j].is_right
        ]
        if right:
            kept.append([i, texts[k][min(right)[1]]])
    everyone = sorted(a for rank in runtime.gather_json(kept) for a in rank)
    runtime.say(f"rejection sampling kept {len(everyone)} of {len(rows)} questions")
    if runtime.is_main:
        path = rows_path(recipe)
        path.parent.mkdir(parents=True, exist_ok=True)
        learned = (sft_row(rows.rows[i], text, recipe.data.suffix) for i, text in everyone)
        write_rows(learned, path, SHAREGPT_COLUMNS)
    engine.close()


if __name__ == "__main__":
    main()
    from ovlt.system.runtime import leave

    leave()
