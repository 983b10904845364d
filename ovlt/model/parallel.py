"""FSDP2: float32 master shards, forward and backward in the compute dtype, reduction in float32."""

from __future__ import annotations

import functools
from typing import Literal

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from ovlt.config import ModelConfig
from ovlt.model import liger
from ovlt.model.families import family_of
from ovlt.model.load import ModelFolder
from ovlt.model.packed_model import PackedModel, empty_model, fill_buffers
from ovlt.model.weights import read_weights
from ovlt.system.collectives import gather_json, on_all_ranks


def shard(
    model: PackedModel, mesh: DeviceMesh, dtype: torch.dtype, *, reshard: bool = True
) -> None:
    """Shard the model: a group per tower block and decoder layer (``PackedModel.groups``), and the
    root for the rest.

    The root holds embedding, head, merger and norm; embedding and head share a group because they
    may be one tensor. On CPUs, if weights stay gathered (``reshard=False``), the root holds
    everything: there a collective costs more than the data it moves, and no stream hides it. Inputs
    are not cast (``cast_forward_inputs=False``): M-RoPE's cos and sin would lose their float32.
    """
    policy = MixedPrecisionPolicy(
        param_dtype=dtype if dtype != torch.float32 else None,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,
    )
    whole = mesh.device_type == "cpu" and not reshard
    for group in () if whole else model.groups():
        fully_shard(group, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard)
    fully_shard(model, mesh=mesh, mp_policy=policy)


def recompute(model: PackedModel, what: Literal["none", "tower", "mlp", "full", "auto"]) -> None:
    """Let backward compute again what is not kept: nothing, the tower, the MLPs, or all blocks.

    "auto" (``train.settle`` replaces it) keeps everything.
    """
    if what == "full":
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    elif what == "tower":
        for block in model.model.visual.blocks:
            block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
    elif what == "mlp":
        for block in model.blocks():
            mlp = block.mlp
            mlp.forward = functools.partial(checkpoint, mlp.forward, use_reentrant=False)


def same_tower(one: PackedModel, other: PackedModel) -> bool:
    """Return whether two sharded models have the same vision tower, bit for bit. Collective."""
    towers = (model.model.visual.named_parameters() for model in (one, other))
    equal = all(
        name == name_2 and torch.equal(_local(value), _local(value_2))
        for (name, value), (name_2, value_2) in zip(*towers, strict=True)
    )
    return all(gather_json(equal))


def _local(value: torch.Tensor) -> torch.Tensor:
    return value.to_local() if isinstance(value, DTensor) else value


def load_sharded(
    folder: ModelFolder,
    mesh: DeviceMesh,
    device: torch.device,
    config: ModelConfig,
    *,
    dtype: torch.dtype,
    temperature: float = 1.0,
    trainable: bool = True,
) -> PackedModel:
    """Return the model of ``folder``, sharded over ``mesh``, with its weights read.

    ``trainable=False`` freezes everything (the KL reference). With ``dtype`` bfloat16 the head's
    logits are rounded to bfloat16, as the engine's are.
    """
    model = empty_model(folder.config)
    model.check_device(device)
    if liger.should_apply(config.liger, device):
        liger.apply(model, family_of(folder.config))
    if trainable:
        recompute(model, config.activation_checkpointing)
    if config.freeze_vision or not trainable:
        model.model.visual.requires_grad_(False)
    if not trainable:
        model.requires_grad_(False)
    shard(model, mesh, dtype, reshard=config.reshard)
    model.to_empty(device=device)
    fill_buffers(model, device)
    on_all_ranks(lambda: read_weights(model, folder.path))  # a rank may see NaN alone
    model.set_head(
        temperature=temperature,
        banned=folder.banned,
        logits_dtype=torch.bfloat16 if dtype == torch.bfloat16 else None,
    )
    model.train(trainable)
    return model
