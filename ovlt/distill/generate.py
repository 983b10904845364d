"""Answers to many questions, written batch by batch, with the engine kept busy."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from ovlt.data.loader import Loader
from ovlt.distill import traces
from ovlt.distill.shards import Record, Shards
from ovlt.reward.functions import RewardInput
from ovlt.reward.pool import RewardPool
from ovlt.rollout.engine import Completion, Sampling, request_seeds
from ovlt.rollout.open import engine_dtype, open_engine
from ovlt.types import Prompt

if TYPE_CHECKING:
    from ovlt.config import Recipe
    from ovlt.data.sources import Row
    from ovlt.model.load import ModelFolder
    from ovlt.system.runtime import Runtime

Finish = Callable[[list[Record], dict[int, Prompt]], list[Record]]


def generate(
    runtime: Runtime,
    recipe: Recipe,
    shards: Shards,
    folder: ModelFolder,
    rows: Sequence[Row],
    *,
    ask: Callable[[int], Prompt],
    sampling: Sampling,
    finish: Finish,
) -> None:
    """Answers to the questions that ``shards`` lacks, written batch by batch. Collective: when it
    returns all ranks have written theirs, and the process group is gone with the engine.

    ``finish`` completes the records of a batch while the engine works on the next one.
    """
    cfg, started, engine_seconds = recipe.distill, time.perf_counter(), 0.0
    known = shards.done()
    runtime.barrier()  # every rank has read what there was before any writes more
    left = [i for i in range(len(rows)) if i not in known][runtime.rank :: runtime.world_size]
    if not left:
        runtime.barrier()
        return
    seeds = request_seeds(cfg.seed, len(rows), range(len(rows)), sampling.n)
    loader: Loader[Prompt | str] = Loader(lambda i: _or_reason(ask, i), recipe.data.workers)
    batches = [left[at : at + cfg.shard] for at in range(0, len(left), cfg.shard)]
    loader.prefetch(batches[0])
    engine = open_engine(
        folder,
        recipe.engine,
        runtime,
        dtype=engine_dtype(recipe.engine, recipe.model, folder, runtime.device),
        max_tokens=cfg.max_prompt_tokens + sampling.max_tokens,
        max_images=max(len(row.images) for row in rows),
        solo=cfg.engine,
    )
    opened = time.perf_counter()
    writing: Future[None] | None = None
    with ThreadPoolExecutor(1) as background:
        for number, batch in enumerate(batches):
            made = loader.get(batch)
            if number + 1 < len(batches):
                loader.prefetch(batches[number + 1])
            prompts = {i: p for i, p in zip(batch, made, strict=True) if not isinstance(p, str)}
            began = time.perf_counter()
            answers = engine.generate(list(prompts.values()), sampling, [seeds[i] for i in prompts])
            engine_seconds += time.perf_counter() - began
            if writing is not None:
                writing.result()
            dropped = {i: r for i, r in zip(batch, made, strict=True) if isinstance(r, str)}
            writing = background.submit(_keep, shards, folder, finish, prompts, answers, dropped)
        if writing is not None:
            writing.result()
    seconds = time.perf_counter() - opened
    loader.close()
    runtime.barrier()
    engine.close()
    runtime.say(
        f"{shards.folder.name}: {len(left)} questions on this rank in {seconds:.1f} s, "
        f"{engine_seconds / seconds:.0%} of it generation; the engine was open after "
        f"{opened - started:.1f} s"
    )


def verify(pool: RewardPool, records: list[Record], prompts: dict[int, Prompt]) -> list[Record]:
    """Each record with the verdict on each of its texts: ``scores``, 0 or 1, and ``reasons``."""
    inputs = [
        RewardInput.of(traces.gradable(text), prompts[record["index"]])
        for record in records
        for text in record["texts"]
    ]
    outputs = iter(pool.score(inputs))
    for record in records:
        verdicts = [next(outputs) for _ in record["texts"]]
        record["scores"] = [float(v.is_right) for v in verdicts]
        record["reasons"] = [v.reason for v in verdicts]
    return records


def check_context(folder: ModelFolder, max_prompt_tokens: int, max_tokens: int, key: str) -> None:
    """Raises ValueError where a model cannot take a prompt and its answer, by the key to lower."""
    longest, context = max_prompt_tokens + max_tokens, folder.text_config.max_position_embeddings
    if longest > context:
        raise ValueError(
            f"{folder.path} takes {context} tokens, but distill.max_prompt_tokens + {key} are "
            f"{longest}: lower one of them"
        )


def _keep(
    shards: Shards,
    folder: ModelFolder,
    finish: Finish,
    prompts: dict[int, Prompt],
    answers: list[list[Completion]],
    dropped: dict[int, str],
) -> None:
    """Records of a batch, completed and written."""
    records: list[Record] = [
        {
            "index": i,
            "dropped": "",
            "texts": [folder.chat.decode(c.token_ids.tolist()) for c in group],
            "finished": [c.finished for c in group],
            "tokens": [len(c.token_ids) for c in group],
        }
        for i, group in zip(prompts, answers, strict=True)
    ]
    records += [
        {"index": i, "dropped": reason, "texts": [], "finished": [], "tokens": []}
        for i, reason in dropped.items()
    ]
    shards.write(finish(records, prompts))


def _or_reason(ask: Callable[[int], Prompt], index: int) -> Prompt | str:
    try:
        return ask(index)
    except ValueError as reason:  # of the text, of an image, or of what came before
        return str(reason)
