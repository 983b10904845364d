"""What is planned: a recipe on a model, on a node, under assumptions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ovlt.config import Recipe
from ovlt.model import sizes
from ovlt.plan.assumed import Assumptions
from ovlt.plan.engine import GIB, SamplingWork
from ovlt.system.hardware import Node

StageKind = Literal["sft", "grpo"]  # the stages that train


@dataclass(frozen=True)
class Run:
    """A recipe on a model, on a node, under assumptions; and the counts that follow from them."""

    recipe: Recipe
    config: sizes.FileSizes  # sizes of model.path
    node: Node
    assumed: Assumptions
    # Sizes of captioners and teachers, by folder; of those that are not models of this run.
    others: Mapping[str, sizes.FileSizes] = field(default_factory=dict)

    @property
    def itemsize(self) -> int:
        """Bytes of the compute dtype; 'auto' is bfloat16 on a GPU."""
        return 4 if self.recipe.model.compute_dtype == "float32" else 2

    @property
    def engine_itemsize(self) -> int:
        """Bytes of the engine's dtype; 'auto' is the trainer's."""
        return {"float32": 4, "bfloat16": 2}.get(self.recipe.engine.dtype, self.itemsize)

    @property
    def parameters(self) -> sizes.Parameters:
        return sizes.parameters(self.config)

    @property
    def trainable(self) -> int:
        """Number of parameters that are trained."""
        frozen = self.parameters.tower if self.recipe.model.freeze_vision else 0
        return self.parameters.total - frozen

    @property
    def grid(self) -> sizes.Grid:
        """Patch grid of a square image of about model.max_pixels."""
        return sizes.square_grid(self.config, self.recipe.model.max_pixels)

    @property
    def patches(self) -> int:
        """Patches of one image."""
        return self.grid[1] * self.grid[2]

    @property
    def tokens_per_image(self) -> int:
        return sizes.tokens_per_image(self.config, self.grid)

    @property
    def image_tokens(self) -> int:
        """Tokens of all images of a question."""
        return round(self.assumed.images_per_question * self.tokens_per_image)

    @property
    def prompt_tokens(self) -> int:
        """Tokens of an expected prompt, images included."""
        expected = self.assumed.question_tokens + self.image_tokens
        return min(expected, self.recipe.grpo.rollout.max_prompt_tokens)

    @property
    def response_tokens(self) -> int:
        """Mean tokens of a sampled response."""
        return min(self.assumed.response_tokens, self.recipe.grpo.rollout.max_response_tokens)


def sampling_work(run: Run, prompts: int, n: int, longest: int = 0) -> SamplingWork:
    """The work of one engine, if the engines of a node (one per GPU) share ``prompts``.

    ``n`` responses to each, of at most ``longest`` tokens (0: grpo.rollout.max_response_tokens).
    """
    longest = longest or run.recipe.grpo.rollout.max_response_tokens
    return SamplingWork(
        config=run.config,
        itemsize=run.engine_itemsize,
        gpus=1,
        share=run.recipe.engine.gpu_memory * run.node.gpu.memory_gib * GIB,
        workspace=run.assumed.engine_workspace_gib * GIB,
        max_sequences=run.recipe.engine.max_sequences,
        prompts=math.ceil(prompts / run.node.count),
        n=n,
        prompt_tokens=run.prompt_tokens,
        images=run.assumed.images_per_question,
        grid=run.grid,
        response_tokens=min(run.assumed.response_tokens, longest),
        longest=longest,
    )
