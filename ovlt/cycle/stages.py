"""The stages of a cycle, in order, each with the recipe it runs with. Loads nothing heavy.

Iteration i distils traces (from a teacher in the first, from the model of iteration i - 1 later),
fine-tunes the base model on them, and improves the result by GRPO, in one stage or several.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ovlt.config import Recipe
from ovlt.config.load import recipe_from
from ovlt.config.trees import Tree, merged

Kind = Literal["evaluate", "distill", "sft", "grpo"]  # the command, and its recipe table
FIRST = "base_answers"


@dataclass(frozen=True)
class CycleStage:
    """One stage: ``ovlt TABLE`` with ``recipe``; its folder is ``recipe.folder/name``."""

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
        """The file or folder that later stages read; None if they read nothing of it."""
        if self.table == "evaluate":
            return None
        return self.folder / ("rows.parquet" if self.table == "distill" else "model")


def cycle_stages(recipe: Recipe) -> list[CycleStage]:
    """Return every stage of the cycle. Raises ValueError if the recipe of a stage is impossible."""
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
    stages = [stage_of(recipe, FIRST, "evaluate", 0, "Base", {"evaluate": {"model": base}})]
    last = base  # the newest model
    for number, iteration in enumerate(cycle.iterations, 1):
        start = base if cycle.restart == "base" else last
        keys: Tree = {"seed": recipe.run.seed}
        if number > 1:
            keys |= own_answers(last)
        name, title = f"distill{number}", f"Traces for SFT-{number}"
        changes = {"distill": keys | iteration.distill}
        stages.append(stage_of(recipe, name, "distill", number, title, changes))
        name, rows = f"sft{number}", rows_of(name)
        changes = by_table("sft", {"start": start, "data": rows} | iteration.sft)
        stages.append(stage_of(recipe, name, "sft", number, f"SFT-{number}", changes))
        last = model_of(name)
        for part in iteration.grpo:
            suffix = part.get("name", "")
            name = f"grpo{number}" + (f"-{suffix}" if suffix else "")
            title = f"GRPO-{number}" + (f" {suffix}" if suffix else "")
            changes = by_table("grpo", {"start": last} | part)
            stages.append(stage_of(recipe, name, "grpo", number, title, changes))
            last = model_of(name)
    return stages


def own_answers(model: str) -> Tree:
    """Return the keys of [distill] by which a model of this run answers the questions itself.

    With the keywords of its training: those of another captioner are not for its template.
    """
    return {"teacher": "", "captioner": model, "captioner_chat_template_kwargs": None}


def stage_of(
    recipe: Recipe,
    name: str,
    table: Kind,
    iteration: int,
    title: str,
    changes: Mapping[str, Mapping[str, object]],
    comparison: str = "",
) -> CycleStage:
    """Return a stage whose recipe has ``changes``, by table and key. Raises ValueError."""
    tree = recipe.resolved()
    tree["cycle"] = {}  # a stage is not a cycle: its record holds no plan of the others
    tree["evaluate"]["benchmark"]["names"] = ""  # asked of its model when the stage is done
    tree["run"]["resume"] = "auto"
    for key in ("validation", "held_out", "validation_questions"):
        tree["data"][key] = getattr(recipe.cycle, key) or tree["data"][key]
    tree = merged(tree, changes)
    tree[table]["stage"] = name
    if "title" in tree[table]:
        tree[table]["title"] = title
    return CycleStage(name, table, iteration, title, recipe_from(tree, f"stage {name}"), comparison)


def benchmarks_of(names: str, stage: CycleStage) -> Recipe | None:
    """Return the recipe that asks a finished stage's model the public benchmarks, if any.

    None if ``names`` is empty or the stage makes no model. Results go into the folder of the stage,
    where the report looks for them.
    """
    if not names or stage.table == "distill":
        return None
    model = stage.recipe.evaluate.model if stage.table == "evaluate" else str(stage.output)
    tree = stage.recipe.resolved()
    tree["evaluate"] |= {"model": model, "stage": f"{stage.name}-benchmarks"}
    tree["evaluate"]["benchmark"] |= {
        "names": names,
        "out": str(stage.folder / "benchmarks"),
    }
    return recipe_from(tree, f"benchmarks of {stage.name}")


# Tables besides its own of which a stage of an iteration may change keys.
SHARED = ("model", "engine", "reward")


def by_table(table: str, keys: Mapping[str, object]) -> Tree:
    """Sort the keys of an iteration's stage into tables; ``name`` has been used already."""
    changes: Tree = {table: {k: v for k, v in keys.items() if k not in (*SHARED, "name")}}
    return changes | {name: keys[name] for name in SHARED if name in keys}


def model_of(stage: str) -> str:
    """Return the path, as a recipe has it, of the model that a stage makes."""
    return f"{{folder}}/{stage}/model"


def rows_of(stage: str) -> str:
    """Return the path, as a recipe has it, of the rows that a distillation makes."""
    return f"{{folder}}/{stage}/rows.parquet"
