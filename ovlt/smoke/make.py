"""Makes what a recipe needs and lacks, where the recipe says how: world, base model, SFT model.

So ``torchrun -m ovlt.grpo`` alone works from nothing. Only files inside [synthetic].folder and
models that the recipe's own stages produce are ever made; a user's missing file stays an error.
Stages run as processes of their own with a resolved recipe, as everything else does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ovlt.config import BaseConfig, Recipe, TeacherConfig
from ovlt.config.changes import changes_between
from ovlt.config.load import recipe_from, write_recipe
from ovlt.config.trees import merged
from ovlt.system.files import held, read_json, write_json
from ovlt.system.launch import python_module, torchrun

if TYPE_CHECKING:
    from ovlt.data.worlds.synthetic import Item
    from ovlt.system.runtime import Runtime


def ensure_inputs(runtime: Runtime, recipe: Recipe, stage: str) -> None:
    """Rank 0 makes what ``stage`` lacks; the others wait. Collective."""
    if runtime.is_main:
        make_missing(recipe, stage, runtime.world_size)
    runtime.barrier()


def make_missing(recipe: Recipe, stage: str, ranks: int) -> None:
    """World, base, SFT model and teacher for ``stage`` ('sft', 'grpo', 'distill' or 'evaluate'), as
    far as they are missing."""
    table = getattr(recipe, stage)
    world = Path(recipe.synthetic.folder)
    wanted = [table.data, recipe.data.validation, recipe.data.held_out]
    if any(path and Path(recipe.expand(path)).parent == world for path in wanted):
        ensure_world(recipe)
    first = {"distill": "captioner", "evaluate": "model"}.get(stage, "start")
    start = Path(recipe.expand(getattr(table, first) or recipe.model.path))
    if stage == "distill" and Path(recipe.expand(table.teacher)) == teacher_model(recipe):
        ensure_teacher(recipe, ranks)
    if start == base_model(recipe):
        ensure_base(recipe, ranks)
    elif stage == "grpo" and start == sft_model(recipe) and not start.is_dir():
        print(f"{start} is not there yet: running ovlt.sft first", flush=True)
        run_stage("sft", recipe, ranks)


def base_model(recipe: Recipe) -> Path:
    return Path(recipe.base.folder) / "model"


def teacher_model(recipe: Recipe) -> Path:
    return Path(recipe.teacher.folder) / "model"


def sft_model(recipe: Recipe) -> Path:
    return recipe.folder / recipe.sft.stage / "model"


def _made(folder: Path, is_there: Callable[[], bool], make: Callable[[], None]) -> None:
    """Make what is not there; of several processes that need it, one does, the others wait."""
    if not is_there():
        with held(folder / "making.lock"):
            if not is_there():
                make()


def ensure_world(recipe: Recipe) -> None:
    """Write the synthetic files unless they are there.

    Raises ValueError where they are there for other settings: models were made from them."""
    world = recipe.synthetic
    folder = Path(world.folder)
    record = folder / "world.json"
    wanted = world.model_dump(mode="json", exclude={"folder"})

    def is_there() -> bool:
        if not record.is_file():
            return False
        then = {key: value for key, value in read_json(record).items() if key != "folder"}
        if changes := changes_between(then, wanted):
            raise ValueError(
                f"{folder} holds a world drawn with other settings: synthetic."
                f"{'; synthetic.'.join(text for _, text in changes[:3])}: put them back, delete "
                "that folder, or give another --synthetic.folder"
            )
        return True

    def make() -> None:
        _draw_world(recipe)
        write_json(record, wanted)

    _made(folder, is_there, make)


def _draw_world(recipe: Recipe) -> None:
    from ovlt.data.worlds import synthetic

    world, folder = recipe.synthetic, Path(recipe.synthetic.folder)
    print(f"drawing the synthetic world into {folder}", flush=True)
    spec = synthetic.WorldSpec(size=world.size)

    def items(
        split: str, count: int, stream: int, kinds: Sequence[str] | None = None
    ) -> Iterator[Item]:
        """Seeded by the stream; of the families that have one of ``kinds``."""
        seed = world.seed * 1000 + stream
        able = {
            name: share
            for name, share in world.families.items()
            if kinds is None or set(kinds) & set(synthetic.FAMILIES[name].kinds)
        }
        return synthetic.generate(able, split, count, seed, spec, kinds)

    rows = synthetic.base_rows(items("train", world.base_rows, 1), world.base_mixture, world.seed)
    synthetic.write_sft(rows, folder / "base.parquet")
    rows = synthetic.trace_rows(items("train", world.sft_rows, 2), world.styles, world.seed)
    synthetic.write_sft(rows, folder / "sft.parquet")
    synthetic.write_questions(items("train", world.grpo_rows, 3), folder / "grpo.parquet")
    asked = (("validation", world.validation_rows, 4), ("held_out", world.held_out_rows, 6))
    for split, count, stream in asked:
        synthetic.write_questions(items(split, count, stream), folder / f"{split}.parquet")
    if world.hard:
        _write_levels(recipe, items)
    described = (
        replace(item, problem=synthetic.DESCRIBE[0], answer=item.caption)
        for item in items("held_out", world.validation_rows, 5)
    )
    synthetic.write_questions(described, folder / "captions.parquet")
    synthetic.contact_sheet(folder / "contact_sheet.png")


def _write_levels(recipe: Recipe, items: Callable[..., Iterable[Item]]) -> None:
    """Questions by level, for ovlt.cycle; their level is their source."""
    from ovlt.data.worlds import synthetic

    world, folder = recipe.synthetic, Path(recipe.synthetic.folder)
    known = [kind for name in world.families for kind in synthetic.FAMILIES[name].kinds]
    if unknown := sorted(set(world.hard) - set(known)):
        raise ValueError(f"synthetic.hard names {unknown}: choose among {', '.join(known)}")
    kinds = {
        "medium": [kind for kind in known if kind not in world.hard],
        "hard": [kind for kind in known if kind in world.hard],
    }

    def level(item: Item) -> str:
        return "hard" if item.kind in world.hard else "medium"

    def write(name: str, made: Iterable[Item]) -> None:
        synthetic.write_questions(made, folder / f"{name}.parquet", level)

    write("seeds", items("train", world.seed_rows, 8))
    for stream, (name, asked) in enumerate(kinds.items(), 9):
        write(name, items("train", world.level_rows, stream, asked))
    for split, count, stream in (
        ("validation", world.level_validation_rows, 11),
        ("held_out", world.level_held_out_rows, 13),
    ):
        both = [items(split, count, stream + n, asked) for n, asked in enumerate(kinds.values())]
        pairs = zip(*both, strict=True)  # in turns, so that any first part holds both
        write(f"{split}_levels", (item for pair in pairs for item in pair))


def base_recipe(recipe: Recipe) -> Recipe:
    """The recipe whose SFT stage teaches the untrained model to see."""
    base = recipe.base
    folder = Path(base.folder)
    tree = recipe.resolved()
    tree["run"] |= {"folder": str(folder.parent), "seed": base.seed, "resume": "auto"}
    # The same base for every recipe: one that freezes the tower later would freeze it unlearned.
    tree["model"] |= {"freeze_vision": False}
    # Measured by what it is for: held-out images described exactly, greedily.
    tree["data"] |= {"held_out": str(Path(recipe.synthetic.folder) / "captions.parquet")}
    tree["reward"] |= {"function": "exact", "verdict": ""}
    tree["evaluate"] |= {"data": "", "n": 0, "limit": 0}
    tree["sft"] = _lesson(
        base,
        "Base: captions, short answers, text-only reasoning",
        folder / "untrained",
        Path(recipe.synthetic.folder) / "base.parquet",
    )
    return recipe_from(tree)


def _lesson(
    table: BaseConfig | TeacherConfig, title: str, start: Path, data: Path
) -> dict[str, Any]:
    """The [sft] table by which [base] or [teacher] is taught."""
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


def ensure_base(recipe: Recipe, ranks: int) -> None:
    """The base model, made from nothing unless it is there for these settings."""
    folder = Path(recipe.base.folder)
    record = folder / "base.json"
    seen = ("families", "size", "seed", "base_rows", "base_mixture")
    world = {k: v for k, v in recipe.resolved()["synthetic"].items() if k in seen}
    wanted = {"base": recipe.resolved()["base"], "synthetic": world}

    def make() -> None:
        print(f"{base_model(recipe)} is not there yet: making a base model first", flush=True)
        ensure_world(recipe)
        python_module("ovlt.smoke.base", [str(write_recipe(recipe, folder / "recipe.base.json"))])
        write_json(record, wanted)
        run_stage("sft", base_recipe(recipe), ranks)

    _made(folder, lambda: _is_made(folder, record, wanted, "base"), make)


def _is_made(folder: Path, record: Path, wanted: dict[str, Any], what: str) -> bool:
    """Whether a model stands in ``folder``, made for ``wanted``; begun is not made.

    Raises ValueError where it holds, whole or in part, one that was made for something else.
    """
    if record.is_file() and read_json(record) == wanted:
        return is_done(folder)
    if record.is_file() or (folder / "model").is_dir():
        raise ValueError(
            f"{folder} holds a {what} model made with other [{what}] or [synthetic] settings: "
            f"delete that folder to make it anew, or give another --{what}.folder"
        )
    return False


def is_done(folder: Path) -> bool:
    """Whether the stage of this folder has come to its end."""
    record = folder / "stage.json"
    return record.is_file() and read_json(record)["status"] == "done"


def ensure_teacher(recipe: Recipe, ranks: int) -> None:
    """The text-only teacher, made of the base model unless it is there for these settings."""
    teacher, folder = recipe.teacher, Path(recipe.teacher.folder)
    record = folder / "teacher.json"
    wanted = recipe.resolved()["teacher"]

    def make() -> None:
        ensure_base(recipe, ranks)
        print(f"{teacher_model(recipe)} is not there yet: teaching a teacher first", flush=True)
        data = folder / "rows.parquet"
        _write_lessons(recipe, data)
        write_json(record, wanted)
        tree = recipe.resolved()
        tree["run"] |= {"folder": str(folder.parent), "seed": 0, "resume": "auto"}
        tree["data"] |= {"held_out": "", "validation": ""}
        tree["sft"] = _lesson(
            teacher, "Teacher: caption and question -> trace", base_model(recipe), data
        )
        run_stage("sft", recipe_from(tree), ranks)

    _made(folder, lambda: _is_made(folder, record, wanted, "teacher"), make)


def _write_lessons(recipe: Recipe, data: Path) -> None:
    """Captions and questions with traces, for the teacher."""
    from ovlt.data.worlds import synthetic

    world, teacher = recipe.synthetic, recipe.teacher
    items = synthetic.generate(
        world.families, "train", teacher.rows, world.seed * 1000 + 7,
        synthetic.WorldSpec(size=world.size),
    )  # fmt: skip
    rows = synthetic.teacher_rows(
        items, teacher.styles, world.seed, teacher.wrong, teacher.reflections
    )
    synthetic.write_sft(rows, data)


def run_stage(stage: str, recipe: Recipe, ranks: int) -> None:
    """Run ``torchrun -m ovlt.STAGE`` with this recipe, as a process of its own."""
    table = getattr(recipe, stage)
    if stage == "distill":  # which starts its ranks itself
        if not table.ranks and table.engine.tensor_parallel == 1:
            recipe = recipe_from(merged(recipe.resolved(), {"distill": {"ranks": ranks}}))
        path = write_recipe(recipe, recipe.folder / "recipes" / f"{table.stage}.json")
        python_module("ovlt.distill", [str(path)])
        return
    path = write_recipe(recipe, recipe.folder / "recipes" / f"{table.stage}.json")
    torchrun(f"ovlt.{stage}", path, ranks)
