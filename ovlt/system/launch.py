"""Commands of ours as processes of their own, which do not outlive who started them."""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

from ovlt.system import env

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def default_ranks() -> int:
    """One rank per GPU; on a CPU two (one with two threads is as fast, bench/NOTES.md)."""
    if env.machine() == "cuda":
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True)
        return max(1, listed.stdout.count("GPU "))
    return min(2, env.usable_cores())


def torchrun(module: str, recipe: Path, ranks: int) -> None:
    """``torchrun --nproc-per-node RANKS -m module recipe``. Raises on failure."""
    launch = ["--standalone", "--nproc-per-node", str(ranks), "-m", module, str(recipe)]
    python_module("torch.distributed.run", launch)


def python_module(module: str, arguments: list[str]) -> None:
    """Run ``python -m module`` outside of any torchrun that we are in. Raises on failure."""
    ours = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_RANK")
    drop = (*ours, "MASTER_ADDR", "MASTER_PORT", "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE", "ROLE_NAME")
    environment = {
        k: v for k, v in os.environ.items() if k not in drop and not k.startswith("TORCHELASTIC")
    }
    command = [sys.executable, "-m", "ovlt.system.launch", str(os.getpid()), module, *arguments]
    # close_fds=False: what was made inheritable (the lock of a run folder), the child holds too.
    if subprocess.run(command, env=environment, check=False, close_fds=False).returncode:
        raise SystemExit(f"failed: python -m {module} {' '.join(arguments)}")


def die_with_parent(with_signal: signal.Signals) -> None:
    """Have the system send this process a signal when the thread that started it ends. Linux."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(with_signal))


if __name__ == "__main__":
    # SIGTERM, not SIGKILL: torchrun then ends its workers before itself.
    die_with_parent(signal.SIGTERM)
    parent, module, *sys.argv[1:] = sys.argv[1:]
    if os.getppid() != int(parent):  # it ended before we had said that
        raise SystemExit(1)
    runpy.run_module(module, run_name="__main__", alter_sys=True)
