"""Plans of the published recipes, for the tests of ``ovlt.plan``."""

from __future__ import annotations

from ovlt.config.load import REPOSITORY
from ovlt.plan.command import read
from ovlt.plan.fit import changed
from ovlt.plan.memory import Run
from ovlt.plan.stages import Part, parts

RECIPES = REPOSITORY / "recipes"
V1, V2 = (str(RECIPES / f"openvlthinker-{v}.toml") for v in ("v1", "v2"))
P7, P3 = 8_292_166_656, 3_754_622_976  # as the model hub counts the published safetensors


def run_of(recipe: str, hardware: str, *words: str) -> Run:
    """The run of the recipe itself; of its stages, ``stage_of`` and ``ovlt.plan.stages.parts``."""
    return read([recipe, f"--hardware={hardware}", *words]).run


def stage_of(run: Run, name: str, *settings: tuple[str, object]) -> Part:
    """One of the stages, with other values of some keys of the whole recipe."""
    return next(part for part in parts(changed(run, *settings)) if part.name == name)
