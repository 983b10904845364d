"""Run by tests/test_checkpoint.py; writes what it saw to OUT as JSON.

torchrun ... checkpoint_worker.py OUT        round trips and refusals on these ranks
python checkpoint_worker.py OUT OTHER        the same on one rank, with OTHER a checkpoint of two;
                                             then runs that are killed inside `save` and resumed
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import random
import shutil
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from ovlt.system.rng import rng_state
from ovlt.system.runtime import leave
from ovlt.train import checkpoint

RECIPE = {"run": {"seed": 3}}


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 7), nn.Linear(7, width)
        self.gain = nn.Parameter(torch.ones(1))  # one row: the second rank's shard is empty
        self.dropout = nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gain * self.down(self.dropout(self.up(x).tanh()))


class Tiny(nn.Module):
    """Embedding, a frozen layer, two blocks, a head that may be tied, and a persistent buffer."""

    def __init__(self, tied: bool, vocabulary: int, width: int = 5) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.frozen = nn.Linear(width, width).requires_grad_(False)
        self.blocks = nn.ModuleList(Block(width) for _ in range(2))
        self.lm_head = nn.Linear(width, vocabulary, bias=False)
        if tied:
            self.lm_head.weight = self.embed.weight
        self.register_buffer("steps_seen", torch.zeros(3))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.frozen(self.embed(ids))
        if self.training:
            self.steps_seen += 1
            # All three generators have a part in what is learnt.
            noise = np.random.default_rng(np.random.randint(9)).normal() + random.random()  # noqa: NPY002
            x = x + 0.1 * torch.randn_like(x) * noise
        for block in self.blocks:
            x = block(x)
        return self.lm_head(x)


def seed(value: int) -> None:
    random.seed(value)
    np.random.seed(value)  # noqa: NPY002
    torch.manual_seed(value)


def build(
    tied: bool, init: int, vocabulary: int = 11, **how: bool
) -> tuple[Tiny, torch.optim.AdamW]:
    """The same full weights on every rank, then generators that differ by rank."""
    seed(init)
    model = Tiny(tied, vocabulary)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("dp",))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    seed(100 * init + dist.get_rank())
    decayed = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    return model, torch.optim.AdamW(groups, lr=0.02, **how)


def train(model: Tiny, optimizer: torch.optim.AdamW, steps: int) -> None:
    for _ in range(steps):
        for group in optimizer.param_groups:  # a schedule that goes by what the group holds
            group["lr"] *= 0.9
        ids = torch.randint(0, 11, (3, 4))
        loss = nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def digest(model: Tiny, optimizer: torch.optim.AdamW) -> dict[str, str]:
    """Hashes of this rank's shards, of AdamW's state, and of what the generators give next."""
    weights = {name: local(tensor).tolist() for name, tensor in model.state_dict().items()}
    moments = [
        [
            {key: local(value).tolist() for key, value in optimizer.state[p].items()}
            for p in group["params"]
            if p in optimizer.state
        ]
        for group in optimizer.param_groups
    ]
    hyper = [
        {key: value for key, value in group.items() if key != "params"}
        for group in optimizer.param_groups
    ]
    draws = [random.random(), np.random.random(), torch.rand(3).tolist()]  # noqa: NPY002
    parts = {"weights": weights, "moments": moments, "hyper": hyper, "draws": draws}
    return {
        name: hashlib.sha256(json.dumps(part, sort_keys=True).encode()).hexdigest()[:12]
        for name, part in parts.items()
    }


def local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(model: Tiny, optimizer: torch.optim.AdamW) -> str:
    """A hash of the full weights and moments, the same for every number of ranks. Collective."""
    tensors = dict(model.state_dict())
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{name}/{key}"] = value
    full = {
        name: (t.full_tensor() if isinstance(t, DTensor) else t).tolist()
        for name, t in tensors.items()
    }
    return hashlib.sha256(json.dumps(full, sort_keys=True).encode()).hexdigest()


def save(folder: Path, step: int, run: tuple[Tiny, torch.optim.AdamW], keep: int = 2) -> Path:
    model, optimizer = run
    state = {"step": step, "best": 0.1 + step, "sampler": [1, None], "whole": whole(*run)}
    with torch.no_grad():  # leaves the root group gathered, as a validation would
        model.eval()(torch.arange(5)[None])
        model.train()
    how = {"model": model, "optimizer": optimizer, "recipe": RECIPE, "keep": keep}
    return checkpoint.save(folder, step=step, state=state, **how)


def refusal(work: Callable[[], object]) -> str:
    try:
        work()
    except ValueError as error:
        return str(error)
    return "no ValueError"


# ---- under torchrun --------------------------------------------------------------------------


def round_trip(folder: Path, tied: bool, **how: bool) -> dict[str, object]:
    run = build(tied, 1, **how)
    train(*run, 4)
    straight = digest(*run)

    run = build(tied, 1, **how)
    train(*run, 2)
    path = save(folder, 2, run)
    train(*run, 2)
    undisturbed = digest(*run)

    run = build(tied, 2, **how)
    train(*run, 1)  # it has moments of its own, which must go
    state = checkpoint.load(path, model=run[0], optimizer=run[1])
    loaded = state["whole"] == whole(*run)
    head_tied = run[0].lm_head.weight is run[0].embed.weight
    train(*run, 2)
    return {
        "straight": straight,
        "undisturbed": undisturbed,
        "resumed": digest(*run),
        "state": state,
        "loaded_is_saved": loaded,
        "tied": head_tied,
    }


def before_first_step(folder: Path) -> dict[str, object]:
    run = build(True, 1, fused=True)
    save(folder, 0, run)
    train(*run, 2)
    straight = digest(*run)
    run = build(True, 2, fused=True)
    train(*run, 1)
    checkpoint.load(folder / "step_000000", model=run[0], optimizer=run[1])
    empty = not run[1].state
    train(*run, 2)
    return {"straight": straight, "resumed": digest(*run), "empty": empty}


def other_kernel(folder: Path) -> dict[str, object]:
    """Written by foreach, continued by fused AdamW: the switch stays, the numbers come along."""
    run = build(False, 2, fused=True)
    state = checkpoint.load(folder / "step_000002", model=run[0], optimizer=run[1])
    same = state["whole"] == whole(*run)
    train(*run, 1)
    return {"fused": all(g["fused"] for g in run[1].param_groups), "same": same}


def many_files(folder: Path) -> dict[str, object]:
    before, checkpoint.MAX_FILE_BYTES = checkpoint.MAX_FILE_BYTES, 300
    run = build(True, 1)
    train(*run, 1)
    path = save(folder, 1, run)
    checkpoint.MAX_FILE_BYTES = before
    run = build(True, 2)
    state = checkpoint.load(path, model=run[0], optimizer=run[1])
    return {"files": len(list(path.glob("*.safetensors"))), "same": state["whole"] == whole(*run)}


def refusals(folder: Path) -> dict[str, object]:
    run = build(True, 1)
    train(*run, 1)
    for step in (1, 2, 3):
        save(folder, step, run)
    path = save(folder, 3, run)  # once more: replaces the first
    kept = sorted(p.name for p in folder.iterdir())

    def load(broken: Path, into: tuple[Tiny, torch.optim.AdamW] = run) -> str:
        return refusal(lambda: checkpoint.load(broken, model=into[0], optimizer=into[1]))

    def broken(name: str, work: Callable[[Path], object]) -> Path:
        copy = folder.parent / "broken" / name
        if dist.get_rank() == 0:
            shutil.copytree(path, copy)
            work(next(copy.glob("shard-00001-*")))
        dist.barrier()
        return copy

    def cut(file: Path) -> None:
        os.truncate(file, file.stat().st_size - 1)

    def scribble(file: Path) -> None:
        file.write_bytes(b"\xff" * file.stat().st_size)

    unlucky = {"step": 1, "mine": dist.get_rank()}
    before = whole(*run)
    seen = {
        "truncated": load(broken("truncated", cut)),
        "missing": load(broken("missing", Path.unlink)),
        "nothing": load(folder / "step_000099"),
        "untied": load(path, build(False, 1)),
        "shape": load(path, build(True, 1, vocabulary=13)),
    }
    unchanged = before == whole(*run)
    seen["scribbled"] = load(broken("scribbled", scribble))
    for name, state in [("tuple", {"at": (1, 2)}), ("numpy", {"best": np.float64(1)})]:
        seen[name] = refusal(lambda state=state: save_state(folder, run, state))
    if dist.get_world_size() > 1:
        seen["unequal"] = refusal(lambda: save_state(folder, run, unlucky))
    return {"kept": kept, "seen": seen, "unchanged": unchanged, "left": len(list(folder.iterdir()))}


def save_state(folder: Path, run: tuple[Tiny, torch.optim.AdamW], state: dict) -> None:
    checkpoint.save(folder, step=4, model=run[0], optimizer=run[1], state=state, recipe=RECIPE)


def resharded(path: Path) -> dict[str, object]:
    run = build(True, 2, fused=True)
    before = rng_state()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        state = checkpoint.load(path, model=run[0], optimizer=run[1])
    return {
        "generators_restored": rng_state() != before,
        "warnings": [str(w.message) for w in caught if "bitwise" in str(w.message)],
        "same": state["whole"] == whole(*run),
    }


def ranks(out: Path) -> None:
    seen = {
        "tied": round_trip(out / "tied", True, fused=True),
        "untied": round_trip(out / "untied", False, foreach=True),
        "first": before_first_step(out / "first"),
        "kernel": other_kernel(out / "untied"),
        "many": many_files(out / "many"),
        "refusals": refusals(out / "refusals"),
    }
    (out / f"rank{dist.get_rank()}.json").write_text(json.dumps(seen))


# ---- kill -9 ---------------------------------------------------------------------------------

KILL_AT: dict[str, Callable[[str, tuple], bool]] = {
    # Python announces these events before it does what they name.
    "first tensor file": lambda event, args: (
        event == "open" and ".tmp-" in str(args[0]) and str(args[0]).endswith(".safetensors")
    ),
    "manifest": lambda event, args: event == "open" and "manifest.json" in str(args[0]),
    "rename": lambda event, args: event == "os.rename" and str(args[1]).endswith("step_000003"),
    "prune": lambda event, args: event == "shutil.rmtree" and str(args[0]).endswith("step_000002"),
}


def forked(world_size: int, store: Path, work: Callable[[], None]) -> int:
    """``work`` on forked ranks; the first status that is not 0. When rank 0 fails, all die."""
    children = []
    for rank in range(world_size):
        if (child := os.fork()) == 0:
            status = 1
            try:
                dist.init_process_group(
                    "gloo", init_method=f"file://{store}", rank=rank, world_size=world_size
                )
                work()
                dist.barrier()
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        children.append(child)
    status = os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1])
    for child in children[1:]:
        if status != 0:
            os.kill(child, signal.SIGKILL)
        status = status or os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return status


def killed(home: Path, world_size: int, point: str) -> dict[str, object]:
    """A run killed at ``point`` of its second `save`, then resumed in fresh processes."""
    home.mkdir(parents=True)

    def interrupted() -> None:
        run = build(True, 1, fused=True)
        train(*run, 2)
        save(home / "run", 2, run, keep=1)
        train(*run, 1)
        if dist.get_rank() == 0:
            sys.addaudithook(kill)
        save(home / "run", 3, run, keep=1)

    def kill(event: str, args: tuple) -> None:
        if KILL_AT[point](event, args):
            os.kill(os.getpid(), signal.SIGKILL)

    def resumed() -> None:
        run = build(True, 2, fused=True)
        path = checkpoint.latest(home / "run")
        assert path is not None
        done = checkpoint.load(path, model=run[0], optimizer=run[1])["step"]
        if done < 3:
            train(*run, 3 - done)
            save(home / "run", 3, run, keep=1)
        train(*run, 1)
        (home / f"rank{dist.get_rank()}").write_text(json.dumps(digest(*run)))

    status = forked(world_size, home / "store1", interrupted)
    newest = checkpoint.latest(home / "run")
    left = sorted(p.name.split("-")[0] for p in (home / "run").iterdir())
    return {
        "status": status,
        "latest": newest and newest.name,
        "left": left,
        "resumed_status": forked(world_size, home / "store2", resumed),
        "at_the_end": sorted(p.name for p in (home / "run").iterdir()),
        "resumed": [json.loads((home / f"rank{r}").read_text()) for r in range(world_size)],
    }


def alone(out: Path, other: Path) -> None:
    """All in forks, so that torch is imported once."""
    importlib.import_module("torch._dynamo")  # else each fork imports it for its fully_shard

    def reshard(path: Path) -> None:
        text = json.dumps(resharded(path))
        (out / f"of{dist.get_world_size()}rank{dist.get_rank()}.json").write_text(text)

    assert forked(1, out / "store1", lambda: ranks(out)) == 0
    assert forked(1, out / "store2", lambda: reshard(other)) == 0
    assert forked(2, out / "store3", lambda: reshard(out / "tied" / "step_000002")) == 0
    cases = [(1, point) for point in KILL_AT] + [(2, "rename")]
    seen = {f"{n} {point}": killed(out / f"{n} {point}", n, point) for n, point in cases}
    (out / "killed.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    torch.set_num_threads(1)
    if len(sys.argv) == 3:
        alone(Path(sys.argv[1]), Path(sys.argv[2]))
    else:
        dist.init_process_group("gloo")
        ranks(Path(sys.argv[1]))
        dist.destroy_process_group()
    leave()
