"""The stages of a cycle, in order, each with the recipe it runs with. Loads nothing heavy.

Iteration i distils traces (from a teacher in the first, from the model of iteration i - 1 later),
fine-tunes the base model on them, and improves the result by GRPO, in one part or several.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ovlt.config import Recipe
from ovlt.config.load import recipe_from
from ovlt.config.trees import merged

Kind = Literal["evaluate", "distill", "sft", "grpo"]
FIRST = "base_answers"


@dataclass(frozen=True)
class Step:
    """One stage: ``python -m ovlt.TABLE`` with ``recipe``; its folder is ``recipe.folder/name``."""

    name: str
    table: Kind
    iteration: int  # 0: before the first
    title: str
    recipe: Recipe
    comparison: str = ""  # what it is a control for; empty: a stage of the cycle itself

    @property
    def folder(self) -> Path:
        return self.recipe.folder / self.name

    @property
    def output(self) -> Path | None:
        """What later stages take from it."""
        return {
            "distill": self.folder / "rows.parquet",
            "sft": self.folder / "model",
            "grpo": self.folder / "model",
        }.get(self.table)


def steps(recipe: Recipe) -> list[Step]:
    """Every stage of the cycle. Raises ValueError where a stage's recipe is impossible."""
    cycle = recipe.cycle
    if not cycle.iterations:
        raise ValueError(
            "the recipe has no [[cycle.iterations]]: one such line for each iteration is enough"
        )
    if not recipe.distill.teacher and not cycle.iterations[0].distill.get("teacher"):
        raise ValueError(
            "iteration 1 has nobody to learn from: name distill.teacher, a text-only reasoner "
            "(later iterations learn from the model of the one before)"
        )
    base = recipe.model.path
    found = [step(recipe, FIRST, "evaluate", 0, "Base", {"evaluate": {"model": base}})]
    last = base  # the model of the iteration before
    for number, iteration in enumerate(cycle.iterations, 1):
        start = base if cycle.restart == "base" else last
        asked: dict[str, Any] = {"seed": recipe.run.seed}
        if number > 1:
            asked |= {"teacher": "", "captioner": last}
        name = f"distill{number}"
        laid = {"distill": asked | iteration.distill}
        found.append(step(recipe, name, "distill", number, f"Traces for SFT-{number}", laid))
        name, rows = f"sft{number}", rows_of(name)
        laid = overlay("sft", {"start": start, "data": rows}, iteration.sft)
        found.append(step(recipe, name, "sft", number, f"SFT-{number}", laid))
        last = model_of(name)
        for part in iteration.grpo:
            name = "-".join(["grpo" + str(number), *filter(None, [part.get("name", "")])])
            title = f"GRPO-{number}" + (f" {part['name']}" if part.get("name") else "")
            laid = overlay("grpo", {"start": last}, part)
            found.append(step(recipe, name, "grpo", number, title, laid))
            last = model_of(name)
    return found


def step(
    recipe: Recipe,
    name: str,
    table: Kind,
    iteration: int,
    title: str,
    laid: Mapping[str, Any],
    comparison: str = "",
) -> Step:
    """A stage that runs with ``laid`` over the recipe, by table and key. Raises ValueError."""
    tree = recipe.resolved()
    tree["cycle"] = {}  # a stage is not a cycle: its record holds no plan of the others
    tree["run"]["resume"] = "auto"
    for key in ("validation", "held_out", "validation_questions"):
        tree["data"][key] = getattr(recipe.cycle, key) or tree["data"][key]
    tree = merged(tree, laid)
    tree[table]["stage"] = name
    if "title" in tree[table]:
        tree[table]["title"] = title
    return Step(name, table, iteration, title, recipe_from(tree, f"stage {name}"), comparison)


# Tables besides its own of which a stage of an iteration may hold keys.
SHARED = ("model", "engine", "reward")


def overlay(table: str, given: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Sort the keys of an iteration's stage into tables; ``name`` has been used already."""
    keys = dict(given) | {k: v for k, v in own.items() if k not in (*SHARED, "name")}
    return {table: keys} | {name: own[name] for name in SHARED if name in own}


def model_of(stage: str) -> str:
    return f"{{folder}}/{stage}/model"


def rows_of(stage: str) -> str:
    return f"{{folder}}/{stage}/rows.parquet"
