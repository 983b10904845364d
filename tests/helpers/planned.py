"""Plans of the published recipes, for the tests of ``ovlt.plan``."""

from __future__ import annotations

from ovlt.config.load import REPOSITORY
from ovlt.plan.command import read_request
from ovlt.plan.fit import with_settings
from ovlt.plan.fit_distill import Setting
from ovlt.plan.run import Run
from ovlt.plan.stages import PlannedStage, planned_stages

RECIPES = REPOSITORY / "recipes"
V1, V2 = (str(RECIPES / f"openvlthinker-{v}.toml") for v in ("v1", "v2"))
P7, P3 = 8_292_166_656, 3_754_622_976  # as the model hub counts the published safetensors


def run_of(recipe: str, hardware: str, *words: str) -> Run:
    """Return the run of the whole recipe; ``stage_of`` returns one of its stages."""
    return read_request([recipe, f"--hardware={hardware}", *words]).run


def stage_of(run: Run, name: str, *settings: Setting) -> PlannedStage:
    """Return one of the stages, after some keys of the whole recipe have got other values."""
    stages = planned_stages(with_settings(run, *settings))
    return next(stage for stage in stages if stage.name == name)
