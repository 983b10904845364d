"""The controls of a cycle: its data and its compute, used in another way.

filter    SFT-1 on the same answers under the other filters (OpenVLThinker, arXiv v1, Table 3)
restart   iteration 2 with SFT that starts from GRPO-1, not from the base
single    SFT alone on the traces of iteration 1, and rejection sampling alone, each for as long as
          the whole cycle took; RL alone on all questions of the cycle's GRPO, in its order
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ovlt.cycle.record import CycleRecord
from ovlt.cycle.stages import CycleStage, model_of, own_answers, rows_of, stage_of
from ovlt.run.record import step_seconds

FILTERS = {
    "none": "SFT-1, nothing filtered",
    "max_words": "SFT-1, long traces left out",
    "reflections": "SFT-1, reflections removed",
}

# What `--controls=` takes.
ALL = ("single", "sft-only", "rejection", "rl-only", "restart", "filter", *FILTERS)


def is_chosen(control: CycleStage, words: Sequence[str]) -> bool:
    """Return whether one of ``words``, all of ``ALL``, chooses a control."""
    names = {control.comparison, control.name, control.name.rpartition("-")[2]}
    if control.table == "grpo" and control.name.endswith("-only"):
        names.add("rl-only")
    return not names.isdisjoint(words)


def controls(
    stages: Sequence[CycleStage], record: CycleRecord, *, restarts: bool
) -> Iterator[CycleStage]:
    """Yield every control of the cycle whose ``stages`` are done, in order.

    Lazily, because some need to know how long the controls before them took. ``restarts``: the
    SFT of every iteration starts from the base model, so starting from GRPO-1 is another thing.
    """
    main = {stage.name: stage for stage in stages}
    yield from single(main, record)
    if restarts and stages[-1].iteration > 1:
        yield from restart(main)
    yield from filters(main)


def filters(main: Mapping[str, CycleStage]) -> Iterator[CycleStage]:
    """Yield SFT-1 on what each other filter leaves of the answers of iteration 1."""
    for rule, title in FILTERS.items():
        if rule == main["distill1"].recipe.distill.filter:
            continue
        name = f"distill1-{rule}"
        keys = {"answers_of": "distill1", "filter": rule}
        yield changed(main["distill1"], name, f"Traces: {title}", keys, "filter")
        keys = {"data": rows_of(name)}
        yield changed(main["sft1"], f"sft1-{rule}", title, keys, "filter")


def restart(main: Mapping[str, CycleStage]) -> Iterator[CycleStage]:
    """Yield the stages of iteration 2 with an SFT that starts from the end of iteration 1."""
    last = model_of([stage for stage in main.values() if stage.iteration == 1][-1].name)
    for stage in main.values():
        if stage.iteration == 2 and stage.table in ("sft", "grpo"):
            name = f"{stage.name}-continue"
            title = f"{stage.title}, going on from GRPO-1"
            yield changed(stage, name, title, {"start": last}, "restart")
            last = model_of(name)


def single(main: Mapping[str, CycleStage], record: CycleRecord) -> Iterator[CycleStage]:
    """Yield one method alone.

    SFT and rejection sampling have the traces of iteration 1 and the seconds of the whole cycle,
    RL has the questions of all its GRPO stages.
    """
    sft1 = main["sft1"]
    of_sft1 = step_seconds(sft1.folder)
    budget = sum(
        record.seconds(stage.name) if stage.table == "distill" else sum(step_seconds(stage.folder))
        for stage in main.values()
        if stage.table in ("distill", "sft", "grpo") and stage.name != "distill1"
    )

    def steps_in(seconds: float) -> int:
        return max(1, round(seconds / (sum(of_sft1) / len(of_sft1))))

    title = "SFT alone, compute of the cycle"
    yield changed(sft1, "sft-only", title, {"steps": steps_in(budget)}, "single")
    name = "distill-rejection"
    answers = own_answers(model_of("sft1"))
    yield changed(main["distill1"], name, "Traces of SFT-1 itself", answers, "single")
    left = budget - sum(of_sft1) - record.seconds(name)
    title = "Rejection sampling alone, compute of the cycle"
    keys = {"data": rows_of(name), "steps": steps_in(left)}
    yield changed(sft1, "sft-rejection", title, keys, "single")
    start, title = sft1.recipe.model.path, "RL alone, questions of"
    for stage in [stage for stage in main.values() if stage.table == "grpo"]:
        name = f"{stage.name}-only"
        yield changed(stage, name, f"{title} {stage.title}", {"start": start}, "single")
        start, title = model_of(name), "RL alone, then those of"


def changed(
    stage: CycleStage, name: str, title: str, keys: Mapping[str, object], comparison: str
) -> CycleStage:
    """Return a stage of the cycle under another name, with some keys of its table replaced."""
    changes = {stage.table: keys}
    return stage_of(stage.recipe, name, stage.table, stage.iteration, title, changes, comparison)
