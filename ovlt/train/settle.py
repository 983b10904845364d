"""What "auto" means for memory, on the GPU at hand."""

from __future__ import annotations

import torch

from ovlt.config import ModelConfig
from ovlt.model import liger
from ovlt.model.sizes import Sizes, square_grid, tokens_per_image
from ovlt.system.runtime import Runtime
from ovlt.train.footprint import (
    FEATURE_BYTES,
    Training,
    cheapest_that_fits,
    fullest,
    most_images,
)

GIB = 2**30
# Left free: what a sleeping engine still holds, NCCL's buffers, fragmentation. Assumed.
RESERVE_GIB = 4.0


def settle_memory(
    config: ModelConfig,
    sizes: Sizes,
    runtime: Runtime,
    *,
    dtype: torch.dtype,
    token_budget: int,
    reference: bool,
) -> ModelConfig:
    """Return ``config`` with "auto" replaced in what concerns memory, alike on all ranks.

    Call it before the model is loaded and after an engine has been opened and put to sleep. On a
    CPU nothing is recomputed and gradients are reduced once. Collective.
    """
    if "auto" not in (config.activation_checkpointing, config.reduce_gradients):
        return config
    if runtime.device.type != "cuda":
        free = float("inf")
    else:
        free = min(runtime.gather_json(torch.cuda.mem_get_info(runtime.device)[0]))
        free -= RESERVE_GIB * GIB
    per_image = tokens_per_image(sizes, square_grid(sizes, config.max_pixels))
    images = most_images(sizes, config.max_pixels, token_budget)
    training = cheapest_that_fits(
        sizes,
        Training(
            ranks=runtime.world_size,
            itemsize=dtype.itemsize,
            budget=token_budget,
            micro_batches=2,  # more than one: gradients are whole until the last
            patches=images * per_image * sizes.vision_config.spatial_merge_size**2,
            keys=2.0,  # a prompt that several responses share
            checkpointing="none",
            reduce_each=False,
            reshard=config.reshard,
            liger=liger.should_apply(config.liger, runtime.device),
            freeze_vision=config.freeze_vision,
            reference=reference,
            features=FEATURE_BYTES if config.freeze_vision and reference else 0.0,
        ),
        free,
        checkpointing=config.activation_checkpointing,
        reduce=config.reduce_gradients,
    )
    reduce = "each" if training.reduce_each else "last"
    if runtime.device.type == "cuda":
        runtime.say(
            f"model.activation_checkpointing={training.checkpointing}, "
            f"model.reduce_gradients={reduce}: an update takes up to "
            f"{fullest(sizes, training) / GIB:.1f} GiB, {free / GIB:.1f} are free"
        )
    return config.model_copy(
        update={
            "activation_checkpointing": training.checkpointing,
            "reduce_gradients": reduce,
        }
    )
