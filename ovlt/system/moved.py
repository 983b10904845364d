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
    "ovlt.stats": "ovlt.benchmarks.stats",
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
    "ovlt.plan_parts": "ovlt.plan.stages",
    "ovlt.plan_text": "ovlt.plan.text",
    "ovlt.plan_table": "ovlt.plan.hours",
    "ovlt.fit": "ovlt.plan.fit",
    "ovlt.fit_distill": "ovlt.plan.fit_distill",
    "ovlt.estimate": "ovlt.plan.memory, ovlt.plan.seconds and ovlt.plan.run",
    "ovlt.estimate_sampling": "ovlt.plan.engine",
    "ovlt.estimate_distill": "ovlt.plan.distill",
    "ovlt.cycle_steps": "ovlt.cycle.stages",
    "ovlt.cycle_controls": "ovlt.cycle.controls",
    "ovlt.cycle_state": "ovlt.cycle.record",
    "ovlt.cycle_table": "ovlt.report.cycle_table",
    "ovlt.reward_process": "ovlt.reward.process",
    "ovlt.reward_worker": "ovlt.reward.worker",
    "ovlt.quantities": "ovlt.reward.numbers, ovlt.reward.units and ovlt.reward.quantities",
    "ovlt.rng": "ovlt.system.rng",
    "ovlt.changes": "ovlt.config.changes",
    "ovlt.smoke_keys": "ovlt.config.smoke_size",
    "ovlt._torchvision_shim": "ovlt.system.torchvision_shim",
    "ovlt.distillation.assemble": "ovlt.distill.assemble",
    "ovlt.distillation.generate": "ovlt.distill.generate",
    "ovlt.distillation.requests": "ovlt.distill.requests",
    "ovlt.distillation.shards": "ovlt.distill.shards",
    "ovlt.distillation.summary": "ovlt.distill.summary",
    "ovlt.distillation.traces": "ovlt.distill.traces",
    "ovlt.distillation.forms": "ovlt.distill.traces",
    "ovlt.viewer.charts": "ovlt.report.charts",
    "ovlt.viewer.collect": "ovlt.report.collect",
    "ovlt.viewer.cycle": "ovlt.report.cycle",
    "ovlt.viewer.cycle_charts": "ovlt.report.cycle_charts",
    "ovlt.viewer.cycle_figures": "ovlt.report.cycle_figures",
    "ovlt.viewer.samples": "ovlt.report.samples",
}
GONE = {
    "ovlt.reject": "`ovlt distill` without distill.teacher keeps a model's own right answers",
}


class MovedFinder:
    """The last finder of ``sys.meta_path``: it is asked only for modules that nobody has."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> None:
        if name in MOVED:
            raise ModuleNotFoundError(f"{name} has moved: it is {MOVED[name]}", name=name)
        if name in GONE:
            raise ModuleNotFoundError(f"{name} is gone: {GONE[name]}", name=name)


def install() -> None:
    """Add the finder, once per process."""
    if MovedFinder not in sys.meta_path:
        sys.meta_path.append(MovedFinder)  # type: ignore[arg-type]
