"""The tables of a recipe: every key with its type, default, check and meaning.

Frozen pydantic models, extra keys forbidden; pydantic because its validators explain in words.
``ovlt.config.load`` reads them from a file and the command line.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ovlt.config.cycle import CycleConfig, DistillConfig, IterationConfig
from ovlt.config.data import DataConfig, MixtureConfig, MixtureSourceConfig
from ovlt.config.engine import EngineConfig, RewardConfig, SoloEngineConfig
from ovlt.config.fields import Table
from ovlt.config.smoke import BaseConfig, DemoConfig, SyntheticConfig, TeacherConfig
from ovlt.config.training import (
    EvaluateConfig,
    GrpoConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    RolloutConfig,
    RunConfig,
    SftConfig,
    SftOptimConfig,
)

__all__ = [
    "BaseConfig",
    "CycleConfig",
    "DataConfig",
    "DemoConfig",
    "DistillConfig",
    "EngineConfig",
    "EvaluateConfig",
    "GrpoConfig",
    "IterationConfig",
    "LossConfig",
    "MixtureConfig",
    "MixtureSourceConfig",
    "ModelConfig",
    "OptimConfig",
    "Recipe",
    "RewardConfig",
    "RolloutConfig",
    "RunConfig",
    "SftConfig",
    "SftOptimConfig",
    "SoloEngineConfig",
    "SyntheticConfig",
    "Table",
    "TeacherConfig",
]


class Recipe(Table):
    """Every table of a recipe; a key that is left out has its default."""

    run: RunConfig = RunConfig()
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    synthetic: SyntheticConfig = SyntheticConfig()
    mixture: MixtureConfig = MixtureConfig()
    engine: EngineConfig = EngineConfig()
    reward: RewardConfig = RewardConfig()
    base: BaseConfig = BaseConfig()
    sft: SftConfig = SftConfig()
    grpo: GrpoConfig = GrpoConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    teacher: TeacherConfig = TeacherConfig()
    distill: DistillConfig = DistillConfig()
    cycle: CycleConfig = CycleConfig()
    demo: DemoConfig = DemoConfig()

    def expand(self, text: str) -> str:
        """A path of the recipe with {seed} and {folder} filled in."""
        folder = self.run.folder.replace("{seed}", str(self.run.seed))
        return text.replace("{folder}", folder).replace("{seed}", str(self.run.seed))

    @property
    def folder(self) -> Path:
        return Path(self.expand("{folder}"))

    def decisive_tables(self, kind: str) -> dict[str, Any]:
        """Return the tables that decide what a stage (sft, grpo, evaluate) makes."""
        graded = ("engine", "reward") if kind == "grpo" else ()  # other stages only measure by them
        tree = self.resolved()
        return {table: tree[table] for table in ("run", "model", "data", *graded, kind)}

    def resolved(self) -> dict[str, Any]:
        """Every value as plain JSON, for the record kept beside a run."""
        return json.loads(self.model_dump_json())
