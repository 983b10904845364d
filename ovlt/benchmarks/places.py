"""Where results lie, and whether they are there."""

from __future__ import annotations

from pathlib import Path

from ovlt.benchmarks.items import BenchmarkTask
from ovlt.benchmarks.registry import checked_settings, chosen
from ovlt.benchmarks.results import HEAD
from ovlt.config.benchmark import BenchmarkConfig


def words_of(text: str) -> frozenset[str]:
    """Split a list with commas."""
    return frozenset(filter(None, map(str.strip, text.split(","))))


def out_folder(config: BenchmarkConfig, model: str) -> Path:
    """Return where results go: ``out``, or a folder named after the model's last two names."""
    if config.out:
        return Path(config.out)
    return Path("runs/benchmarks") / "-".join(Path(model).resolve().parts[-2:])


def result_folder(
    out: Path, benchmark: BenchmarkTask, split: str, style: str, settings: frozenset[str]
) -> Path:
    """Return the folder of one result."""
    return out / f"{benchmark.name}-{split}" / "-".join([style, *sorted(settings)])


def is_measured(config: BenchmarkConfig) -> bool:
    """Whether ``config.out`` holds a result of everything that ``config`` names."""
    for benchmark, split in chosen(config.names):
        settings = checked_settings(benchmark, words_of(config.settings))
        folder = result_folder(Path(config.out), benchmark, split, config.style, settings)
        if not (folder / HEAD).is_file():
            return False
    return True
