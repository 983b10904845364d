"""The environment variables that the libraries below read, in one table.

``apply`` sets them, and the options of the C library's allocator, first thing in every command:
before torch, transformers or vllm is imported. Child processes inherit them. A variable that the
user has set is left as it is. Importing this module imports nothing but the standard library.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import os
import shutil
import subprocess
from typing import Literal

from ovlt.system import quiet, torchvision_shim

Device = Literal["cpu", "cuda"]

ALWAYS = {
    "TOKENIZERS_PARALLELISM": "false",  # its threads and forks (torch, the tests) do not mix
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine in our process: weights need no copy
    "VLLM_LOGGING_LEVEL": "ERROR",  # at WARNING it fills a screen before each stage
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}
ON_CPU = {
    # vLLM's sampler calls torch.compile even when eager: 9 s of g++ before the first token.
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # bound, the ranks of one machine would share its cores
}
ON_CUDA = {
    # vLLM's V2 runner imports flashinfer for its sampler, which our requests never use, and cannot
    # start where it is not installed.
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
}
# What the demo and the tests add: they share a machine, and need nothing from outside.
ON_A_SHARED_MACHINE = {
    # Threads that wait by spinning starve the other ranks: one generation took 1.5 s or 20 s. On a
    # machine of one's own, spinning is up to 1.6x faster, so no other command sets this.
    "OMP_WAIT_POLICY": "passive",
    "HF_HUB_OFFLINE": "1",
}
MOST_THREADS = 16  # more do not help the sizes that run on a CPU

# mallopt's parameters (malloc.h). Large temporaries then stay in the process. By default glibc
# gives each back to the kernel and has it faulted in again at the next use: a step of a
# 12.6M-parameter model took 16.8 s, and 9.3 s with these.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEEP_BYTES = 1 << 30


def usable_cores() -> int:
    """Cores this process may use: its affinity, and the quota of its container if it has one."""
    cores = len(os.sched_getaffinity(0))
    try:
        with open("/sys/fs/cgroup/cpu.max", encoding="ascii") as file:
            quota, period = file.read().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, math.ceil(int(quota) / int(period))))


def gpus() -> list[str]:
    """Name the GPUs that CUDA_VISIBLE_DEVICES leaves, as nvidia-smi lists them, without torch."""
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    lines = listed.stdout.splitlines() if listed.returncode == 0 else []
    names = [line.split("(")[0].strip() for line in lines if "GPU " in line]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return names
    words = [word.strip() for word in visible.split(",")]
    if not words[0].lstrip("-").isdecimal():
        return names[: sum(1 for word in words if word)]  # by UUID: as many of them
    # CUDA stops at the first that does not exist, such as -1.
    exist = itertools.takewhile(lambda w: w.isdecimal() and int(w) < len(names), words)
    return [names[int(word)] for word in exist]


def machine() -> Device:
    """Return "cuda" if there is a GPU; in a child of a command, what that command runs on."""
    inherited = os.environ.get("OVLT_DEVICE")
    if inherited in ("cpu", "cuda"):
        return "cuda" if inherited == "cuda" else "cpu"
    return "cuda" if gpus() else "cpu"


def variables(device: Device, *, shared: bool = False) -> dict[str, str]:
    """The table for ``device``; ``shared`` adds what keeps processes from starving each other."""
    table = ALWAYS | {"OVLT_DEVICE": device}  # child processes need not look again
    table |= ON_CPU if device == "cpu" else ON_CUDA
    if shared:
        table |= ON_A_SHARED_MACHINE | {"OMP_NUM_THREADS": str(min(usable_cores(), MOST_THREADS))}
    return table


def apply(device: Device, *, shared: bool = False) -> None:
    """Set the variables that are unset. Call it before torch, transformers or vllm is imported.

    On a CPU this also keeps large blocks of memory in the process, and makes torchvision importable
    beside a CPU torch (see ``torchvision_shim``); everywhere it silences what libraries repeat at
    every start (see ``quiet``).
    """
    for name, value in variables(device, shared=shared).items():
        os.environ.setdefault(name, value)
    if device == "cpu":
        _keep_large_blocks()
    torchvision_shim.install()
    quiet.install(cpu=device == "cpu")


def _keep_large_blocks() -> None:
    """Set the allocator's thresholds, here and for child processes."""
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(KEEP_BYTES))
    os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(4 * KEEP_BYTES))
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # absent from musl
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, int(os.environ["MALLOC_MMAP_THRESHOLD_"]))
        # mallopt takes an int, so the cap is 2 GiB
        mallopt(M_TRIM_THRESHOLD, min(2**31 - 1, int(os.environ["MALLOC_TRIM_THRESHOLD_"])))
