"""What an honest table of a cycle needs beside it: the same data and compute, used otherwise.

filter    SFT-1 on the same answers under the other filters (OpenVLThinker, arXiv v1, Table 3)
restart   iteration 2 with SFT going on from GRPO-1, not from the base
single    SFT alone on the traces of iteration 1, and rejection sampling alone, each for as long as
          the whole cycle took; RL alone on all that the cycle asks in GRPO, in its order
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ovlt.config import Recipe
from ovlt.cycle.stages import Step, model_of, rows_of, step, steps
from ovlt.run.record import step_seconds

if TYPE_CHECKING:
    from ovlt.cycle.state import State

FILTERS = {
    "none": "SFT-1, nothing filtered",
    "max_words": "SFT-1, long traces left out",
    "reflections": "SFT-1, reflections removed",
}

# What `--controls=` takes.
ALL = ("single", "sft-only", "rejection", "rl-only", "restart", "filter", *FILTERS)


def chosen(step: Step, words: Sequence[str]) -> bool:
    """Whether a control is asked for by one of ``words``, of ``ALL``."""
    own = {step.comparison, step.name, step.name.rpartition("-")[2]}
    if step.table == "grpo" and step.name.endswith("-only"):
        own.add("rl-only")
    return not own.isdisjoint(words)


def controls(recipe: Recipe, state: State) -> Iterator[Step]:
    """Every control, in order: a stage of the cycle with a few keys changed. Each is made when it
    is asked for, since some need to know how long the stages before them took."""
    main = {s.name: s for s in steps(recipe)}
    yield from single(main, state)
    if len(recipe.cycle.iterations) > 1 and recipe.cycle.restart == "base":
        yield from restart(main)
    yield from filters(main)


def filters(main: dict[str, Step]) -> Iterator[Step]:
    """SFT-1 on what each other filter leaves of the answers that iteration 1 has."""
    for rule, title in FILTERS.items():
        if rule == main["distill1"].recipe.distill.filter:
            continue
        name = f"distill1-{rule}"
        keys = {"answers_of": "distill1", "filter": rule}
        yield changed(main["distill1"], name, f"Traces: {title}", keys, "filter")
        keys = {"data": rows_of(name)}
        yield changed(main["sft1"], f"sft1-{rule}", title, keys, "filter")


def restart(main: dict[str, Step]) -> Iterator[Step]:
    """Iteration 2 as it is, but for where its SFT starts."""
    last = model_of([s for s in main.values() if s.iteration == 1][-1].name)
    for old in [s for s in main.values() if s.iteration == 2 and s.table in ("sft", "grpo")]:
        name = f"{old.name}-continue"
        yield changed(old, name, f"{old.title}, going on from GRPO-1", {"start": last}, "restart")
        last = model_of(name)


def single(main: dict[str, Step], state: State) -> Iterator[Step]:
    """One method alone: with the traces of iteration 1 and the seconds of the whole cycle, or with
    the questions of all its GRPO."""
    sft1 = main["sft1"]
    budget = sum(
        state.seconds(s.name) if s.table == "distill" else sum(step_seconds(s.folder))
        for s in main.values()
        if s.table in ("distill", "sft", "grpo") and s.name != "distill1"
    )

    def steps_in(seconds: float) -> int:
        known = step_seconds(sft1.folder)
        return max(1, round(seconds / (sum(known) / len(known))))

    title = "SFT alone, compute of the cycle"
    yield changed(sft1, "sft-only", title, {"steps": steps_in(budget)}, "single")
    name = "distill-rejection"
    keys = {"teacher": "", "captioner": model_of("sft1")}
    yield changed(main["distill1"], name, "Traces of SFT-1 itself", keys, "single")
    left = budget - sum(step_seconds(sft1.folder)) - state.seconds(name)
    title = "Rejection sampling alone, compute of the cycle"
    keys = {"data": rows_of(name), "steps": steps_in(left)}
    yield changed(sft1, "sft-rejection", title, keys, "single")
    start, title = sft1.recipe.model.path, "RL alone, questions of"
    for old in [s for s in main.values() if s.table == "grpo"]:
        name = f"{old.name}-only"
        yield changed(old, name, f"{title} {old.title}", {"start": start}, "single")
        start, title = model_of(name), "RL alone, then those of"


def changed(old: Step, name: str, title: str, keys: dict[str, Any], comparison: str) -> Step:
    """A stage of the cycle under another name, with some keys of its table replaced."""
    return step(old.recipe, name, old.table, old.iteration, title, {old.table: keys}, comparison)
