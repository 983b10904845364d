"""Checkpoints: killed anywhere, a run resumes to bitwise the same weights.

One checkpoint is one folder, written under a temporary name and renamed when all of it is on disk:

    step_000040/
        shard-RRRRR-model-FFFFF-of-NNNNN.safetensors   weights and AdamW state, each rank its shards
        trainer.json       the caller's state and the optimizer's hyper-parameters
        rng-00000.json     generators of rank 0 (Python, NumPy, torch, CUDA); one file per rank
        recipe.json        the resolved recipe
        manifest.json      written last: every file with its size, every tensor with dtype and shape

Tensors go through torch.distributed.checkpoint with its Hugging Face writer, which (with
``save_distributed=True``) writes no pickled ``.metadata``; all else is JSON. Several ranks need a
folder that all of them see. One run at a time owns a folder: ``run.folder`` sees to that.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn

from ovlt.run.folder import RECIPE, require_json, some
from ovlt.system.collectives import (
    from_rank_zero,
    on_all_ranks,
    rank_and_world_size,
    waiting_group,
)
from ovlt.system.files import read_json, swap_folder, write_json
from ovlt.system.rng import rng_state, set_rng_state

FORMAT = 1
MANIFEST, TRAINER = "manifest.json", "trainer.json"

# The writer builds each file in memory, beside a CPU copy of its tensors: this bounds both.
MAX_FILE_BYTES = 2 << 30

# Implementation switches of AdamW: taken from the machine that resumes, not from the checkpoint.
IMPLEMENTATION_SWITCHES = frozenset({"fused", "foreach", "capturable", "differentiable"})


def save(
    folder: Path | str,
    *,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    recipe: dict[str, Any],
    keep: int = 2,
) -> Path:
    """Write ``folder/step_%06d``, drop all but the newest ``keep``, return its path. Collective.

    ``model`` is sharded by FSDP2 (a plain module works too); tied weights are written once.
    ``optimizer`` is an AdamW whose state (if it has any yet) is tensors. ``state`` holds plain
    JSON values and is equal on all ranks. No generator is advanced. Raises ValueError for a state
    that would not come back as it is, OSError when the disk fails; a failure of one rank is raised
    on all. Until the final rename, ``latest`` keeps answering with the previous checkpoint.
    """
    if keep < 1:
        raise ValueError(
            f"keep={keep}: a checkpoint that is dropped at once is no use; give keep >= 1"
        )
    rank, world_size = rank_and_world_size()
    rng = rng_state()
    tensors, names = _model_tensors(model)
    trainer = {"state": state, "param_groups": _hyper_parameters(optimizer, names)}
    tensors |= _optimizer_tensors(optimizer, names)
    final = Path(folder) / f"step_{step:06d}"

    on_all_ranks(lambda: require_json(trainer, ""))
    text = json.dumps(state, sort_keys=True)
    pid, first = from_rank_zero((os.getpid(), text))
    temporary = final.with_name(f"{final.name}.tmp-{pid}")

    def prepare() -> None:
        if text != first:
            raise ValueError(
                f"the state of rank {rank} differs from that of rank 0, whose copy is the one that "
                "is kept: put only values that are equal on all ranks into `state`"
            )
        if rank == 0:
            for stale in final.parent.glob("step_*.tmp-*"):  # of a run that was killed
                shutil.rmtree(stale)
            temporary.mkdir(parents=True)

    on_all_ranks(prepare)
    writer = dcp.HuggingFaceStorageWriter(
        str(temporary),
        fqn_to_index_mapping=_file_of_each(tensors, MAX_FILE_BYTES * world_size),
        save_distributed=True,
    )
    try:
        dcp.save(
            tensors,
            storage_writer=writer,
            process_group=waiting_group(),
            no_dist=not dist.is_initialized(),
        )
    except dcp.CheckpointException as error:  # a BaseException, which handlers would let through
        raise OSError(f"could not write the tensors of {final}: {_first(error)}") from error
    on_all_ranks(lambda: write_json(temporary / _rng_file(rank), rng))

    def publish() -> None:
        if rank != 0:
            return
        num_files = sum((temporary / _rng_file(r)).exists() for r in range(world_size))
        if num_files != world_size:
            raise ValueError(
                f"{temporary} holds files of {num_files} of {world_size} ranks: put the run folder "
                "on storage that all nodes share"
            )
        write_json(temporary / TRAINER, trainer)
        write_json(temporary / RECIPE, recipe)
        manifest = {
            "format": FORMAT,
            "step": step,
            "world_size": world_size,
            "tensors": {name: _signature(tensor) for name, tensor in tensors.items()},
            "files": {file.name: file.stat().st_size for file in sorted(temporary.iterdir())},
        }
        write_json(temporary / MANIFEST, manifest)
        # A folder of that name is torn, or of this same step: killed between the two renames, the
        # run goes on from the checkpoint before and comes to the same weights.
        swap_folder(temporary, final)
        _prune(final.parent, keep)

    on_all_ranks(publish)
    return final


def latest(folder: Path | str) -> Path | None:
    """Return the newest complete checkpoint in ``folder``; None if there is none (or no folder).

    Temporary folders, and those whose files are not what their manifest lists, are skipped.
    """
    return next((path for path in _steps(Path(folder)) if not _why_torn(path)), None)


def passed_over(folder: Path | str) -> str:
    """Name the checkpoints newer than the ``latest`` and what they lack; "" if there are none."""
    torn = ((path, _why_torn(path)) for path in _steps(Path(folder)))
    newer = itertools.takewhile(lambda pair: pair[1], torn)
    return ", ".join(f"{path.name} ({why})" for path, why in newer)


def load(path: Path | str, *, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Restore weights, AdamW state, then the random generators of this rank. Collective.

    Returns the ``state`` given to ``save``.
    ``model`` and ``optimizer`` are built as for a fresh run; what the optimizer held is replaced.
    Another number of ranks than at ``save`` is allowed (tensors are resharded), with a warning: the
    continuation is then not bitwise, and ranks without a saved generator keep theirs. Raises
    ValueError for a torn checkpoint or one of another model, before anything is changed, and for
    tensors that cannot be read.
    """
    path = Path(path)
    rank, world_size = rank_and_world_size()
    tensors, names = _model_tensors(model)

    def prepare() -> tuple[dict[str, Any], dict[str, Any], dict[str, Any] | None]:
        if why := _why_torn(path):
            raise ValueError(
                f"{path} is not a complete checkpoint: {why}; resume from another one "
                "(`latest` passes this one over), or delete the folder"
            )
        manifest, trainer = read_json(path / MANIFEST), read_json(path / TRAINER)
        if differences := _differences(manifest["tensors"], trainer, tensors, optimizer, names):
            raise ValueError(
                f"{path} is a checkpoint of another model or optimizer: {some(differences)}; give "
                "the recipe it was made with (recipe.json in that folder), or another run folder"
            )
        rng_path = path / _rng_file(rank)
        return manifest, trainer, read_json(rng_path) if rank < manifest["world_size"] else None

    manifest, trainer, rng = on_all_ranks(prepare)
    _apply_hyper_parameters(optimizer, trainer["param_groups"])
    tensors |= _allocate_optimizer_state(optimizer, names, manifest["tensors"])
    try:
        dcp.load(
            tensors,
            storage_reader=dcp.HuggingFaceStorageReader(str(path)),
            process_group=waiting_group(),
            no_dist=not dist.is_initialized(),
        )
    except dcp.CheckpointException as error:
        raise ValueError(
            f"the tensors of {path} cannot be read, though its files have the right sizes "
            f"({_first(error)}): delete the folder and resume from an older checkpoint"
        ) from error
    if manifest["world_size"] != world_size and rank == 0:
        warnings.warn(
            f"{path} was written by {manifest['world_size']} ranks and is read by {world_size}: "
            "weights and optimizer are exact, but the continuation is not bitwise that of the run "
            "that was saved",
            stacklevel=2,
        )
    if rng is not None:
        set_rng_state(rng)  # last: whatever is drawn above must not count
    return trainer["state"]


