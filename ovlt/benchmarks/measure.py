"""Score responses and write results; score stored ones again by another style's rules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ovlt.benchmarks import judge_prompts
from ovlt.benchmarks.answers import without_thoughts
from ovlt.benchmarks.ask import ResponseRecord, answered
from ovlt.benchmarks.compare import compare, side_by_side
from ovlt.benchmarks.items import STYLES, BenchmarkItem, BenchmarkTask, ScoreTable, StyleName
from ovlt.benchmarks.jobs import BenchmarkJob
from ovlt.benchmarks.judge import Judge
from ovlt.benchmarks.places import words_of
from ovlt.benchmarks.plain import plain_verdict
from ovlt.benchmarks.published import expected
from ovlt.benchmarks.registry import checked_settings, chosen, style_named
from ovlt.benchmarks.results import (
    RESULT,
    UNSCORED,
    ScoredItem,
    ScoredSample,
    percent,
    read_head,
    read_items,
    write_result,
)
from ovlt.benchmarks.scoring import RuleSet, ScoredText, open_pool, score
from ovlt.benchmarks.stored import stored_items
from ovlt.config.benchmark import BenchmarkConfig
from ovlt.reward.pool import RewardPool
from ovlt.system.files import write_whole

_NO_JUDGE = {
    "official": "its rules ask a judge: without one, undecided responses count as wrong",
    "vlmevalkit": "not a VLMEvalKit number: that harness scores this benchmark only with a judge",
    "openvlthinker": "its number is a judge's: without one, right only if the plain comparison is",
}
_JUDGED: dict[StyleName, tuple[str, ...]] = {
    "official": ("mathvista", "mathverse", "hallusionbench"),
    "vlmevalkit": ("mathvista", "mathverse", "mathvision", "emma", "emma-mini"),
    "openvlthinker": ("mathverse",),
}


# Facts that say how a result was scored, and do not hold for another style.
_OF_SCORING = ("tables", "judge", "judge's prompts", "unjudged", "without a judge", "plain rules")


@dataclass(frozen=True)
class WrittenResult:
    """A result that is on disk: its tables, and lines that say it."""

    tables: list[ScoreTable]
    lines: list[str]


def score_jobs(jobs: Sequence[BenchmarkJob], config: BenchmarkConfig) -> list[str]:
    """Score the responses on disk and write every result; return lines that say them."""
    lines: list[str] = []
    tables: dict[tuple[str, str], ScoreTable] = {}
    with open_pool(config.workers) as pool:
        for job in jobs:
            records = answered(job.folder)
            items = [_unscored(item, records[item.id]) for item in job.items]
            benchmark, split = job.data.benchmark, job.data.split
            scoring = Scoring(benchmark, split, job.style, job.settings, config, pool)
            result = scoring.write(items, job.folder, job.facts)
            lines += [f"{job.name}: {line}" for line in result.lines]
            tables[benchmark.name, split] = result.tables[0]
    for benchmark in dict.fromkeys(job.data.benchmark for job in jobs):
        splits = [split for split in benchmark.combined if (benchmark.name, split) in tables]
        if splits and len(splits) == len(benchmark.combined):
            rows = [replace(tables[benchmark.name, s].rows[0], label=s) for s in splits]
            table = ScoreTable("overall", tuple(rows), mean="mean")
            said = percent(table.number, table.interval)
            lines.append(f"{benchmark.title} overall, mean of {' and '.join(splits)}: {said}")
            if config.expect:
                numbers = {"accuracy": table.number}
                lines += expected(config.expect, benchmark.name, "overall", config.style, numbers)
    return lines


def _unscored(item: BenchmarkItem, record: ResponseRecord) -> ScoredItem:
    samples = zip(record["responses"], record["tokens"], record["finished"], strict=True)
    scored = tuple(ScoredSample(text, n, finished, UNSCORED) for text, n, finished in samples)
    return ScoredItem(item.id, item.row, scored, record["error"])


@dataclass(frozen=True)
class Scoring:
    """By whose rules one benchmark's responses are scored."""

    benchmark: BenchmarkTask
    split: str
    style: StyleName
    settings: frozenset[str]
    config: BenchmarkConfig
    pool: RewardPool

    def write(
        self, items: Sequence[ScoredItem], folder: Path, facts: dict[str, object]
    ) -> WrittenResult:
        """Score items and write the result, and every style's verdicts side by side."""
        judge = None
        if self.config.judge.url:
            judge = Judge(self.config.judge, folder / "judge.jsonl")
        scored = self.scored(items, judge)
        facts = facts | self._facts(scored, judge)
        tables = write_result(folder, self.benchmark, scored, facts)
        lines = self._lines(scored, tables, judge)
        write_whole(folder / "styles.md", self.all_styles(scored).encode("utf-8", "replace"))
        return WrittenResult(tables, lines)

    def scored(self, items: Sequence[ScoredItem], judge: Judge | None) -> list[ScoredItem]:
        """Return the items with new rulings."""
        rules = RuleSet(self.benchmark, self.style, self.settings, self.config.strip_thoughts)
        texts = [
            ScoredText(item.id, item.row, sample.response)
            for item in items
            for sample in item.samples
        ]
        rulings = iter(score(texts, rules, self.pool, judge.replies if judge else None))
        result: list[ScoredItem] = []
        for item in items:
            samples: list[ScoredSample] = []
            for sample in item.samples:
                ruling, replies = next(rulings)
                samples.append(replace(sample, ruling=ruling, replies=tuple(replies)))
            result.append(replace(item, samples=tuple(samples)))
        return result

    def all_styles(self, items: Sequence[ScoredItem]) -> str:
        """Return Markdown with the verdicts of all styles, by rules alone but for this one's."""
        results: dict[str, list[ScoredItem]] = {}
        for style in STYLES:
            other = replace(self, style=style)
            results[style] = list(items) if style == self.style else other.scored(items, None)
        return side_by_side(results)

    def _facts(self, items: Sequence[ScoredItem], judge: Judge | None) -> dict[str, object]:
        facts: dict[str, object] = {
            "scored by": self.style,
            "judge": judge.model if judge else "none",
        }
        if judge:
            facts["judge's prompts"] = judge_prompts.VERSION
            facts["unjudged"] = sum(s.ruling.by == "nobody" for i in items for s in i.samples)
        elif self.benchmark.name in _JUDGED[self.style]:
            facts["without a judge"] = _NO_JUDGE[self.style]
            facts["plain rules"] = self._plain(items)
        return facts

    def _plain(self, items: Sequence[ScoredItem]) -> str:
        """Say how many responses are right, and decided, by plain comparison."""
        verdicts: list[bool | None] = []
        for item in items:
            truth = self.benchmark.plain_truth(item.row)
            for sample in item.samples:
                text = without_thoughts(sample.response)
                verdicts.append(plain_verdict(truth, text) if truth else None)
        known = [verdict for verdict in verdicts if verdict is not None]
        return f"{sum(known)} right of {len(known)} decided, of {len(verdicts)} responses"

    def _lines(
        self, items: Sequence[ScoredItem], tables: Sequence[ScoreTable], judge: Judge | None
    ) -> list[str]:
        first, config = tables[0], self.config
        said = percent(first.number, first.interval)
        lines = [f"{first.mean or 'accuracy'} {said} on {len(items)} questions"]
        nobody = sum(s.ruling.by == "nobody" for item in items for s in item.samples)
        errors = sum(bool(item.error) for item in items)
        if nobody:
            lines.append(f"{nobody} responses undecided, counted as wrong")
        if errors:
            lines.append(f"{errors} questions not asked, counted as wrong")
        if judge:
            lines.append(judge.report())
        if config.expect:
            numbers = {table.mean or "accuracy": table.number for table in reversed(tables)}
            numbers["accuracy"] = sum(item.mean for item in items) / len(items)
            name = self.benchmark.name
            lines += expected(config.expect, name, self.split, self.style, numbers)
        if config.compare:
            lines.append(compare(items, self._other(Path(config.compare))).sentence())
        return lines

    def _other(self, folder: Path) -> list[ScoredItem]:
        """Return the other model's result: of this folder, or of the like-named one within it."""
        inside = folder / f"{self.benchmark.name}-{self.split}" / self.style
        return read_items(inside if (inside / RESULT).is_file() else folder)


