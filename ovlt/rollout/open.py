"""Which engine a recipe names, on which device, in which dtype."""

from __future__ import annotations

import torch

from ovlt.config import Recipe, RolloutConfig
from ovlt.model.load import ModelFolder
from ovlt.rollout.engine import Engine
from ovlt.rollout.vllm import VllmEngine
from ovlt.system.runtime import compute_dtype


def engine_dtype(recipe: Recipe, folder: ModelFolder, device: torch.device) -> torch.dtype:
    """rollout.dtype; 'auto' is the trainer's compute dtype."""
    name = recipe.grpo.rollout.dtype
    if name == "auto":
        name = recipe.model.compute_dtype
    return compute_dtype(name, device, int(folder.text_config.hidden_size))


def open_engine(
    folder: ModelFolder,
    config: RolloutConfig,
    *,
    device: torch.device,
    dtype: torch.dtype,
    max_images: int = 8,
    max_tokens: int | None = None,
    shares_device: bool = True,
) -> Engine:
    """The engine that ``config.engine`` names, on this rank's device.

    ``max_images`` is the most of one prompt, ``max_tokens`` the longest prompt + response.
    ``shares_device``: a trainer lives on the same device, so only a share of its memory may be
    taken and ``sleep`` must give it back.
    """
    longest = max_tokens or config.max_prompt_tokens + config.max_response_tokens
    if config.engine == "transformers":
        from ovlt.rollout.transformers import TransformersEngine

        return TransformersEngine(folder, config, device=device, dtype=dtype)
    try:
        import vllm  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"rollout.engine='vllm' but vllm cannot be imported ({error}); install it (make "
            "install) or set rollout.engine='transformers', which is slower"
        ) from None
    return VllmEngine(
        folder,
        config,
        device=device,
        dtype=dtype,
        max_images=max_images,
        max_model_len=longest,
        shares_device=shares_device,
    )
