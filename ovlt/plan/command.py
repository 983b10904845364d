"""``ovlt plan [RECIPE ...] [--hardware=h100x8]``: whether a recipe fits, and how long it takes.

Prints the parameters, the memory of each GPU by item, the micro-batches, the seconds of each phase
and the days, before anything is loaded: it needs no weights, no data, no GPU and no torch. For a
recipe with iterations it prints every stage, and hours by stage and iteration. If the recipe cannot
fit, it prints a sentence for each problem and ends with status 1. Seconds rest on assumptions,
which are printed too and can be replaced (``--assume.response_tokens=600``).
"""

from __future__ import annotations

import difflib
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ovlt.config.command_line import split_words
from ovlt.config.fields import expanded
from ovlt.config.load import REPOSITORY, SMOKE_RECIPE, load_recipe
from ovlt.model.sizes import FileSizes, read_config
from ovlt.plan.assumed import Assumptions
from ovlt.plan.fit import problems
from ovlt.plan.hours import PUBLISHED
from ovlt.plan.run import Run
from ovlt.plan.stages import PlannedStage, planned_stages
from ovlt.plan.text import plan_text
from ovlt.system.hardware import GPUS, node

SIZES = REPOSITORY / "recipes" / "models"
USAGE = f"""usage: ovlt plan [RECIPE.toml ...] [--smoke] [--table.key=value ...]

Memory of each GPU, micro-batches, seconds and days of a recipe, before anything is loaded.
Several recipes are laid over each other, the last one on top.
Without a recipe: {SMOKE_RECIPE.relative_to(REPOSITORY)}.
  --hardware=h100x8       CHIPxCOUNT, one node; chips: {", ".join(GPUS)}
  --sizes=FILE            config.json of model.path; else the folder's, else recipes/models/ by name
  --assume.KEY=VALUE      replaces an assumption; the keys stand at the end of the output
  --table.key=value       a key of the recipe, as in every command
Status: 0 it fits, 1 it cannot, 2 a mistake in the command."""


def main(argv: Sequence[str]) -> int:
    """Print the plan. Return 0 if the recipe fits, 1 if it cannot, 2 for a mistake in ``argv``."""
    if any(word in ("-h", "--help") for word in argv):
        print(USAGE)
        return 0
    try:
        request = read_request(argv)
        stages = planned_stages(request.run)
        print(plan_text(request.run, stages, request.sizes_file, request.name))
    except ValueError as error:
        print(f"ovlt plan: {error}", file=sys.stderr)
        return 2
    sentences = problems(request.run)
    for sentence in sentences:
        print(f"ovlt plan: {sentence}", file=sys.stderr)
    return 1 if sentences else 0


@dataclass(frozen=True)
class PlanRequest:
    """What a command line asks to plan."""

    run: Run
    sizes_file: Path  # of model.path
    name: str  # the recipe's, if its hours are published


def read_request(argv: Sequence[str]) -> PlanRequest:
    """Read a command line: recipes, their keys, and the options of USAGE. Raises ValueError."""
    paths, words, smoke = split_words(argv)
    options = {"hardware": "h100x8", "sizes": ""}
    overrides: list[str] = []
    assumed: dict[str, str] = {}
    for word in words:
        key, _, value = word.removeprefix("--").partition("=")
        if key in options:
            options[key] = value
        elif key.startswith("assume."):
            assumed[key.removeprefix("assume.")] = value
        else:
            overrides.append(word)
    recipe = load_recipe(paths, overrides, smoke=smoke)
    if recipe.engine.backend != "vllm":
        raise ValueError(
            "only the vLLM engine can be planned; add --engine.backend=vllm to the command"
        )
    file = Path(expanded(options["sizes"])) if options["sizes"] else None
    file = file or find_sizes(Path(recipe.expand(recipe.model.path)), "model.path")
    run = Run(recipe, read_config(file), node(options["hardware"]), assumptions(assumed))
    stages = planned_stages(run)
    if not stages:
        raise ValueError(
            "the recipe has neither distill.data nor sft.data nor grpo.data, so there is nothing "
            "to do"
        )
    names = [] if smoke else [Path(path).stem for path in paths if Path(path).stem in PUBLISHED]
    return PlanRequest(replace(run, others=_other_sizes(stages)), file, names[-1] if names else "")


def _other_sizes(stages: Sequence[PlannedStage]) -> dict[str, FileSizes]:
    """Sizes of captioners and teachers, by folder.

    Models that a stage of the run writes are left out: they have the sizes of model.path.
    """
    others: dict[str, FileSizes] = {}
    for stage in stages:
        if stage.table != "distill":
            continue
        recipe, cfg = stage.run.recipe, stage.run.recipe.distill
        for key, path in (("captioner", cfg.captioner), ("teacher", cfg.teacher)):
            of_the_run = "{folder}" in path or Path(path).is_relative_to(recipe.folder)
            if path and not of_the_run and path != recipe.model.path:
                file = find_sizes(Path(recipe.expand(path)), f"distill.{key}")
                others[recipe.expand(path)] = read_config(file, text_only=key == "teacher")
    return others


def assumptions(given: Mapping[str, str]) -> Assumptions:
    """Assumptions with some replaced. Raises ValueError for an unknown key or no number."""
    types = {name: type(default) for name, default in vars(Assumptions()).items()}
    values: dict[str, int | float] = {}
    for key, text in given.items():
        if key not in types:
            near = difflib.get_close_matches(key, types, n=1, cutoff=0.5)
            hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(types)}"
            raise ValueError(f"unknown assumption '{key}'; {hint}")
        try:
            value: int | float = types[key](text)
        except ValueError:
            raise ValueError(f"--assume.{key}={text} is not {_A_NUMBER[types[key]]}") from None
        if not 0 <= value < math.inf or (value == 0 and not _may_be_zero(key)):
            bound = "of at least 0" if _may_be_zero(key) else "above 0"
            raise ValueError(f"--assume.{key}={text} must be a finite number {bound}")
        values[key] = value
    return replace(Assumptions(), **values)


_A_NUMBER = {int: "a whole number", float: "a number"}


def _may_be_zero(key: str) -> bool:
    """Whether nothing is divided by this assumption."""
    return not key.endswith(("efficiency", "rate", "response_tokens", "caption_tokens"))


def find_sizes(folder: Path, key: str) -> Path:
    """Return config.json of a model folder, else the shipped one of that name.

    ``key`` is the recipe key that names the folder. Raises ValueError if there is neither.
    """
    if folder == Path():
        raise ValueError(f"{key} is not set: name a model folder, or give its --sizes=FILE")
    if (folder / "config.json").is_file():
        return folder / "config.json"
    name = re.sub(r"\W+", "_", folder.name.lower().replace(".", "_"))
    shipped = sorted(SIZES.glob("*.json"))
    for file in shipped:
        if name.startswith(file.stem):
            return file
    names = ", ".join(file.stem for file in shipped)
    fix = (
        f"give one with --sizes=FILE, e.g. recipes/models/{shipped[-1].name}"
        if key == "model.path"
        else "put its config.json into that folder; the weights are not needed"
    )
    raise ValueError(
        f"{key}='{folder}' holds no config.json, and recipes/models/ none of that name ({names}): "
        + fix
    )
