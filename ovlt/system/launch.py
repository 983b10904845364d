"""Start commands of ovlt as processes that do not outlive whoever started them."""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from ovlt.config import Recipe
from ovlt.system import env
from ovlt.system.files import write_json

PR_SET_PDEATHSIG = 1  # linux/prctl.h
# What torchrun sets for its ranks: a command that a rank starts must not take itself for a rank.
OF_TORCHRUN = (
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE",
    "ROLE_RANK", "ROLE_WORLD_SIZE", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT",
)  # fmt: skip


def default_ranks(device: env.Device | None = None) -> int:
    """One rank per GPU; on a CPU two (one rank with two threads is as fast, bench/NOTES.md).

    ``device`` None: what the machine has.
    """
    if (device or env.machine()) == "cuda":
        return max(1, len(env.gpus()))
    return min(2, env.usable_cores())


def write_recipe(recipe: Recipe, path: Path) -> Path:
    """Write every value of a recipe as JSON, for the process that is to run it; its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, recipe.resolved())
    return path


def threads_of(ranks: int) -> int:
    """Threads for each of ``ranks`` processes that share this machine."""
    return max(1, min(env.usable_cores() // ranks, env.MOST_THREADS))


def check_ranks(ranks: int) -> None:
    """Raise ValueError if there are fewer GPUs than ranks; on a CPU any number goes."""
    if env.machine() == "cpu" or ranks <= (count := len(env.gpus())):
        return
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    where = "the machine has" if visible is None else f"CUDA_VISIBLE_DEVICES={visible} leaves"
    raise ValueError(
        f"{ranks} ranks need a GPU each, and {where} {count}: ask for at most {count} ranks"
        f"{'' if visible is None else ', or let more GPUs be seen'}; run.device='cpu' uses none"
    )


def exec_ranks(module: str, arguments: Sequence[str], ranks: int) -> NoReturn:
    """Replace this process by ``python -m module``, under torchrun if there are several ranks.

    Raises ValueError if there are too few GPUs.
    """
    check_ranks(ranks)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads_of(ranks)))
    command = [sys.executable, "-m"]
    if ranks > 1:
        command += ["ovlt.system.torchrun", *_torchrun_options(ranks), "-m"]
    sys.stdout.flush()
    os.execv(sys.executable, [*command, module, *arguments])  # noqa: S606 - no shell is wanted


def torchrun(module: str, recipe: Path, ranks: int) -> None:
    """Run ``torchrun --nproc-per-node RANKS -m module recipe`` and wait. Raises on failure.

    A single rank is started without torchrun, whose own imports take seconds. Raises ValueError if
    there are too few GPUs.
    """
    check_ranks(ranks)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads_of(ranks)))
    if ranks == 1:
        python_module(module, [str(recipe)])
        return
    python_module("ovlt.system.torchrun", [*_torchrun_options(ranks), "-m", module, str(recipe)])


def _torchrun_options(ranks: int) -> list[str]:
    return ["--standalone", "--nproc-per-node", str(ranks)]


def python_module(module: str, arguments: Sequence[str]) -> None:
    """Run ``python -m module`` outside of any torchrun that we are in. Raises on failure."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in OF_TORCHRUN and not name.startswith("TORCHELASTIC")
    }
    command = [sys.executable, "-m", "ovlt.system.launch", str(os.getpid()), module, *arguments]
    # close_fds=False: what was made inheritable (the lock of a run folder), the child keeps open.
    if subprocess.run(command, env=environment, check=False, close_fds=False).returncode:
        raise SystemExit(f"failed: python -m {module} {' '.join(arguments)}")


def die_with_parent(with_signal: signal.Signals) -> None:
    """Have Linux send this process a signal when the thread that started it ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(with_signal))


if __name__ == "__main__":
    # SIGTERM, not SIGKILL: torchrun then ends its workers before itself.
    die_with_parent(signal.SIGTERM)
    parent, module, *sys.argv[1:] = sys.argv[1:]
    if os.getppid() != int(parent):  # the parent ended before the line above
        raise SystemExit(1)
    env.apply(env.machine())  # not every module that runs here does so itself
    runpy.run_module(module, run_name="__main__", alter_sys=True)
