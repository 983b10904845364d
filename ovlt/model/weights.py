"""Whole weights out of a sharded model: streamed to the engine, or written as a model folder."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from ovlt.model import qwen2_5_vl as qwen
from ovlt.model.packed_model import PackedModel, empty_model

SHARD_BYTES = 4 << 30
# What travels with the weights; everything the tokenizer and processors need, no code.
COMPANIONS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)


def is_tied(model: PackedModel) -> bool:
    """Return whether the head is the embedding."""
    return model.lm_head.weight is model.model.language_model.embed_tokens.weight


def full_weights(model: PackedModel, *, tied_head: bool) -> Iterator[tuple[str, Tensor]]:
    """(live name, whole tensor) for every parameter. A collective: all ranks must iterate.

    ``tied_head`` also yields ``lm_head.weight`` where it is the embedding: an engine that keeps a
    prepared copy of the head would otherwise go on sampling with the old one.
    """
    to_masters(model)
    tied = is_tied(model)
    for name, parameter in model.named_parameters():
        value = parameter.detach()
        whole = value.full_tensor() if isinstance(value, DTensor) else value
        yield name, whole
        if tied and tied_head and name.endswith("embed_tokens.weight"):
            yield "lm_head.weight", whole


def to_masters(model: nn.Module) -> None:
    """Let gathered copies go, so that the parameters are the float32 master shards: after a forward
    without backward the root group still holds whole weights in the compute dtype."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def expected_names(model: PackedModel) -> set[str]:
    """Return the names a complete stream must hold: the configuration's, not the stream's own."""
    names = {name for name, _ in empty_model(model.config).named_parameters()}
    return names | {"lm_head.weight"}


def export_folder(model: PackedModel, source: Path, target: Path, *, is_main: bool) -> None:
    """Write ``target`` as a Hugging Face folder: weights under hub names, tokenizer of ``source``.

    Collective. Written beside and renamed, so a folder of that name is always complete. Weights
    are float32, as the masters are.
    """
    from safetensors.torch import save_file

    partial = target.with_name(f".{target.name}.partial")
    if is_main:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    pending: dict[str, Tensor] = {}
    weight_map: dict[str, str] = {}
    total = number = 0

    def flush() -> None:
        nonlocal pending, number
        if pending:
            number += 1
            file = f"model-{number:05d}.safetensors"
            save_file(pending, partial / file, metadata={"format": "pt"})
            weight_map.update(dict.fromkeys(pending, file))
            pending = {}

    for name, tensor in full_weights(model, tied_head=False):
        if not is_main:
            continue
        size = tensor.numel() * tensor.element_size()
        if sum(t.numel() * t.element_size() for t in pending.values()) + size > SHARD_BYTES:
            flush()
        pending[qwen.disk_name(name)] = tensor.to("cpu", copy=True).contiguous()
        total += size
    if not is_main:
        return
    flush()
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (partial / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    for companion in COMPANIONS:
        if (source / companion).is_file():
            shutil.copyfile(source / companion, partial / companion)
    _record_dtype(partial / "config.json", torch.float32)
    if target.exists():
        shutil.rmtree(target)
    os.replace(partial, target)


def _record_dtype(path: Path, dtype: torch.dtype) -> None:
    config = json.loads(path.read_text())
    for table in (config, config.get("text_config", {}), config.get("vision_config", {})):
        for key in ("dtype", "torch_dtype"):
            if key in table:
                table[key] = str(dtype).removeprefix("torch.")
    path.write_text(json.dumps(config, indent=2))
