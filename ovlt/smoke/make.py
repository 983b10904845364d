"""Makes what a recipe needs and lacks, if the recipe says how: world, base model, SFT model.

So ``ovlt grpo`` alone works from nothing. Only files inside [synthetic].folder and models that the
recipe's own stages produce are ever made; a user's missing file stays an error. Stages run as
processes of their own with a resolved recipe, as everything else does.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ovlt.config import BaseConfig, Recipe, TeacherConfig
from ovlt.config.load import recipe_from
from ovlt.config.trees import Tree, merged
from ovlt.smoke.world import ensure_world, make_once, write_lessons
from ovlt.system.files import read_json, write_json
from ovlt.system.launch import python_module, torchrun, write_recipe

if TYPE_CHECKING:
    from ovlt.system.runtime import Runtime  # which loads torch


def ensure_inputs(runtime: Runtime, recipe: Recipe, stage: str) -> None:
    """Let rank 0 make what ``stage`` lacks while the others wait. Collective."""
    if runtime.is_main:
        make_missing(recipe, stage, runtime.world_size)
    runtime.barrier()


def make_missing(recipe: Recipe, stage: str, ranks: int) -> None:
    """Make the world, base model, SFT model and teacher for ``stage``, as far as they are missing.

    ``stage`` is 'sft', 'grpo', 'distill' or 'evaluate'; models are trained on ``ranks`` processes.
    Raises ValueError if what is there was made with other settings.
    """
    table = getattr(recipe, stage)
    inputs = SmokeInputs(recipe, ranks)
    world = Path(recipe.synthetic.folder)
    files = [table.data, recipe.data.validation, recipe.data.held_out]
    if stage == "evaluate" and (table.benchmark.names or table.benchmark.restyle):
        files = []  # a public benchmark is asked, and nothing of the world
    if any(path and Path(recipe.expand(path)).parent == world for path in files):
        ensure_world(recipe.synthetic)
    key = {"distill": "captioner", "evaluate": "model"}.get(stage, "start")
    model = Path(recipe.expand(getattr(table, key) or recipe.model.path))
    if stage == "distill" and Path(recipe.expand(table.teacher)) == inputs.teacher_model:
        inputs.ensure_teacher()
    if model == inputs.base_model and not (stage == "evaluate" and table.benchmark.restyle):
        inputs.ensure_base()
    sft_model = recipe.folder / recipe.sft.stage / "model"
    if stage == "grpo" and model == sft_model and not model.is_dir():
        print(f"{model} is not there yet: running ovlt sft first", flush=True)
        run_stage("sft", recipe, ranks)


def run_stage(stage: str, recipe: Recipe, ranks: int) -> None:
    """Run ``ovlt STAGE`` with this recipe in processes of its own. Raises SystemExit on failure."""
    table = getattr(recipe, stage)
    if stage == "distill" and not table.ranks and table.engine.tensor_parallel == 1:
        recipe = recipe_from(merged(recipe.resolved(), {"distill": {"ranks": ranks}}))
    path = write_recipe(recipe, recipe.folder / "recipes" / f"{table.stage}.json")
    if stage == "distill":  # it starts its ranks itself
        python_module("ovlt.distill", [str(path)])
    else:
        torchrun(f"ovlt.{stage}", path, ranks)


def is_done(folder: Path) -> bool:
    """Return whether the stage of this folder has come to its end."""
    record = folder / "stage.json"
    return record.is_file() and read_json(record)["status"] == "done"


@dataclass(frozen=True)
class SmokeInputs:
    """The world, base model and teacher that a recipe's own tables say how to make.

    Attributes:
        recipe: its [synthetic], [base] and [teacher] decide what is made; the rest is how stages
            run.
        ranks: processes that a model is trained on.
    """

    recipe: Recipe
    ranks: int = 1

    @property
    def base_model(self) -> Path:
        return Path(self.recipe.base.folder) / "model"

    @property
    def teacher_model(self) -> Path:
        return Path(self.recipe.teacher.folder) / "model"

    def makes(self, path: Path) -> bool:
        """Return whether ``path`` is made here if it is missing."""
        tables = (self.recipe.synthetic, self.recipe.base, self.recipe.teacher)
        return any(path.is_relative_to(table.folder) for table in tables)

    def ensure_base(self) -> None:
        """Make the base model from nothing unless it is there. Raises ValueError as _is_made."""
        folder = Path(self.recipe.base.folder)
        record = folder / "base.json"
        tree = self.recipe.resolved()
        decisive = ("families", "size", "seed", "base_rows", "base_mixture")
        world = {key: value for key, value in tree["synthetic"].items() if key in decisive}
        settings = {"base": tree["base"], "synthetic": world}

        def make() -> None:
            print(f"{self.base_model} is not there yet: making a base model first", flush=True)
            ensure_world(self.recipe.synthetic)
            path = write_recipe(self.recipe, folder / "recipe.base.json")
            python_module("ovlt.smoke.base", [str(path)])
            write_json(record, settings)
            run_stage("sft", self.base_recipe(), self.ranks)

        make_once(folder, lambda: _is_made(folder, record, settings, "base"), make)

    def base_recipe(self) -> Recipe:
        """Return the recipe whose SFT stage teaches the untrained model to see."""
        base, world = self.recipe.base, Path(self.recipe.synthetic.folder)
        folder = Path(base.folder)
        tree = self.recipe.resolved()
        tree["run"] |= {"folder": str(folder.parent), "seed": base.seed, "resume": "auto"}
        # The same base for every recipe: one that freezes the tower would freeze it unlearned.
        tree["model"] |= {"freeze_vision": False}
        # Measured by what it is for: held-out images described exactly, greedily.
        tree["data"] |= {"held_out": str(world / "captions.parquet")}
        tree["reward"] |= {"function": "exact", "verdict": ""}
        tree["evaluate"] |= {"data": "", "n": 0, "limit": 0}
        title = "Base: captions, short answers, text-only reasoning"
        tree["sft"] = _lesson(base, title, folder / "untrained", world / "base.parquet")
        return recipe_from(tree)

    def ensure_teacher(self) -> None:
        """Make the text-only teacher of the base model unless it is there.

        Raises ValueError as _is_made.
        """
        teacher, folder = self.recipe.teacher, Path(self.recipe.teacher.folder)
        record = folder / "teacher.json"
        settings = self.recipe.resolved()["teacher"]

        def make() -> None:
            self.ensure_base()
            print(f"{self.teacher_model} is not there yet: teaching a teacher first", flush=True)
            lessons = folder / "rows.parquet"
            write_lessons(self.recipe.synthetic, teacher, lessons)
            write_json(record, settings)
            tree = self.recipe.resolved()
            tree["run"] |= {"folder": str(folder.parent), "seed": 0, "resume": "auto"}
            tree["data"] |= {"held_out": "", "validation": ""}
            title = "Teacher: caption and question -> trace"
            tree["sft"] = _lesson(teacher, title, self.base_model, lessons)
            run_stage("sft", recipe_from(tree), self.ranks)

        make_once(folder, lambda: _is_made(folder, record, settings, "teacher"), make)


def _lesson(table: BaseConfig | TeacherConfig, title: str, start: Path, data: Path) -> Tree:
    """Return the [sft] table by which [base] or [teacher] is taught."""
    return {
        "stage": Path(table.folder).name,
        "title": title,
        "start": str(start),
        "data": str(data),
        "steps": table.steps,
        "batch_samples": table.batch_samples,
        "token_budget": table.token_budget,
        "optim": table.optim.model_dump(mode="json"),
    }


def _is_made(folder: Path, record: Path, settings: Tree, what: str) -> bool:
    """Return whether a model is in ``folder``, complete and made with ``settings``.

    Raises ValueError if it holds, whole or in part, one that was made with others.
    """
    if record.is_file() and read_json(record) == settings:
        return is_done(folder)
    if record.is_file() or (folder / "model").is_dir():
        raise ValueError(
            f"{folder} holds a {what} model made with other [{what}] or [synthetic] settings: "
            f"delete that folder to make it anew, or give another --{what}.folder"
        )
    return False