def restyle(config: BenchmarkConfig) -> list[str]:
    """Score stored responses by ``config.style`` and write that beside them. Asks no model.

    Raises ValueError: no such result or file, several benchmarks, an unknown name.
    """
    source = Path(config.restyle).expanduser()
    facts: dict[str, object] = {}
    names = config.names
    if (source / RESULT).is_file():
        facts = read_head(source)
        for key in _OF_SCORING:
            facts.pop(key, None)
        names = names or str(facts.get("name", ""))
    pairs = chosen(names)
    if len(pairs) > 1 and ":" not in names:
        pairs = pairs[:1]
    if len(pairs) != 1:
        raise ValueError("--restyle scores one benchmark: name it, like --benchmark mathvision")
    [(benchmark, split)] = pairs
    style = style_named(config.style)
    settings = checked_settings(benchmark, words_of(config.settings))
    items = stored_items(benchmark, split, config.restyle, config.data, strict=config.check_counts)
    label = "-".join([style, *sorted(settings)])
    folder = (
        source / f"by-{label}"
        if source.is_dir()
        else Path(config.out or "runs/benchmarks/restyled")
        / f"{benchmark.name}-{source.stem}-{label}"
    )
    folder.mkdir(parents=True, exist_ok=True)
    head = {
        "benchmark": benchmark.title,
        "name": f"{benchmark.name}:{split}",
        "split": split,
        "style": facts.get("style", "unknown"),
    }
    with open_pool(config.workers) as pool:
        scoring = Scoring(benchmark, split, style, settings, config, pool)
        result = scoring.write(items, folder, facts | head | {"responses of": str(source)})
    lines = [f"{benchmark.title} ({split}) by {style}: {line}" for line in result.lines]
    return [*lines, f"{folder / 'result.md'}, {folder / 'styles.md'}"]
