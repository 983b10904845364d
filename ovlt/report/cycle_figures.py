"""The figures of a cycle for the template: what ``ovlt.report.cycle`` has read, drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ovlt.report.charts import interval_chart
from ovlt.report.cycle import ALL, MODES, comparisons, curve_stages, main_stages, reference_of
from ovlt.report.cycle_charts import Mark, bars_chart, joined_chart, points_chart

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
_RELATIONS = {  # what a difference is to; where two are the same, the first is named
    "before": "the stage before",
    "own_sft": "its SFT",
    "iteration_before": "the iteration before",
    "reference": "",
}
_HEADINGS = {
    "filter": "SFT filters",
    "restart": "SFT from the base, or on from the model of the iteration before",
    "single": "One method alone, or iterations",
}


def cycle_view(cycle: dict[str, Any]) -> dict[str, Any]:
    """``cycle``: that of summary.json. The tables show its stages as they are."""
    main = main_stages(cycle)
    return {
        "problems": cycle["problems"],
        "curves": [
            figure for scope in cycle["scopes"] if (figure := _curve(cycle, scope)) is not None
        ],
        "scopes": cycle["scopes"],
        "rows": main,  # distillation too, for its status and its time
        "changes": _changes(main),
        "during_grpo": _during_grpo(cycle["during_grpo"]),
        "keywords": _keywords(curve_stages(cycle)),
        "comparisons": [
            _comparison(cycle, name, controls) for name, controls in comparisons(cycle).items()
        ],
        "distillation": _distillation(cycle["distillation"]),
    }


def _curve(cycle: dict[str, Any], scope: str) -> dict[str, Any] | None:
    stages = curve_stages(cycle)
    labels = [_short(stage) for stage in stages]
    lines = {mode: [_mark(stage, scope, mode) for stage in stages] for mode in MODES}
    counts = {stage["accuracy"][scope][mode]["questions"] for stage in stages for mode in MODES}
    counts -= {None}
    number = f" ({counts.pop()} questions)" if len(counts) == 1 else ""
    lines = {mode: marks for mode, marks in lines.items() if any(marks)}
    return points_chart(f"Accuracy, %: {scope}{number}", labels, lines)


def _short(stage: dict[str, Any]) -> str:
    """What stands under a point; a title may be any length."""
    if not stage["iteration"]:
        return "Base"
    return f"{stage['table'].upper()[:4]}-{stage['iteration']}"


def _mark(stage: dict[str, Any], scope: str, mode: str) -> Mark | None:
    accuracy, interval = (stage["accuracy"][scope][mode][key] for key in ("accuracy", "ci95"))
    return None if accuracy is None else (accuracy, *(interval or (accuracy, accuracy)))


def _changes(stages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every paired difference of these stages, each once."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for relation, note in _RELATIONS.items():
        for stage in stages:
            if difference := stage["difference"][relation]:
                title = f"{stage['title']} vs {difference['title']}"
                row = {"title": title, "note": note, "by_scope": difference["by_scope"]}
                found.setdefault((stage["name"], difference["to"]), row)
    return list(found.values())


def _during_grpo(stages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    figures = []
    for title, names, percent in _DURING_GRPO:
        parts = [
            (
                stage["title"],
                {
                    legend: list(zip(curve["steps"], curve["values"], strict=True))
                    for name, legend in names.items()
                    if (curve := stage["curves"].get(name))
                },
            )
            for stage in stages
        ]
        figures.append(joined_chart(title, parts, percent=percent))
    return [figure for figure in figures if figure is not None]


def _keywords(stages: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    words = dict.fromkeys(word for stage in stages for word in stage["keywords"])
    return bars_chart(
        "Reasoning words, per greedy answer",
        list(words),
        [
            (_short(stage), [stage["keywords"].get(word) for word in words])
            for stage in stages
            if stage["keywords"]
        ],
    )


def _comparison(
    cycle: dict[str, Any], name: str, controls: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """References before the controls that are measured against them; for the filters, the base
    model too (Table 3 has it: learning from unfiltered traces can end below it)."""
    main = main_stages(cycle)
    found = {stage["name"]: stage for stage in controls}
    references = {
        reference["name"]: reference
        for control in controls
        if (reference := reference_of(control, main)) is not None
    }
    base = [stage for stage in main if stage["table"] == "evaluate"] if name == "filter" else []
    stages = [*base, *references.values(), *found.values()]
    accuracy = [
        {"label": stage["title"], "marks": _marks(stage)} for stage in stages if _marks(stage)
    ]
    change = [
        {"label": stage["title"], "marks": _change_marks(stage["difference"]["reference"])}
        for stage in controls
        if stage["difference"]["reference"]
    ]
    return {
        "heading": _HEADINGS.get(name, name),
        "reference": (
            next(iter(references.values()))["title"]
            if len(references) == 1
            else "the same stage of the cycle"
        ),
        "accuracy": interval_chart(accuracy),
        "change": interval_chart(change, signed=True),
        "rows": stages,
        "changes": _changes(controls),
    }


def _marks(stage: dict[str, Any]) -> dict[str, Mark]:
    return {mode: mark for mode in MODES if (mark := _mark(stage, ALL, mode)) is not None}


def _change_marks(difference: dict[str, Any]) -> dict[str, Mark]:
    return {
        mode: (d["mean"], d["mean"] - d["half_width"], d["mean"] + d["half_width"])
        for mode, d in difference["by_scope"].get(ALL, {}).items()
    }


def _distillation(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    steps = dict.fromkeys(step for one in found for _, step in one["funnel"])
    words = dict.fromkeys(word for one in found for word in one["keywords"])
    columns = dict.fromkeys(
        name for one in found for rates in one["pass"].values() for name in rates
    )
    funnels = [(one["title"], {step: count for count, step in one["funnel"]}) for one in found]
    return {
        "stages": found,
        "pass_columns": [name for name in columns if name.startswith("pass@")],
        "figures": [
            figure
            for figure in (
                bars_chart(
                    "Questions, from asked to kept",
                    list(steps),
                    [(title, [own.get(step) for step in steps]) for title, own in funnels],
                ),
                bars_chart(
                    "Reasoning words, per kept trace",
                    list(words),
                    [(one["title"], [one["keywords"].get(w) for w in words]) for one in found],
                ),
                *(
                    bars_chart(
                        f"Words per trace: {one['title']}",
                        [f"{low:g}\u2013{high - 1:g}" for low, high, _ in one["words"]],
                        [("kept traces", [count for _, _, count in one["words"]])],
                    )
                    for one in found
                ),
            )
            if figure is not None
        ],
    }
