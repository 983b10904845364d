"""What ``ovlt evaluate --benchmark`` asks: benchmarks read, checked, and responses on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ovlt.benchmarks.ask import Asking, answered, ask, chosen_items, merge
from ovlt.benchmarks.data import BenchmarkData, read_benchmark
from ovlt.benchmarks.items import BenchmarkItem, BenchmarkTask, StyleName
from ovlt.benchmarks.places import result_folder, words_of
from ovlt.benchmarks.published import published_for
from ovlt.benchmarks.registry import checked_settings, chosen, style_named
from ovlt.benchmarks.styles import DECODING, pixels_within
from ovlt.config.benchmark import BenchmarkConfig
from ovlt.data.images import PixelLimits
from ovlt.model import sizes
from ovlt.model.contents import folder_digest
from ovlt.model.load import ModelFolder
from ovlt.rollout.engine import Engine, Sampling
from ovlt.run.provenance import versions
from ovlt.system.files import read_object, write_json
from ovlt.system.runtime import Runtime

ASKED = "asked.json"  # what decides the responses of a folder


@dataclass(frozen=True)
class BenchmarkJob:
    """One benchmark to ask and to score, and its folder."""

    data: BenchmarkData
    items: tuple[BenchmarkItem, ...]
    style: StyleName
    settings: frozenset[str]
    asking: Asking
    folder: Path
    facts: dict[str, object]

    @property
    def name(self) -> str:
        return f"{self.data.benchmark.title} ({self.data.split}), style {self.style}"


def prepare(
    config: BenchmarkConfig, folder: ModelFolder, out: Path, seed: int, engine: str
) -> list[BenchmarkJob]:
    """Read and check every benchmark of ``config.names``, before an engine is opened.

    Raises ValueError: an unknown name, missing files, a folder that holds other responses.
    """
    if config.expect:
        published_for(config.expect)
    style = style_named(config.style)
    contents = folder_digest(folder)[:12]
    jobs: list[BenchmarkJob] = []
    for benchmark, split in chosen(config.names):
        settings = checked_settings(benchmark, words_of(config.settings))
        data = read_benchmark(benchmark, split, config.data, strict=config.check_counts)
        items = chosen_items(data.items, config.limit, seed)
        asking = _asking(config, folder, style, settings, seed)
        place = result_folder(out, benchmark, split, style, settings)
        prompts = _prompts_hash(benchmark, items, style, settings)
        decides = _decides(data, items, asking, contents, prompts)
        _claim(place, decides)
        facts = decides | {
            "model": str(folder.path),
            "image placement": _placement(benchmark, items, style, settings),
            "rows": data.source.origin,
            "data": config.data or data.benchmark.hub,
            "shares questions with": benchmark.overlap or "none known",
            "counts": data.check or "those of the benchmark",
            "thoughts": "stripped up to the last </think>" if config.strip_thoughts else "kept",
            "engine": engine,
            "versions": versions(),
        }
        jobs.append(BenchmarkJob(data, tuple(items), style, settings, asking, place, facts))
    return jobs


def _asking(
    config: BenchmarkConfig,
    folder: ModelFolder,
    style: StyleName,
    settings: frozenset[str],
    seed: int,
) -> Asking:
    decoding = DECODING[style]
    wanted = (
        config.min_pixels or decoding.pixels[0] or folder.pixel_range[0],
        config.max_pixels or decoding.pixels[1] or folder.pixel_range[1],
    )
    low, high = pixels_within(wanted, folder.pixel_range)
    greedy = decoding.greedy if config.temperature < 0 else config.temperature == 0
    if greedy and config.n > 1:
        raise ValueError(
            f"evaluate.benchmark.n = {config.n}, but style {style} is greedy and would give the "
            "same response again: give a temperature, like --evaluate.benchmark.temperature=0.7"
        )
    sampling = Sampling(
        config.n,
        0.0 if greedy else config.temperature if config.temperature > 0 else decoding.temperature,
        config.max_response_tokens or decoding.max_tokens,
        top_p=config.top_p,
        top_k=config.top_k,
    )
    context = int(folder.text_config.max_position_embeddings)
    longest = min(config.max_prompt_tokens, context - sampling.max_tokens)
    if longest < 1:
        raise ValueError(
            f"{folder.path} takes {context} tokens, no more than the {sampling.max_tokens} of a "
            "response: lower evaluate.benchmark.max_response_tokens"
        )
    limits = PixelLimits(sizes.merged_patch(folder.config), low, high)
    return Asking(style, settings, sampling, limits, longest, seed, config.workers)


def _decides(
    data: BenchmarkData,
    items: Sequence[BenchmarkItem],
    asking: Asking,
    contents: str,
    prompts: str,
) -> dict[str, object]:
    """Return what decides the responses: a folder holds only those that agree in all of it."""
    sampling = asking.sampling
    drawn = f"temperature {sampling.temperature}, top_p {sampling.top_p}, top_k {sampling.top_k}"
    return {
        "benchmark": data.benchmark.title,
        "name": f"{data.benchmark.name}:{data.split}",
        "split": data.split,
        "style": asking.style,
        "settings": sorted(asking.settings),
        "model contents": contents,
        "prompts": prompts,
        "pixels": f"{asking.limits.min_pixels} to {asking.limits.max_pixels}",
        "decoding": "greedy" if sampling.temperature == 0 else drawn,
        "samples per question": sampling.n,
        "most response tokens": sampling.max_tokens,
        "most prompt tokens": asking.max_prompt_tokens,
        "seed": asking.seed,
        "asked": f"{len(items)} of {len(data.items)} questions",
        "labels": data.labels_hash,
    }


def _claim(folder: Path, decides: dict[str, object]) -> None:
    """Make a folder that of these responses. Raises ValueError if it holds others."""
    path = folder / ASKED
    if path.is_file():
        earlier = read_object(path)
        other = [key for key in decides if earlier.get(key) != decides[key]]
        if other:
            key = other[0]
            raise ValueError(
                f"{folder} holds responses that were asked otherwise: {key} was "
                f"{earlier.get(key)!r} and is {decides[key]!r}; delete it or give another "
                "--evaluate.benchmark.out"
            )
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, decides)


def _prompts_hash(
    benchmark: BenchmarkTask,
    items: Sequence[BenchmarkItem],
    style: StyleName,
    settings: frozenset[str],
) -> str:
    digest = hashlib.sha256()
    for item in items:
        digest.update(benchmark.prompt(item, style, settings).text.encode("utf-8", "replace"))
    return digest.hexdigest()[:12]


def _placement(
    benchmark: BenchmarkTask,
    items: Sequence[BenchmarkItem],
    style: StyleName,
    settings: frozenset[str],
) -> str:
    """Say where images stand in the prompts."""
    places: set[str] = set()
    for item in items:
        parts = benchmark.prompt(item, style, settings).parts
        at = [i for i, part in enumerate(parts) if isinstance(part, int)]
        if at == list(range(len(at))):
            places.add("first" if at else "no image")
        elif at == list(range(len(parts) - len(at), len(parts))):
            places.add("after the text")
        else:
            places.add("at their tags")
    return ", ".join(sorted(places))


def ask_all(
    jobs: Sequence[BenchmarkJob],
    folder: ModelFolder,
    runtime: Runtime,
    opened: Callable[[int, int], Engine],
) -> None:
    """Ask what is not on disk yet, each rank its share. Collective.

    ``opened(max tokens, max images)`` opens the engine; it is not called if nothing is missing.
    """
    missing = [[item for item in job.items if item.id not in answered(job.folder)] for job in jobs]
    runtime.barrier()  # every rank has read what is there before one of them writes
    if any(missing):  # no collective after the engine is closed: vLLM ends the process group
        tokens = max(j.asking.max_prompt_tokens + j.asking.sampling.max_tokens for j in jobs)
        images = max((len(item.images) for items in missing for item in items), default=1)
        with opened(tokens, 2 * images) as engine, engine.awake():  # an image may stand twice
            for job, items in zip(jobs, missing, strict=True):
                if items:
                    runtime.say(f"{job.name}: asking {len(items)} of {len(job.items)} questions")
                size = -(-len(items) // runtime.world_size)
                share = items[runtime.rank * size : (runtime.rank + 1) * size]
                path = job.folder / f"responses.rank{runtime.rank}.jsonl"
                busy = ask(engine, folder, job.data, share, job.asking, path)
                if items:
                    runtime.say(f"{job.name}: the engine worked {busy:.1%} of the time")
                runtime.barrier()
                if runtime.is_main:
                    merge(job.folder, job.items)
