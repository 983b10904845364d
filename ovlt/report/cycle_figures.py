"""The charts and tables of a cycle for the template, from what ``ovlt.report.cycle`` has read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ovlt.report.charts import Chart, IntervalChart, Mark, interval_chart, points_of
from ovlt.report.cycle import ALL, comparisons, curve_stages, main_stages, reference_of
from ovlt.report.cycle_charts import BarChart, bars_chart, joined_chart, points_chart
from ovlt.report.summary import (
    MODES,
    Cycle,
    CycleDifference,
    CycleEntry,
    CycleSummary,
    Difference,
    DistillationSummary,
    GrpoCurves,
    Mode,
    Relation,
)

# title, {metric: legend}, percent
_DURING_GRPO: tuple[tuple[str, dict[str, str], bool], ...] = (
    ("Mean reward", {"reward/mean": "reward"}, False),
    (
        "Answer length, tokens",
        {"response/tokens_mean": "training", "val/tokens_mean": "validation"},
        False,
    ),
    ("Validation accuracy, %", {"val/greedy": "greedy", "val/sampled": "sampled"}, True),
)
# What a difference is to. If two are to the same stage, the first relation is named.
_RELATIONS: dict[Relation, str] = {
    "before": "the previous stage",
    "own_sft": "its SFT",
    "iteration_before": "the previous iteration",
    "reference": "",
}
_HEADINGS = {
    "filter": "SFT filters",
    "restart": "SFT from the base model, or from the model of the previous iteration",
    "single": "One method alone, or the whole cycle",
}


@dataclass(frozen=True)
class Change:
    """A row of a table of paired differences."""

    title: str
    note: str
    by_scope: dict[str, dict[Mode, Difference]]


@dataclass(frozen=True)
class Comparison:
    """Controls beside the stages of the cycle that they are measured against."""

    heading: str
    reference: str  # title of what the differences are to
    accuracy: IntervalChart | None
    change: IntervalChart | None
    rows: Sequence[CycleEntry]
    changes: Sequence[Change]


@dataclass(frozen=True)
class DistillationView:
    stages: Sequence[DistillationSummary]
    pass_columns: Sequence[str]
    figures: Sequence[BarChart]


@dataclass(frozen=True)
class CycleView:
    """What the template shows of a cycle."""

    problems: Sequence[str]
    scopes: Sequence[str]
    curves: Sequence[Chart]
    rows: Sequence[CycleEntry]
    changes: Sequence[Change]
    during_grpo: Sequence[Chart]
    keywords: BarChart | None
    comparisons: Sequence[Comparison]
    distillation: DistillationView


def cycle_view(cycle: CycleSummary) -> CycleView:
    """Return the charts and tables of a cycle. The tables show its stages as they are."""
    main = main_stages(cycle)
    curves = [_accuracy_curve(cycle, scope) for scope in cycle["scopes"]]
    return CycleView(
        problems=cycle["problems"],
        scopes=cycle["scopes"],
        curves=[chart for chart in curves if chart is not None],
        rows=main,  # distillations too, for their status and time
        changes=_changes(main),
        during_grpo=_during_grpo(cycle["during_grpo"]),
        keywords=_keywords(curve_stages(cycle)),
        comparisons=[
            _comparison(cycle, name, controls) for name, controls in comparisons(cycle).items()
        ],
        distillation=_distillation(cycle["distillation"]),
    )


def _accuracy_curve(cycle: Cycle, scope: str) -> Chart | None:
    stages = curve_stages(cycle)
    lines = {mode: [_mark(stage, scope, mode) for stage in stages] for mode in MODES}
    counts = {stage["accuracy"][scope][mode]["questions"] for stage in stages for mode in MODES}
    counts -= {None}
    questions = f" ({counts.pop()} questions)" if len(counts) == 1 else ""
    return points_chart(
        f"Accuracy, %: {scope}{questions}",
        [_short_title(stage) for stage in stages],
        {mode: marks for mode, marks in lines.items() if any(marks)},
    )


def _short_title(stage: CycleEntry) -> str:
    """Return what stands under a point: a title may have any length."""
    if not stage["iteration"]:
        return "Base"
    return f"{stage['table'].upper()[:4]}-{stage['iteration']}"


def _mark(stage: CycleEntry, scope: str, mode: Mode) -> Mark | None:
    result = stage["accuracy"][scope][mode]
    accuracy, interval = result["accuracy"], result["ci95"]
    if accuracy is None:
        return None
    low, high = interval or (accuracy, accuracy)
    return accuracy, low, high


def _changes(stages: Sequence[CycleEntry]) -> list[Change]:
    """Return every paired difference of these stages once."""
    changes: dict[tuple[str, str], Change] = {}
    for relation, note in _RELATIONS.items():
        for stage in stages:
            if difference := stage["difference"][relation]:
                title = f"{stage['title']} vs {difference['title']}"
                change = Change(title, note, difference["by_scope"])
                changes.setdefault((stage["name"], difference["to"]), change)
    return list(changes.values())


def _during_grpo(stages: Sequence[GrpoCurves]) -> list[Chart]:
    charts = []
    for title, legends, percent in _DURING_GRPO:
        segments = [
            (
                stage["title"],
                {
                    legend: points_of(curve)
                    for metric, legend in legends.items()
                    if (curve := stage["curves"].get(metric))
                },
            )
            for stage in stages
        ]
        charts.append(joined_chart(title, segments, percent=percent))
    return [chart for chart in charts if chart is not None]


def _keywords(stages: Sequence[CycleEntry]) -> BarChart | None:
    bars = [(_short_title(stage), stage["keywords"]) for stage in stages if stage["keywords"]]
    return _grouped_bars("Reasoning words, per greedy answer", bars)


def _comparison(cycle: Cycle, name: str, controls: Sequence[CycleEntry]) -> Comparison:
    """Return the controls of a comparison, after the stages that they are measured against.

    The filters have the base model too, as in Table 3 of the paper: training on unfiltered traces
    can end below it.
    """
    main = main_stages(cycle)
    references = {
        reference["name"]: reference
        for control in controls
        if (reference := reference_of(control, main)) is not None
    }
    base = [stage for stage in main if stage["table"] == "evaluate"] if name == "filter" else []
    stages = [*base, *references.values(), *controls]
    titles = [reference["title"] for reference in references.values()]
    changes = [
        (stage["title"], _change_marks(difference))
        for stage in controls
        if (difference := stage["difference"]["reference"])
    ]
    return Comparison(
        heading=_HEADINGS.get(name, name),
        reference=titles[0] if len(titles) == 1 else "the same stage of the cycle",
        accuracy=interval_chart([(s["title"], marks) for s in stages if (marks := _marks(s))]),
        change=interval_chart(changes, signed=True),
        rows=stages,
        changes=_changes(controls),
    )


def _marks(stage: CycleEntry) -> dict[Mode, Mark]:
    return {mode: mark for mode in MODES if (mark := _mark(stage, ALL, mode)) is not None}


def _change_marks(difference: CycleDifference) -> dict[Mode, Mark]:
    return {
        mode: (d["mean"], d["mean"] - d["half_width"], d["mean"] + d["half_width"])
        for mode, d in difference["by_scope"].get(ALL, {}).items()
    }


def _distillation(stages: Sequence[DistillationSummary]) -> DistillationView:
    funnels = [(s["title"], {step: count for count, step in s["funnel"]}) for s in stages]
    keywords = [(stage["title"], stage["keywords"]) for stage in stages]
    columns = _in_order(rates for stage in stages for rates in stage["pass"].values())
    charts = [
        _grouped_bars("Questions left after each filter", funnels),
        _grouped_bars("Reasoning words, per kept trace", keywords),
        *map(_words_per_trace, stages),
    ]
    return DistillationView(
        stages=stages,
        pass_columns=[name for name in columns if name.startswith("pass@")],
        figures=[chart for chart in charts if chart is not None],
    )


def _grouped_bars(title: str, bars: Sequence[tuple[str, Mapping[str, float]]]) -> BarChart | None:
    """Return a chart of bars: (legend, {label: value}), a row for each label in any of them."""
    labels = _in_order(values for _, values in bars)
    rows = [(legend, [values.get(label) for label in labels]) for legend, values in bars]
    return bars_chart(title, labels, rows)


def _in_order(groups: Iterable[Iterable[str]]) -> list[str]:
    """Return the distinct names of several groups, in the order in which they first appear."""
    return list(dict.fromkeys(name for group in groups for name in group))


def _words_per_trace(stage: DistillationSummary) -> BarChart | None:
    return bars_chart(
        f"Words per trace: {stage['title']}",
        [f"{low:g}\u2013{high - 1:g}" for low, high, _ in stage["words"]],
        [("kept traces", [count for _, _, count in stage["words"]])],
    )
