"""Ask a model a benchmark's questions: images decoded ahead, responses on disk as they come.

Each rank asks its share and appends to a file of its own, so that a killed run goes on where it
was; memory holds the prompts that are under way, whatever the number of questions.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from ovlt.benchmarks.data import BenchmarkData
from ovlt.benchmarks.items import BenchmarkItem, StyleName
from ovlt.data.images import BadImage, ImageRef, PixelLimits, load_image
from ovlt.model import sizes
from ovlt.model.chat import BadText
from ovlt.model.load import ModelFolder
from ovlt.rollout.engine import Completion, Engine, Sampling
from ovlt.run.record import drop_torn_tail, whole_lines
from ovlt.system.ahead import ahead
from ovlt.system.files import write_whole
from ovlt.types import Prompt

_AHEAD = 32  # prompts whose images are decoded before the engine has room for them


class ResponseRecord(TypedDict):
    """The responses to one question; ``error`` says why it was not asked."""

    id: str
    place: int
    responses: list[str]
    tokens: list[int]
    finished: list[bool]
    error: str


@dataclass(frozen=True)
class Asking:
    """How one benchmark is asked."""

    style: StyleName
    settings: frozenset[str]
    sampling: Sampling
    limits: PixelLimits
    max_prompt_tokens: int
    seed: int
    workers: int


def seed_of(run_seed: int, name: str, n: int) -> int:
    """Return the seed of a question: of the run and its id alone, so not of the order or ranks."""
    digest = hashlib.sha256(f"{run_seed} {name}".encode()).digest()
    return int.from_bytes(digest[:6], "big") * n


def chosen_items(items: Sequence[BenchmarkItem], limit: int, seed: int) -> list[BenchmarkItem]:
    """Return ``limit`` items, the same for every model, in the order of the files; 0: all."""
    if not limit or limit >= len(items):
        return list(items)
    first = sorted(items, key=lambda item: hashlib.sha256(f"{seed} {item.id}".encode()).digest())
    return sorted(first[:limit], key=lambda item: item.place)


def answered(folder: Path) -> dict[str, ResponseRecord]:
    """Return the responses that are on disk, by id. Raises ValueError on a damaged file."""
    records: dict[str, ResponseRecord] = {}
    for path in sorted(folder.glob("responses*.jsonl")):
        for line in whole_lines(path):
            record: ResponseRecord = json.loads(line)
            records[record["id"]] = record
    return records


def ask(
    engine: Engine,
    folder: ModelFolder,
    data: BenchmarkData,
    items: Sequence[BenchmarkItem],
    asking: Asking,
    path: Path,
) -> float:
    """Ask these items and append their responses to ``path``.

    Returns the share of the time in which the engine was at work.
    """
    drop_torn_tail(path)
    started, busy = time.perf_counter(), engine.busy_s
    with path.open("a", encoding="utf-8") as file:
        for record in responses(engine, folder, data, items, asking):
            file.write(json.dumps(record) + "\n")
            file.flush()
    return (engine.busy_s - busy) / (time.perf_counter() - started)


def responses(
    engine: Engine,
    folder: ModelFolder,
    data: BenchmarkData,
    items: Sequence[BenchmarkItem],
    asking: Asking,
) -> Iterator[ResponseRecord]:
    """Yield the responses to items as the engine finishes them, in any order."""
    asked: dict[int, BenchmarkItem] = {}
    refused: list[ResponseRecord] = []

    def prompts(made: Iterator[Made]) -> Iterator[tuple[Prompt, int]]:
        count = 0
        for item, prompt in made:
            if isinstance(prompt, str):
                refused.append(_record(item, folder, [], prompt))
                continue
            asked[count] = item
            count += 1
            yield prompt, seed_of(asking.seed, item.id, asking.sampling.n)

    with ThreadPoolExecutor(asking.workers) as pool:
        made = ahead(_prompts(folder, data, items, asking, pool), _AHEAD)
        for place, completions in engine.stream(prompts(made), asking.sampling):
            yield _record(asked.pop(place), folder, completions)
            yield from refused
            refused.clear()
    yield from refused


def merge(folder: Path, items: Sequence[BenchmarkItem]) -> None:
    """Make the ranks' files one, in the order of the items."""
    records = answered(folder)
    lines = [json.dumps(records[item.id]) + "\n" for item in items]
    write_whole(folder / "responses.jsonl", "".join(lines).encode())
    for path in folder.glob("responses.rank*.jsonl"):
        path.unlink()


def _record(
    item: BenchmarkItem, folder: ModelFolder, completions: Sequence[Completion], error: str = ""
) -> ResponseRecord:
    return {
        "id": item.id,
        "place": item.place,
        "responses": [folder.chat.decode(c.token_ids.tolist()) for c in completions],
        "tokens": [len(c.token_ids) for c in completions],
        "finished": [c.finished for c in completions],
        "error": error,
    }


Made = tuple[BenchmarkItem, Prompt | str]  # a prompt, or why there is none


def _prompts(
    folder: ModelFolder,
    data: BenchmarkData,
    items: Sequence[BenchmarkItem],
    asking: Asking,
    pool: ThreadPoolExecutor,
) -> Iterator[Made]:
    """Yield the prompts of items in order, a few of them being decoded side by side."""
    pending: list[tuple[BenchmarkItem, Future[Prompt | str]]] = []
    for item, refs in zip(items, data.images(items), strict=True):
        pending.append((item, pool.submit(_prompt, folder, data, item, refs, asking)))
        if len(pending) > asking.workers:
            done, future = pending.pop(0)
            yield done, future.result()
    for item, future in pending:
        yield item, future.result()


def _prompt(
    folder: ModelFolder,
    data: BenchmarkData,
    item: BenchmarkItem,
    refs: Mapping[int, ImageRef],
    asking: Asking,
) -> Prompt | str:
    text = data.benchmark.prompt(item, asking.style, asking.settings)
    try:
        pixels = {number: load_image(refs[number], asking.limits) for number in set(text.images)}
        images = tuple(pixels[number] for number in text.images)
        grids = [sizes.image_grid(folder.config, *image.shape[:2]) for image in images]
        token_ids = folder.chat.prompt_ids(text.text, grids)
    except (BadImage, BadText) as error:
        return str(error)
    if len(token_ids) > asking.max_prompt_tokens:
        return f"the prompt has {len(token_ids)} tokens, more than {asking.max_prompt_tokens}"
    return Prompt(item.id, data.benchmark.name, text.text, "", token_ids, images)
