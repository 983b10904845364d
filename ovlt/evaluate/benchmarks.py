"""Public benchmarks as validation of a stage: a seeded subset, by rules alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ovlt.benchmarks.ask import Asking, chosen_items, responses
from ovlt.benchmarks.data import BenchmarkData, read_benchmark
from ovlt.benchmarks.items import BenchmarkItem
from ovlt.benchmarks.places import words_of
from ovlt.benchmarks.registry import checked_settings, chosen, style_named
from ovlt.benchmarks.scoring import RuleSet, ScoredText, open_pool, score
from ovlt.config.benchmark import BenchmarkConfig
from ovlt.data.rows import RowReader
from ovlt.rollout.engine import Engine, Sampling


@dataclass(frozen=True)
class ValidationBenchmark:
    """One benchmark of which some questions are asked at every validation."""

    data: BenchmarkData
    items: tuple[BenchmarkItem, ...]
    settings: frozenset[str]

    @property
    def metric(self) -> str:
        return f"val/{self.data.benchmark.name}:{self.data.split}"


def read_validation_benchmarks(config: BenchmarkConfig) -> tuple[ValidationBenchmark, ...]:
    """Read the benchmarks of ``config.validation``, of each a seeded choice of its questions.

    Raises ValueError.
    """
    if not config.validation:
        return ()
    benchmarks: list[ValidationBenchmark] = []
    for benchmark, split in chosen(config.validation):
        data = read_benchmark(benchmark, split, config.data, strict=config.check_counts)
        items = chosen_items(data.items, config.validation_questions, seed=0)
        settings = checked_settings(benchmark, words_of(config.settings))
        benchmarks.append(ValidationBenchmark(data, tuple(items), settings))
    return tuple(benchmarks)


def measure_benchmarks(
    benchmarks: Sequence[ValidationBenchmark],
    config: BenchmarkConfig,
    engine: Engine,
    reader: RowReader,
    *,
    max_prompt_tokens: int,
    max_response_tokens: int,
) -> dict[str, float]:
    """Return the share of right greedy answers to each benchmark; undecided ones are wrong.

    Prompts that are longer than the stage's are not asked, and count as wrong. Collective.
    """
    if not benchmarks:
        return {}
    runtime, style = reader.runtime, style_named(config.style)
    limits = reader.limits(max_prompt_tokens)
    figures: dict[str, float] = {}
    with open_pool(config.workers) as pool:
        for benchmark in benchmarks:
            size = -(-len(benchmark.items) // runtime.world_size)
            mine = benchmark.items[runtime.rank * size : (runtime.rank + 1) * size]
            asking = Asking(
                style, benchmark.settings, Sampling(1, 0.0, max_response_tokens), limits,
                max_prompt_tokens, 0, config.workers,
            )  # fmt: skip
            rows = {item.id: item.row for item in mine}
            texts = [
                ScoredText(record["id"], rows[record["id"]], text)
                for record in responses(engine, reader.folder, benchmark.data, mine, asking)
                for text in record["responses"]
            ]
            rules = RuleSet(
                benchmark.data.benchmark, style, benchmark.settings, config.strip_thoughts
            )
            right = sum(bool(ruling.right) for ruling, _ in score(texts, rules, pool, None))
            counts = runtime.gather_json(right)
            figures[benchmark.metric] = sum(counts) / len(benchmark.items)
    return figures
