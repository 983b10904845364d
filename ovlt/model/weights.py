"""Weights between model folders and a sharded model: read, streamed to the engine, written.

No rank ever holds the whole model: it reads only its own rows of every safetensors file, and
gathers a few tensors at a time on the way out (``gather.py``).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from ovlt.model.families import ModelFamily, family_of
from ovlt.model.gather import whole_tensors
from ovlt.model.packed_model import PackedModel, empty_model
from ovlt.system.files import swap_folder

SHARD_BYTES = 4 << 30  # of one file; rank 0 holds that much of the model at a time
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


def weight_index(path: Path, family: ModelFamily) -> dict[str, Path]:
    """Map each parameter name in memory to the safetensors file that holds it.

    Raises ValueError.
    """
    files = weight_files(path)
    names: dict[str, Path] = {}
    for file in files:
        try:
            with safe_open(file, "pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - safe_open is no mapping
                    live = family.model.live_name(name)
                    if (other := names.setdefault(live, file)) != file:
                        raise ValueError(
                            f"{path}: both {other.name} and {file.name} hold {name}: delete the "
                            "files that do not belong to this model"
                        )
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"{file} is missing, truncated or not a safetensors file ({error}); "
                "copy or download it again"
            ) from None
    return names


def weight_files(path: Path) -> list[Path]:
    """List the safetensors files of a model folder. Raises ValueError."""
    index, single = path / "model.safetensors.index.json", path / "model.safetensors"
    if not index.is_file():
        files = sorted(path.glob("*.safetensors"))
        if not files:
            raise ValueError(f"{path} has no *.safetensors files; ovlt reads no pickled weights")
        return files
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        files = sorted(path / name for name in names if Path(name).name == name)
    except (ValueError, LookupError, TypeError, AttributeError, OSError, RecursionError) as error:
        raise ValueError(
            f"{index} is damaged ({type(error).__name__}: {error}): copy or download it again"
        ) from None
    if not files or len(files) < len(names):
        raise ValueError(f"{index} must name *.safetensors files in its own folder")
    if single.is_file() and single not in files:
        raise ValueError(
            f"{path} holds {single.name} and also {index.name}, which names other files: delete "
            "the one that is not this model's"
        )
    return files


def read_weights(model: PackedModel, path: Path) -> None:
    """Fill a (sharded) model from a folder, each rank reading its own slices.

    Raises ValueError if a parameter is missing, has another shape than the configuration says, or
    holds NaN or infinity.
    """
    family = family_of(model.config)
    index = weight_index(path, family)
    parameters = dict(model.named_parameters())
    missing = sorted(set(parameters) - set(index))
    if missing:
        raise ValueError(
            f"{path} lacks {len(missing)} of {len(parameters)} tensors, e.g. {missing[:3]}: "
            "the folder is incomplete or of another model"
        )
    by_file: dict[Path, list[str]] = {}
    for name in parameters:
        by_file.setdefault(index[name], []).append(name)
    for file, names in by_file.items():
        with safe_open(file, "pt") as tensors, torch.no_grad():
            on_disk = {family.model.live_name(n): n for n in tensors.keys()}  # noqa: SIM118
            for name in names:
                source = tensors.get_slice(on_disk[name])
                target = parameters[name]
                if tuple(source.get_shape()) != tuple(target.shape):
                    raise ValueError(
                        f"{file}: {name} has shape {source.get_shape()}, the configuration says "
                        f"{list(target.shape)}"
                    )
                _copy_slice(target, source)
                local = target.to_local() if isinstance(target, DTensor) else target
                # A NaN is least and largest at once; both ends are looked at for infinities.
                if local.numel() and not all(end.isfinite() for end in local.aminmax()):
                    raise ValueError(
                        f"{file}: {name} holds numbers that are not finite (NaN or infinity): the "
                        "file is damaged, or was written by a run that had diverged; take an "
                        "earlier one"
                    )


class TensorOnDisk(Protocol):
    """A tensor of a safetensors file, read only where it is indexed."""

    def get_shape(self) -> list[int]: ...
    def __getitem__(self, index: slice | tuple[slice, ...]) -> Tensor: ...


def _copy_slice(target: Tensor, source: TensorOnDisk) -> None:
    """Copy into ``target`` the part of ``source`` that this rank holds."""
    if not isinstance(target, DTensor):
        target.copy_(source[:])
        return
    shape, offset = compute_local_shape_and_global_offset(
        target.shape, target.device_mesh, target.placements
    )
    local = target.to_local()
    if local.numel():
        part = tuple(slice(o, o + n) for o, n in zip(offset, shape, strict=True))
        local.copy_(source[part])


def is_tied(model: PackedModel) -> bool:
    """Return whether the head is the embedding."""
    return model.lm_head.weight is model.model.language_model.embed_tokens.weight


def full_weights(
    model: PackedModel, *, tied_head: bool, dtype: torch.dtype | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Yield (name in memory, whole tensor) of every parameter. All ranks must iterate (collective).

    In ``dtype``; None: in that of the masters, float32.
    ``tied_head`` also yields ``lm_head.weight`` if it is the embedding: an engine that keeps a
    prepared copy of the head would otherwise go on sampling with the old one.
    """
    to_masters(model)
    tied = is_tied(model)
    parameters = ((name, parameter.detach()) for name, parameter in model.named_parameters())
    for name, whole in whole_tensors(parameters, dtype):
        yield name, whole
        if tied and tied_head and name.endswith("embed_tokens.weight"):
            yield "lm_head.weight", whole


