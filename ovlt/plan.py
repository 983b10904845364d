"""``python -m ovlt.plan [RECIPE] [--hardware=h100x8]``: will it fit, and how long will it take.

Prints parameters, memory of each GPU by item, micro-batches, seconds of each phase and days, before
anything is loaded: no weights, no data, no GPU and no torch are needed. Ends with status 1, and a
sentence for each problem, where the recipe cannot fit. Seconds rest on assumptions, which are
printed with them and can be replaced (``--assume.response_tokens=600``).
"""

from __future__ import annotations

import difflib
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from ovlt.config import Recipe
from ovlt.estimate import Assumptions, Run, Stage
from ovlt.fit import problems
from ovlt.hardware import GPUS, node
from ovlt.model.qwen2_5_vl_sizes import read_config
from ovlt.plan_text import text
from ovlt.recipe import REPOSITORY, load_recipe

SIZES = REPOSITORY / "recipes" / "models"
USAGE = f"""usage: python -m ovlt.plan [RECIPE.toml] [--table.key=value ...]

Memory of each GPU, micro-batches, seconds and days of a recipe, before anything is loaded.
  --hardware=h100x8       CHIPxCOUNT, one node; chips: {", ".join(GPUS)}
  --sizes=FILE            a config.json; else that of model.path, else recipes/models/ by name
  --assume.KEY=VALUE      replaces an assumption; the keys stand at the end of the output
  --table.key=value       a key of the recipe, as in every command"""


def main(argv: Sequence[str] | None = None) -> int:
    """Print the plan -> 0 it fits, 1 it cannot, 2 a mistake in the command."""
    argv = sys.argv[1:] if argv is None else argv
    if any(word in ("-h", "--help") for word in argv):
        print(USAGE)
        return 0
    try:
        run, stages, origin = read(argv)
        print(text(run, stages, origin))
    except ValueError as error:
        print(f"ovlt.plan: {error}", file=sys.stderr)
        return 2
    found = problems(run, stages)
    for sentence in found:
        print(f"ovlt.plan: {sentence}", file=sys.stderr)
    return 1 if found else 0


def read(argv: Sequence[str]) -> tuple[Run, list[Stage], Path]:
    """Command line -> the run, the stages it has data for, the file its sizes come from."""
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
    has_data: dict[Stage, str] = {"sft": recipe.sft.data, "grpo": recipe.grpo.data}
    stages: list[Stage] = [stage for stage, data in has_data.items() if data]
    if not stages:
        raise ValueError("the recipe has neither sft.data nor grpo.data, so there is nothing to do")
    if recipe.grpo.rollout.engine != "vllm":
        raise ValueError(
            "only the vLLM engine can be planned; add --grpo.rollout.engine=vllm to the command"
        )
    origin = sizes_file(recipe, options["sizes"])
    return (
        Run(recipe, read_config(origin), node(options["hardware"]), assumptions(assumed)),
        stages,
        origin,
    )


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
    return not key.endswith(("efficiency", "rate", "response_tokens"))


def sizes_file(recipe: Recipe, given: str = "") -> Path:
    """The model folder's config.json, else the shipped one of that name. Raises ValueError."""
    folder = Path(recipe.expand(recipe.model.path))
    if given or (folder / "config.json").is_file():
        return Path(given) if given else folder / "config.json"
    name = re.sub(r"\W+", "_", folder.name.lower().replace(".", "_"))
    shipped = sorted(SIZES.glob("*.json"))
    for file in shipped:
        if name.startswith(file.stem):
            return file
    raise ValueError(
        f"model.path='{folder}' holds no config.json, and recipes/models/ none of that name: give "
        f"one with --sizes=FILE, e.g. {shipped[0].relative_to(REPOSITORY)}"
    )


if __name__ == "__main__":
    sys.exit(main())
