"""``python -m ovlt.distill RECIPE``: questions with images -> reasoning traces for SFT.

captions    a vision-language model describes each image
details     with distill.refine: the teacher says what a description leaves open
recaptions  with distill.refine: the images are described again, with that in mind
answers     a text-only teacher answers each question from the description, k times; or, without a
            teacher, the captioner answers from the image itself. They are graded while the next
            ones are being sampled; at the end one correct trace of each question is kept by rule,
            filtered, and written as an SFT row, and what was dropped with its reason

Each phase is a torchrun of its own, so that the next model finds the memory free. All generation is
vLLM's, sharded over ranks and written as it goes: killed at any moment, the same command goes on.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from ovlt.config import Recipe
from ovlt.config.load import recipe_from, write_recipe
from ovlt.data.rows import RowReader
from ovlt.distill.assemble import assemble
from ovlt.distill.forms import fill
from ovlt.distill.generate import check_context, generate, verify
from ovlt.distill.phases import DECIDED_BY, digest_of, made_with, phases
from ovlt.distill.requests import Asker
from ovlt.distill.shards import Record, Shards
from ovlt.model.load import open_folder, open_text_model
from ovlt.reward.pool import RewardPool
from ovlt.rollout.engine import Sampling
from ovlt.system import launch
from ovlt.system.runtime import Runtime
from ovlt.types import Prompt


def drive(recipe: Recipe) -> None:
    """Start the phases one after the other, each as ranks of its own."""
    cfg = recipe.distill
    ranks = cfg.ranks or (1 if cfg.engine.tensor_parallel > 1 else launch.default_ranks())
    if cfg.phase != "all":
        started = [cfg.phase]
    else:
        started = ["answers"] if cfg.answers_of else phases(recipe)
    for phase in started:
        tree = recipe.resolved()
        tree["distill"]["phase"] = phase
        path = recipe.folder / "recipes" / f"{cfg.stage}.{phase}.json"
        launch.torchrun("ovlt.distill", write_recipe(recipe_from(tree), path), ranks)


def work(runtime: Runtime, recipe: Recipe) -> None:
    """One phase, on every rank."""
    cfg, home = recipe.distill, recipe.folder / recipe.distill.stage
    source = recipe.folder / cfg.answers_of if cfg.answers_of else home
    home.mkdir(parents=True, exist_ok=True)
    seer = open_folder(recipe.expand(cfg.captioner or recipe.model.path))
    reader = open_text_model(recipe.expand(cfg.teacher)) if cfg.teacher else seer
    if cfg.teacher:  # before the first caption is made
        room = cfg.max_prompt_tokens, cfg.max_caption_tokens, "distill.max_caption_tokens"
        check_context(seer, *room)
        if cfg.refine:
            check_context(reader, *room)
    check_context(
        reader, cfg.max_prompt_tokens, cfg.max_response_tokens, "distill.max_response_tokens"
    )
    rows = RowReader(runtime, recipe.model, recipe.data, seer).questions(
        recipe.expand(cfg.data), max_tokens=cfg.max_prompt_tokens, limit=cfg.questions
    )
    questions = digest_of(rows)
    seeing, reading = Asker(seer, rows.limits), Asker(reader, rows.limits)

    def shards(phase: str) -> Shards:
        upto = phases(recipe)[: phases(recipe).index(phase) + 1]
        own = {name: getattr(cfg, name) for p in upto for name in DECIDED_BY[p]}
        return Shards(source / phase, own | made_with(recipe, questions, phase))

    @functools.cache
    def records(phase: str) -> dict[int, Record]:
        return {record["index"]: record for record in shards(phase).read()}

    def said(phase: str, i: int) -> str:
        record = records(phase)[i]
        if record["dropped"]:
            raise ValueError(record["dropped"])
        return record["texts"][0]

    seen = "recaptions" if cfg.refine else "captions"
    ask: dict[str, Callable[[int], Prompt]] = {
        "captions": lambda i: seeing.about_image(rows[i], cfg.caption_request),
        "details": lambda i: reading.about_caption(
            rows[i], cfg.details_request, said("captions", i)
        ),
        "recaptions": lambda i: seeing.about_image(
            rows[i], fill(cfg.recaption_request, {"details": said("details", i)})
        ),
        "answers": lambda i: (
            reading.about_caption(rows[i], cfg.teacher_request, said(seen, i))
            if cfg.teacher
            else reading.question(rows[i])
        ),
    }
    if cfg.answers_of and not (source / "answers").is_dir():
        raise ValueError(f"distill.answers_of = '{cfg.answers_of}': no answers are in {source}")
    if cfg.phase != (order := phases(recipe))[0]:
        before = order[order.index(cfg.phase) - 1]
        begun = (source / before).is_dir()
        if lacking := len(rows) - (len(records(before)) if begun else 0):
            raise ValueError(
                f"{lacking} of {len(rows)} questions have no record in {source / before}: run "
                f"--distill.phase={before} first"
            )
    out = shards(cfg.phase)
    if cfg.phase != "answers":
        generate(
            runtime, recipe, out, reader if cfg.phase == "details" else seer, rows,
            ask=ask[cfg.phase],
            sampling=Sampling(1, cfg.caption_temperature, cfg.max_caption_tokens),
            finish=lambda records, _: records,
        )  # fmt: skip
        return
    with RewardPool(recipe.reward, for_verdicts=True) as pool:
        generate(
            runtime, recipe, out, reader, rows,
            ask=ask["answers"],
            sampling=Sampling(
                cfg.k, cfg.temperature, cfg.max_response_tokens, top_p=cfg.top_p, top_k=cfg.top_k
            ),
            finish=lambda records, prompts: verify(pool, records, prompts),
        )  # fmt: skip
    if runtime.is_main:
        assemble(recipe, home, rows, out.read())