# ---- tensors ---------------------------------------------------------------------------------


def _model_tensors(model: nn.Module) -> tuple[dict[str, Tensor], dict[int, str]]:
    """Map ``model.NAME`` to parameter or persistent buffer, tied ones once; and id to NAME.

    ``state_dict`` and not ``named_parameters``: its hooks bring FSDP2 groups that a forward without
    backward left gathered back to their shards.
    """
    names: dict[int, str] = {}
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in names:
            names[id(tensor)] = name
            tensors[f"model.{name}"] = tensor.detach()
    return tensors, names


def _optimizer_tensors(
    optimizer: torch.optim.Optimizer, names: dict[int, str]
) -> dict[str, Tensor]:
    """Map ``optim.NAME.KEY`` to AdamW state. Empty before the first step: nothing is made up.

    (torch's get_state_dict takes a step of its own there, and the counters then start at 1.)
    """
    return {
        f"optim.{names[id(parameter)]}.{key}": value
        for parameter, values in optimizer.state.items()
        for key, value in values.items()
    }


def _allocate_optimizer_state(
    optimizer: torch.optim.Optimizer, names: dict[int, str], saved: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Give ``optimizer`` zeroed state for what is in ``saved`` and no other; return its tensors."""
    fields: dict[str, list[str]] = {}
    for name in saved:
        if name.startswith("optim."):
            parameter_name, key = name.removeprefix("optim.").rsplit(".", 1)
            fields.setdefault(parameter_name, []).append(key)
    optimizer.state.clear()
    for group in optimizer.param_groups:
        # Where AdamW itself keeps the counter: on the device only if a kernel reads it there.
        on_device = bool(group.get("fused") or group.get("capturable"))
        for parameter in group["params"]:
            for key in fields.get(names[id(parameter)], ()):
                optimizer.state[parameter][key] = (
                    torch.zeros(
                        (), dtype=torch.float32, device=parameter.device if on_device else "cpu"
                    )
                    if key == "step"
                    else torch.zeros_like(parameter, requires_grad=False)
                )
    return _optimizer_tensors(optimizer, names)


def _file_of_each(tensors: Mapping[str, Tensor], max_bytes: int) -> dict[str, int]:
    """Number the file, from 1, that each tensor goes to: as many as ``max_bytes`` allow."""
    files: dict[str, int] = {}
    number, filled = 1, 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        if filled and filled + size > max_bytes:
            number, filled = number + 1, 0
        files[name], filled = number, filled + size
    return files


def _signature(tensor: Tensor) -> list[Any]:
    return [str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]


def _differences(
    saved: Mapping[str, Any],
    trainer: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    names: dict[int, str],
) -> list[str]:
    """Say in which the checkpoint and the live model and optimizer disagree."""
    live = {name: _signature(tensor) for name, tensor in tensors.items()}
    differences = [f"{name} is not in the checkpoint" for name in live if name not in saved]
    for name, (dtype, shape) in saved.items():
        if name.startswith("optim."):
            continue
        if name not in live:
            differences.append(f"{name} is not in the model")
        elif live[name] != [dtype, shape]:
            live_dtype, live_shape = live[name]
            differences.append(
                f"{name} is {dtype} {shape} there and {live_dtype} {live_shape} here"
            )
    groups = [group["params"] for group in trainer["param_groups"]]
    live_groups = [group["params"] for group in _hyper_parameters(optimizer, names)]
    if groups != live_groups:
        before, now = ({n for group in g for n in group} for g in (groups, live_groups))
        differences += [f"{name} is no longer trained" for name in sorted(before - now)]
        differences += [f"{name} was not trained" for name in sorted(now - before)]
        if before == now:
            differences.append("the optimizer's parameter groups are divided otherwise")
    return differences


# ---- what is no tensor -----------------------------------------------------------------------


def _hyper_parameters(
    optimizer: torch.optim.Optimizer, names: dict[int, str]
) -> list[dict[str, Any]]:
    """Return the parameter groups as JSON, their parameters by name."""
    groups = []
    for group in optimizer.param_groups:
        unknown = [tuple(p.shape) for p in group["params"] if id(p) not in names]
        if unknown:
            raise ValueError(
                f"the optimizer holds parameters of shapes {some(unknown)} that the model lacks: "
                "shard the model first and build the optimizer from model.parameters() after that"
            )
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in group.items()}
        groups.append(values | {"params": [names[id(p)] for p in group["params"]]})
    return groups


def _apply_hyper_parameters(optimizer: torch.optim.Optimizer, saved: list[dict[str, Any]]) -> None:
    for group, values in zip(optimizer.param_groups, saved, strict=True):
        for key, value in values.items():
            if key != "params" and key not in IMPLEMENTATION_SWITCHES:
                group[key] = tuple(value) if isinstance(value, list) else value


def _rng_file(rank: int) -> str:
    return f"rng-{rank:05d}.json"


# ---- folders ---------------------------------------------------------------------------------


def _steps(folder: Path) -> list[Path]:
    """List the checkpoint folders, newest first, complete or not."""
    folders = [p for p in folder.glob("step_*") if re.fullmatch(r"step_\d{6,}", p.name)]
    return sorted(folders, key=_step_of, reverse=True)


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step_"))


def _why_torn(path: Path) -> str:
    """Say what is missing in this checkpoint; empty if it is complete."""
    if not path.is_dir():
        return "there is no such folder"
    if not (path / MANIFEST).is_file():
        return f"there is no {MANIFEST}"
    try:
        manifest = read_json(path / MANIFEST)
        if manifest["format"] != FORMAT:
            return f"its format is {manifest['format']!r}, this version reads {FORMAT}"
        for name, size in manifest["files"].items():
            if not (path / name).is_file():
                return f"{name} is missing"
            if (actual := (path / name).stat().st_size) != size:
                return f"{name} has {actual} bytes instead of {size}"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} cannot be read ({error!r})"
    return ""


def _first(error: dcp.CheckpointException) -> str:
    """Say which rank failed first, and how, without tracebacks (they stay with the cause)."""
    rank, (cause, _) = min(error.failures.items())
    return f"rank {rank}: {cause}"


def _prune(folder: Path, keep: int) -> None:
    kept = [path for path in _steps(folder) if not _why_torn(path)][:keep]
    for path in _steps(folder):
        if _step_of(path) < _step_of(kept[-1]):
            shutil.rmtree(path)