def to_masters(model: nn.Module) -> None:
    """Release gathered copies, so that the parameters are the float32 master shards.

    After a forward without backward the root group still holds whole weights in the compute dtype.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def expected_names(model: PackedModel) -> set[str]:
    """Return the names a complete stream must hold: the configuration's, not the stream's own."""
    names = {name for name, _ in empty_model(model.config).named_parameters()}
    return names | {"lm_head.weight"}


def export_folder(model: PackedModel, source: Path, target: Path, *, is_main: bool) -> None:
    """Write ``target`` as a Hugging Face folder: weights under hub names, tokenizer of ``source``.

    All ranks must call it (collective). The folder is written under another name and renamed, so a
    folder named ``target`` is always complete. Weights are float32, as the masters are; tensors of
    ``source`` that are not trained (``FamilyModel.is_left_out``) are copied as they are.
    """
    partial = target.with_name(f".{target.name}.partial")
    if is_main:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    pending: dict[str, Tensor] = {}
    weight_map: dict[str, str] = {}
    total = number = 0
    family = family_of(model.config)

    def flush() -> None:
        nonlocal pending, number
        if pending:
            number += 1
            file = f"model-{number:05d}.safetensors"
            save_file(pending, partial / file, metadata={"format": "pt"})
            weight_map.update(dict.fromkeys(pending, file))
            pending = {}

    def put(name: str, tensor: Tensor) -> None:
        nonlocal total
        size = tensor.numel() * tensor.element_size()
        if sum(t.numel() * t.element_size() for t in pending.values()) + size > SHARD_BYTES:
            flush()
        pending[name] = tensor.to("cpu", copy=True).contiguous()
        total += size

    for name, tensor in full_weights(model, tied_head=False):
        if is_main:
            put(family.model.disk_name(name), tensor)
    if not is_main:
        return
    for name, tensor in _left_out(source, family):
        put(name, tensor)
    flush()
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (partial / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    for companion in COMPANIONS:
        if (source / companion).is_file():
            shutil.copyfile(source / companion, partial / companion)
    _record_dtype(partial / "config.json", torch.float32)
    swap_folder(partial, target)


def _left_out(path: Path, family: ModelFamily) -> Iterator[tuple[str, Tensor]]:
    """Yield (name on disk, tensor) of what a folder holds and the model does not have."""
    try:
        files = weight_files(path)
    except ValueError:  # deleted since the run began: no reason to lose what was trained
        return
    for file in files:
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - safe_open is no mapping
                if family.model.is_left_out(name):
                    yield name, tensors.get_tensor(name)


def _record_dtype(path: Path, dtype: torch.dtype) -> None:
    config = json.loads(path.read_text())
    for table in (config, config.get("text_config", {}), config.get("vision_config", {})):
        for key in ("dtype", "torch_dtype"):
            if key in table:
                table[key] = str(dtype).removeprefix("torch.")
    path.write_text(json.dumps(config, indent=2))
