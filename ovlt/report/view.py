"""What the template shows of a run: the figures of summary.json, with charts and rollouts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypedDict

from ovlt.report.benchmark_table import BenchmarkTable, benchmark_table
from ovlt.report.charts import (
    Chart,
    IntervalChart,
    Mark,
    interval_chart,
    line_chart,
    points_of,
    stacked_chart,
)
from ovlt.report.cycle_figures import CycleView, cycle_view
from ovlt.report.samples import RolloutStep, rollout_steps
from ovlt.report.summary import (
    MODES,
    EvaluationSummary,
    FamilyResult,
    Mode,
    RunSummary,
    StageSummary,
)

# title, {metric: legend}, percent; the first five are shown at once, the others behind a click.
_FIGURES: tuple[tuple[str, dict[str, str], bool], ...] = (
    ("Validation accuracy, %", {"val/greedy": "greedy", "val/sampled": "sampled"}, True),
    ("Mean reward", {"reward/mean": "reward"}, False),
    (
        "Answer length, tokens",
        {"response/tokens_mean": "training", "val/tokens_mean": "validation"},
        False,
    ),
    ("Loss", {"loss": "loss"}, False),
    ("Engine-trainer mismatch, KL in nats", {"mismatch/kl": "KL"}, False),
    ("Mismatch, largest |log-prob difference|", {"mismatch/max_abs": "max"}, False),
    ("Gradient norm", {"grad_norm": "norm"}, False),
    ("Entropy, nats per token", {"entropy": "entropy"}, False),
    ("Learning rate", {"lr": "rate"}, False),
    ("Tokens per second", {"tokens_per_second": "tokens/s"}, False),
    ("Groups without signal, %", {"groups/no_signal_frac": "share"}, True),
    (
        "Clipped and truncated, %",
        {"clip/frac": "ratio clipped", "is/truncated_frac": "weight truncated"},
        True,
    ),
)
_PHASES = "Seconds per step, by phase"
_SHOWN_AT_ONCE = {title for title, _, _ in _FIGURES[:5]} | {_PHASES}


@dataclass(frozen=True)
class FamilyRow:
    name: str
    num: float | None  # questions
    cells: Sequence[FamilyResult | None]  # one for each stage of the table


@dataclass(frozen=True)
class FamilyTable:
    """Accuracy by source, or by kind of question: a row for each, a column for each stage."""

    heading: str
    stages: Sequence[str]
    rows: Sequence[FamilyRow]


class StageView(StageSummary):
    main_figures: list[Chart]
    more_figures: list[Chart]
    rollouts: list[RolloutStep]


class PageView(TypedDict):
    """The variables of report.html."""

    title: str
    run: dict[str, str | dict[str, str]]
    baseline: str | None
    problems: list[str]
    stages: list[StageView]
    overview: IntervalChart | None
    families: list[FamilyTable]
    cycle: CycleView | None
    benchmarks: BenchmarkTable | None


def build_view(run_dir: Path, summary: RunSummary) -> PageView:
    """Return what the template needs besides the figures: charts, family tables, rollouts."""
    stages = [_stage_view(run_dir / stage["name"], stage) for stage in summary["stages"]]
    tables = [
        _family_table(stages, "by_source", "source"),
        _family_table(stages, "by_kind", "kind of question"),
    ]
    return {
        "title": summary["title"],
        "run": summary["run"],
        "baseline": summary["baseline"],
        "problems": summary["problems"],
        "stages": stages,
        "overview": interval_chart(
            [(s["title"], _marks(s["evaluation"])) for s in stages if s["evaluation"] is not None]
        ),
        "families": [table for table in tables if table is not None],
        "benchmarks": benchmark_table(
            run_dir, [(stage["name"], stage["title"]) for stage in summary["stages"]]
        ),
        "cycle": cycle_view(summary["cycle"]) if "cycle" in summary else None,
    }


def _stage_view(folder: Path, stage: StageSummary) -> StageView:
    figures = _figures(stage)
    return {
        **stage,
        "main_figures": [figure for figure in figures if figure.title in _SHOWN_AT_ONCE],
        "more_figures": [figure for figure in figures if figure.title not in _SHOWN_AT_ONCE],
        "rollouts": rollout_steps(folder),
    }


def _figures(stage: StageSummary) -> list[Chart]:
    charts = []
    for title, legends, percent in _FIGURES:
        lines = {
            legend: points_of(stage["curves"][metric])
            for metric, legend in legends.items()
            if any(v is not None for v in stage["curves"].get(metric, {"values": []})["values"])
        }
        if lines:
            chart = line_chart(title, lines, percent=percent)
            steps = [step for metric in legends for step in stage["non_finite"].get(metric, [])]
            first = min(steps, default=None)
            charts.append(dataclasses.replace(chart, non_finite=len(steps), first_non_finite=first))
    return charts + _phases_chart(stage)


def _phases_chart(stage: StageSummary) -> list[Chart]:
    """Return the chart of the seconds of each phase over steps, if any are recorded."""
    phases = {name: dict(points_of(curve)) for name, curve in stage["seconds_by_phase"].items()}
    steps = sorted({step for seconds in phases.values() for step in seconds})
    if not steps:
        return []
    layers = {name: [(s, seconds.get(s)) for s in steps] for name, seconds in phases.items()}
    return [stacked_chart(_PHASES, layers)]


def _marks(evaluation: EvaluationSummary) -> dict[Mode, Mark]:
    marks: dict[Mode, Mark] = {}
    for mode in MODES:
        accuracy, interval = evaluation[mode]["accuracy"], evaluation[mode]["ci95"]
        if accuracy is not None:
            low, high = interval or (accuracy, accuracy)
            marks[mode] = (accuracy, low, high)
    return marks


def _family_table(
    stages: Sequence[StageView], key: Literal["by_source", "by_kind"], heading: str
) -> FamilyTable | None:
    columns = [
        (stage["title"], evaluation[key])
        for stage in stages
        if (evaluation := stage["evaluation"]) and evaluation[key]
    ]
    rows = []
    for name in sorted({name for _, families in columns for name in families}):
        cells = [families.get(name) for _, families in columns]
        counts = [cell["num"] for cell in cells if cell and cell["num"] is not None]
        rows.append(FamilyRow(name, max(counts, default=None), cells))
    return FamilyTable(heading, [title for title, _ in columns], rows) if rows else None
