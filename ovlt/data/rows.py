"""The good rows of a data file, the same on all ranks."""

from __future__ import annotations

from collections import Counter

from ovlt.config import Recipe
from ovlt.data.sources import Limits, Rows, bad_images, load_conversations, load_questions
from ovlt.model import qwen2_5_vl as qwen
from ovlt.model.load import ModelFolder
from ovlt.system.runtime import Runtime


def limits_of(recipe: Recipe, folder: ModelFolder, max_tokens: int) -> Limits:
    """What images and samples may be under this recipe and model. Raises ValueError."""
    low, high = folder.pixel_range
    if recipe.model.min_pixels < low or recipe.model.max_pixels > high:
        raise ValueError(
            f"model.min_pixels={recipe.model.min_pixels}, max_pixels={recipe.model.max_pixels} "
            f"leave the range {low}..{high} of the model's own preprocessor_config.json, so the "
            "engine would resize images again; stay inside that range"
        )
    return Limits(
        factor=qwen.merged_patch(folder.config),
        min_pixels=recipe.model.min_pixels,
        max_pixels=recipe.model.max_pixels,
        max_tokens=max_tokens,
    )


def read_rows(
    runtime: Runtime,
    recipe: Recipe,
    folder: ModelFolder,
    path: str,
    *,
    what: str,
    max_tokens: int,
    suffix: str = "",
    limit: int = 0,
) -> tuple[Rows, Limits]:
    """Good rows of a questions ('questions') or SFT ('conversations') file, the same on all ranks.

    ``suffix`` goes after ``data.suffix``. Text is checked by every rank, pixels by each rank for
    its share. What is bad is said once.
    """
    path = recipe.expand(path)
    if not path:
        raise ValueError(
            f"no data file given for {what}; set it in the recipe or on the command line"
        )
    limits = limits_of(recipe, folder, max_tokens)
    if what == "questions":
        rows = load_questions(
            path, folder.chat, limits, suffix=recipe.data.suffix + suffix, limit=limit
        )
    else:
        rows = load_conversations(path, folder.chat, limits, limit=limit)
    mine = range(runtime.rank, len(rows.rows), runtime.world_size)
    broken = bad_images([rows.rows[i] for i in mine], limits, recipe.data.workers)
    told = runtime.gather_json([[mine[i], reason] for i, reason in broken.items()])
    bad = {int(i): str(reason) for rank in told for i, reason in rank}
    rows.rows = [row for i, row in enumerate(rows.rows) if i not in bad]
    rows.bad += Counter(bad.values())
    runtime.say(rows.report())
    return rows.require(recipe.data.max_bad_share), limits
