"""What an honest table of a cycle needs beside it: the same data and compute, used otherwise.

filter    SFT-1 on the same answers under the other filters (OpenVLThinker, arXiv v1, Table 3)
restart   iteration 2 with SFT going on from GRPO-1, not from the base
single    SFT alone, rejection sampling alone, RL alone: for as long as the whole cycle took
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ovlt.config import Recipe
from ovlt.cycle_steps import Step, model_of, overlay, rows_of, step, steps

if TYPE_CHECKING:
    from ovlt.cycle_state import State

FILTERS = {
    "none": "SFT-1, nothing filtered",
    "max_words": "SFT-1, long traces left out",
    "reflections": "SFT-1, reflections removed",
}


def controls(recipe: Recipe, state: State) -> Iterator[Step]:
    """Every control, in order; each is made when it is asked for, since some need to know how long
    the stages before them took."""
    main = {s.name: s for s in steps(recipe)}
    yield from single(recipe, main, state)
    if len(recipe.cycle.iterations) > 1 and recipe.cycle.restart == "base":
        yield from restart(recipe)
    yield from filters(recipe, main["distill1"])


def filters(recipe: Recipe, first: Step) -> Iterator[Step]:
    """SFT-1 on what each other filter leaves of the answers that iteration 1 has."""
    for rule, title in FILTERS.items():
        if rule == first.recipe.distill.filter:
            continue
        ruled = {"answers_of": "distill1", "filter": rule}
        laid = {"distill": recipe.cycle.iterations[0].distill | ruled}
        name = f"distill1-{rule}"
        yield step(recipe, name, "distill", 1, f"Traces: {title}", laid, "filter")
        given = {"start": recipe.model.path, "data": rows_of(name)}
        laid = overlay("sft", given, recipe.cycle.iterations[0].sft)
        yield step(recipe, f"sft1-{rule}", "sft", 1, title, laid, "filter")


def restart(recipe: Recipe) -> Iterator[Step]:
    """Iteration 2 as it is, but for where its SFT starts."""
    iteration = recipe.cycle.iterations[1]
    last = [s for s in steps(recipe) if s.iteration == 1][-1].name
    given = {"start": model_of(last), "data": rows_of("distill2")}
    name = "sft2-continue"
    laid = overlay("sft", given, iteration.sft)
    yield step(recipe, name, "sft", 2, "SFT-2 from GRPO-1", laid, "restart")
    for part in iteration.grpo:
        laid = overlay("grpo", {"start": model_of(name)}, part)
        name = "-".join(filter(None, ["grpo2-continue", part.get("name", "")]))
        yield step(recipe, name, "grpo", 2, "GRPO-2 after that", laid, "restart")


def single(recipe: Recipe, main: dict[str, Step], state: State) -> Iterator[Step]:
    """One method alone, with the traces of iteration 1 and the seconds of the whole cycle."""
    iteration = recipe.cycle.iterations[0]
    per_step = stage_seconds(main["sft1"]) / stage_steps(main["sft1"])
    budget = sum(
        state.seconds(s.name) if s.table == "distill" else stage_seconds(s)
        for s in main.values()
        if s.table in ("distill", "sft", "grpo") and s.name != "distill1"
    )
    base = recipe.model.path

    def sft(name: str, title: str, data: str, seconds: float) -> Step:
        given = {"start": base, "data": rows_of(data)}
        laid = overlay("sft", given, iteration.sft)
        laid["sft"]["steps"] = max(1, round(seconds / per_step))
        return step(recipe, name, "sft", 0, title, laid, "single")

    yield sft("sft-only", "SFT alone, compute of the cycle", "distill1", budget)
    asked = {"teacher": "", "captioner": model_of("sft1")}
    later = recipe.cycle.iterations[-1].distill
    yield step(
        recipe, "distill-rejection", "distill", 0, "Traces of SFT-1 itself",
        {"distill": later | asked}, "single",
    )  # fmt: skip
    left = budget - stage_seconds(main["sft1"]) - state.seconds("distill-rejection")
    title = "Rejection sampling alone, compute of the cycle"
    yield sft("sft-rejection", title, "distill-rejection", left)
    part = iteration.grpo[0]
    laid = overlay("grpo", {"start": base}, part)
    yield step(recipe, "grpo-only", "grpo", 0, "RL alone, from the base", laid, "single")


def stage_steps(step: Step) -> int:
    return len(_seconds(step))


def stage_seconds(step: Step) -> float:
    """Seconds of a stage's steps, validation and saving left out."""
    return sum(_seconds(step))


def _seconds(step: Step) -> list[float]:
    from ovlt.metrics import read_metrics

    idle = ("validation", "checkpoint")
    lines = read_metrics(step.folder)
    return [sum(v for k, v in line["seconds"].items() if k not in idle) for line in lines]
