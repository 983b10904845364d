"""Modules of older versions: importing one names the new place."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import ModuleType

# Files that became part of a folder; folders themselves (ovlt.plan, ovlt.reward ...) still import.
MOVED = {
    "ovlt.base": "ovlt.smoke.base",
    "ovlt.demo": "ovlt.smoke.demo; the command is `ovlt demo`",
    "ovlt.data.prepare": "ovlt.data.mixture.prepare; the command is `ovlt prepare`",
    "ovlt.data.difficulty": "ovlt.data.mixture.difficulty",
    "ovlt.data.survey": "ovlt.data.mixture.survey",
    "ovlt.data.overlap": "ovlt.data.mixture.overlap",
    "ovlt.data.synthetic": "ovlt.data.worlds.synthetic",
    "ovlt.data.chat": "ovlt.model.chat",
    "ovlt.reject": "gone: `ovlt distill --distill.teacher=` without a teacher samples and keeps "
    "right answers",
    "ovlt._env": "ovlt.system.env; `ovlt COMMAND` needs no eval line",
    "ovlt.recipe": "ovlt.config.load",
    "ovlt.stage": "ovlt.train.step, ovlt.run.stage and ovlt.data.rows",
    "ovlt.sync": "ovlt.rollout.sync",
    "ovlt.sampling": "ovlt.rollout.groups",
    "ovlt.exchange": "ovlt.rollout.exchange",
    "ovlt.rollout_transformers": "ovlt.rollout.transformers",
    "ovlt.pack": "ovlt.train.pack",
    "ovlt.loss": "ovlt.train.loss",
    "ovlt.advantage": "ovlt.train.advantage",
    "ovlt.optim": "ovlt.train.optim",
    "ovlt.checkpoint": "ovlt.train.checkpoint",
    "ovlt.best": "ovlt.train.best",
    "ovlt.validate": "ovlt.evaluate.validator",
    "ovlt.stats": "ovlt.evaluate.stats",
    "ovlt.grading": "ovlt.reward.grading",
    "ovlt.metrics": "ovlt.run.metrics",
    "ovlt.provenance": "ovlt.run.provenance",
    "ovlt.run_folder": "ovlt.run.folder",
    "ovlt.runtime": "ovlt.system.runtime",
    "ovlt.launch": "ovlt.system.launch",
    "ovlt.files": "ovlt.system.files",
    "ovlt.hardware": "ovlt.system.hardware",
    "ovlt.viewer": "ovlt.report",
    "ovlt.distillation": "ovlt.distill",
}


class MovedFinder:
    """The last finder of ``sys.meta_path``: it is asked only for modules that nobody has."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> None:
        if name in MOVED:
            raise ModuleNotFoundError(f"{name} has moved: it is {MOVED[name]}", name=name)


def install() -> None:
    """Add the finder, once per process."""
    if MovedFinder not in sys.meta_path:
        sys.meta_path.append(MovedFinder)  # type: ignore[arg-type]
