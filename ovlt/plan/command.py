"""``python -m ovlt.plan [RECIPE] [--hardware=h100x8]``: will it fit, and how long will it take.

Prints parameters, memory of each GPU by item, micro-batches, seconds of each phase and days, before
anything is loaded: no weights, no data, no GPU and no torch are needed. Of a recipe with iterations
every stage, and hours by phase and iteration. Ends with status 1, and a
sentence for each problem, where the recipe cannot fit. Seconds rest on assumptions, which are
printed with them and can be replaced (``--assume.response_tokens=600``).
"""

from __future__ import annotations

import difflib
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ovlt.config import Recipe
from ovlt.config.load import REPOSITORY, SMOKE_RECIPE, load_recipe
from ovlt.model.qwen2_5_vl_sizes import read_config
from ovlt.plan.assumed import Assumptions
from ovlt.plan.fit import problems
from ovlt.plan.memory import Run
from ovlt.plan.stages import parts
from ovlt.plan.text import text
from ovlt.system.hardware import GPUS, node

SIZES = REPOSITORY / "recipes" / "models"
USAGE = f"""usage: python -m ovlt.plan [RECIPE.toml] [--table.key=value ...]

Memory of each GPU, micro-batches, seconds and days of a recipe, before anything is loaded.
  --hardware=h100x8       CHIPxCOUNT, one node; chips: {", ".join(GPUS)}
  --sizes=FILE            config.json of model.path; else the folder's, else recipes/models/ by name
  --assume.KEY=VALUE      replaces an assumption; the keys stand at the end of the output
  --table.key=value       a key of the recipe, as in every command"""


def main(argv: Sequence[str] | None = None) -> int:
    """Print the plan -> 0 it fits, 1 it cannot, 2 a mistake in the command."""
    argv = sys.argv[1:] if argv is None else argv
    if any(word in ("-h", "--help") for word in argv):
        print(USAGE)
        return 0
    try:
        plan = read(argv)
        print(text(plan.run, parts(plan.run), plan.origin, plan.name))
    except ValueError as error:
        print(f"ovlt plan: {error}", file=sys.stderr)
        return 2
    found = problems(plan.run)
    for sentence in found:
        print(f"ovlt plan: {sentence}", file=sys.stderr)
    return 1 if found else 0


@dataclass(frozen=True)
class Plan:
    run: Run
    origin: Path  # the file its sizes come from
    name: str  # of the recipe's file


def read(argv: Sequence[str]) -> Plan:
    """Command line -> what is to be planned. Raises ValueError."""
    words = [w for word in argv for w in _split(word)]
    path, overrides, assumed = None, [], {}
    options = {"hardware": "h100x8", "sizes": ""}
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            if path is not None:
                raise ValueError(f"more than one recipe given: {path}, {word}")
            path = word
            continue
        key, value = word[2:], words.pop(0) if words else ""
        if key in options:
            options[key] = value
        elif key.startswith("assume."):
            assumed[key.removeprefix("assume.")] = value
        else:
            overrides.append(f"--{key}={value}")
    recipe = load_recipe(path, overrides)
    if recipe.engine.backend != "vllm":
        raise ValueError(
            "only the vLLM engine can be planned; add --engine.backend=vllm to the command"
        )
    origin = sizes_file(recipe, recipe.model.path, options["sizes"])
    run = Run(recipe, read_config(origin), node(options["hardware"]), assumptions(assumed))
    planned = parts(run)
    if not planned:
        raise ValueError("the recipe has neither sft.data nor grpo.data, so there is nothing to do")
    distils = [part.run.recipe for part in planned if part.table == "distill"]
    return Plan(replace(run, others=_others(distils)), origin, Path(path or SMOKE_RECIPE).stem)


def _others(recipes: Sequence[Recipe]) -> dict[str, Any]:
    """Configurations of captioners and teachers. Those that a stage makes are as model.path's."""
    found: dict[str, Any] = {}
    for recipe in recipes:
        cfg = recipe.distill
        for key, path in (("captioner", cfg.captioner), ("teacher", cfg.teacher)):
            made = "{folder}" in path or Path(path).is_relative_to(recipe.folder)
            if path and not made and path != recipe.model.path:
                text_only = key == "teacher"
                file = sizes_file(recipe, path, key=f"distill.{key}")
                found[recipe.expand(path)] = read_config(file, text_only=text_only)
    return found


def _split(word: str) -> list[str]:
    key, equals, value = word.partition("=")
    return [key, value] if equals and word.startswith("--") else [word]


def assumptions(given: dict[str, str]) -> Assumptions:
    """Assumptions with some replaced. Raises ValueError for an unknown key or no number."""
    kinds = {f.name: type(f.default) for f in fields(Assumptions)}
    values: dict[str, Any] = {}
    for key, value in given.items():
        if key not in kinds:
            near = difflib.get_close_matches(key, kinds, n=1, cutoff=0.5)
            hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(kinds)}"
            raise ValueError(f"unknown assumption '{key}'; {hint}")
        try:
            values[key] = kinds[key](value)
        except ValueError:
            raise ValueError(f"--assume.{key}={value} is no {kinds[key].__name__}") from None
        if not 0 <= values[key] < math.inf or (values[key] == 0 and not _may_be_zero(key)):
            raise ValueError(f"--assume.{key}={value} must be a finite number above 0")
    return Assumptions(**values)


def _may_be_zero(key: str) -> bool:
    return not key.endswith(("efficiency", "rate", "response_tokens", "caption_tokens"))


def sizes_file(recipe: Recipe, path: str, given: str = "", key: str = "model.path") -> Path:
    """The model folder's config.json, else the shipped one of that name. Raises ValueError."""
    folder = Path(recipe.expand(path))
    if given or (folder / "config.json").is_file():
        return Path(given) if given else folder / "config.json"
    name = re.sub(r"\W+", "_", folder.name.lower().replace(".", "_"))
    shipped = sorted(SIZES.glob("*.json"))
    for file in shipped:
        if name.startswith(file.stem):
            return file
    names = ", ".join(file.stem for file in shipped)
    mend = (
        f"give one with --sizes=FILE, e.g. recipes/models/{shipped[-1].name}"
        if key == "model.path"
        else "put its config.json into that folder; the weights are not needed"
    )
    raise ValueError(
        f"{key}='{folder}' holds no config.json, and recipes/models/ none of that name ({names}): "
        + mend
    )
