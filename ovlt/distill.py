"""``python -m ovlt.distill RECIPE``: questions with images -> reasoning traces for SFT.

captions    a vision-language model describes each image, once
answers     a text-only teacher answers each question from the caption, k times; or, without a
            teacher, the captioner answers from the image itself. They are graded while the next
            ones are being sampled; at the end one correct trace of each question is kept by rule,
            filtered, and written as an SFT row, and what was dropped with its reason

Each phase is a torchrun of its own, so that the next model finds the memory free. All generation is
vLLM's, sharded over ranks and written as it goes: killed at any moment, the same command goes on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ovlt import smoke
from ovlt.config import Recipe
from ovlt.recipe import command_line, recipe_from

if TYPE_CHECKING:
    from ovlt.distillation.shards import Record
    from ovlt.runtime import Runtime
    from ovlt.types import Prompt


def main() -> None:
    recipe = command_line("distill", "Distil reasoning traces into SFT rows.", "distill")
    if recipe.distill.phase == "all":
        drive(recipe)
        return
    from ovlt import _env

    _env.apply("cpu" if recipe.run.device == "cpu" else _env.machine())
    from ovlt.runtime import leave, running

    with running("distill", recipe.run) as runtime:
        work(runtime, recipe)
    leave()


def drive(recipe: Recipe) -> None:
    """Make what the smoke recipe lacks, then start the phases one after the other."""
    cfg = recipe.distill
    ranks = cfg.ranks or (1 if cfg.tensor_parallel > 1 else smoke.default_ranks())
    smoke.make_missing(recipe, "distill", ranks)
    for phase in ("captions", "answers") if cfg.teacher else ("answers",):
        tree = recipe.resolved()
        tree["distill"]["phase"] = phase
        path = recipe.folder / "recipes" / f"{cfg.stage}.{phase}.json"
        smoke.torchrun("ovlt.distill", smoke.write_recipe(recipe_from(tree), path), ranks)


def work(runtime: Runtime, recipe: Recipe) -> None:
    """One phase, on every rank."""
    from ovlt.distillation.assemble import assemble
    from ovlt.distillation.generate import generate, verify
    from ovlt.distillation.requests import Asker
    from ovlt.distillation.shards import Shards
    from ovlt.model.load import open_folder
    from ovlt.reward import RewardPool
    from ovlt.stage import read_rows

    cfg, home = recipe.distill, recipe.folder / recipe.distill.stage
    seer = open_folder(recipe.expand(cfg.captioner or recipe.model.path))
    found, limits = read_rows(
        runtime, recipe, seer, cfg.data, what="questions",
        max_tokens=cfg.max_prompt_tokens, limit=cfg.questions,
    )  # fmt: skip
    rows = found.rows
    asked = {"data": recipe.expand(cfg.data), "questions": len(rows), "seed": cfg.seed}

    captions: dict[int, Record] = {}
    if cfg.teacher:
        settings = asked | _named(
            cfg, "captioner", "caption_request", "caption_temperature", "max_caption_tokens",
            "max_prompt_tokens",
        )  # fmt: skip
        shards = Shards(home / "captions", settings)
        if cfg.phase == "captions":
            asker = Asker(seer, limits)
            generate(
                runtime, recipe, shards, seer, rows,
                ask=lambda i: asker.about_image(rows[i], cfg.caption_request), n=1,
                temperature=cfg.caption_temperature, max_tokens=cfg.max_caption_tokens,
                finish=lambda records, _: records,
            )  # fmt: skip
            return
        captions = {record["index"]: record for record in shards.read()}

    solver = open_folder(recipe.expand(cfg.teacher)) if cfg.teacher else seer
    asker = Asker(solver, limits)

    def question(i: int) -> Prompt:
        if not cfg.teacher:
            return asker.question(rows[i])
        if captions[i]["dropped"]:
            raise ValueError(captions[i]["dropped"])
        return asker.about_caption(rows[i], cfg.teacher_request, captions[i]["texts"][0])

    settings = asked | _named(
        cfg, "captioner", "teacher", "k", "temperature", "caption_request", "teacher_request",
        "max_prompt_tokens", "max_response_tokens",
    )  # fmt: skip
    shards = Shards(home / "answers", settings)
    with RewardPool.of(recipe.grpo.reward) as pool:
        generate(
            runtime, recipe, shards, solver, rows,
            ask=question, n=cfg.k, temperature=cfg.temperature, max_tokens=cfg.max_response_tokens,
            finish=lambda records, prompts: verify(pool, records, prompts),
        )  # fmt: skip
    if runtime.is_main:
        assemble(recipe, home, rows, list(shards.read()))


def _named(config: Any, *names: str) -> dict[str, Any]:
    return {name: getattr(config, name) for name in names}


if __name__ == "__main__":
    main()
