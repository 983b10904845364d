"""The environment variables that the libraries below read, in one table.

Some are read when a library is imported: :func:`apply` sets these, first thing in a command. Others
are read when the process starts (by the C library and the OpenMP runtime): these a launcher exports
before Python, ``eval "$(python -m ovlt.system.env cpu)"``, as the Makefile does. A variable that
the user has set is left as it is. Importing this module imports nothing but the standard library.
"""

from __future__ import annotations

import math
import os
import shlex
import shutil
import sys
from typing import Literal

Device = Literal["cpu", "cuda"]

AT_IMPORT = {
    "TOKENIZERS_PARALLELISM": "false",  # its threads and our forked workers do not mix
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine in our process: weights need no copy
    "VLLM_LOGGING_LEVEL": "ERROR",  # at WARNING it fills a screen before each stage
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}
AT_IMPORT_CPU = {
    # vLLM's sampler calls torch.compile even when eager: 9 s of g++ before the first token.
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # bound, the ranks of one machine would share its cores
}
# Large temporaries stay in the process. By default glibc gives each back to the kernel and has it
# faulted in again at the next use: 16.8 s became 9.3 s in a step of a 12.6M-parameter model.
AT_START_CPU = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(4 << 30),
}
# What `make` adds for the demo and the tests: they share a machine, and need nothing from outside.
FOR_MAKE = {
    # Threads that wait by spinning starve the other ranks: one generation took 1.5 s or 20 s. On a
    # machine of one's own, spinning is up to 1.6x faster, so no command sets this by itself.
    "OMP_WAIT_POLICY": "passive",
    "HF_HUB_OFFLINE": "1",
}
MOST_THREADS = 16  # more do not help the sizes that run on a CPU


def usable_cores() -> int:
    """Cores this process may use: its affinity, and the quota of its container where it has one."""
    cores = len(os.sched_getaffinity(0))
    try:
        with open("/sys/fs/cgroup/cpu.max", encoding="ascii") as file:
            quota, period = file.read().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, math.ceil(int(quota) / int(period))))


def machine() -> Device:
    """Return "cuda" where nvidia-smi finds a GPU. Asks no torch: it runs before that."""
    if shutil.which("nvidia-smi") is None:
        return "cpu"
    import subprocess

    found = subprocess.run(["nvidia-smi", "-L"], capture_output=True, check=False)
    return "cuda" if found.returncode == 0 and b"GPU" in found.stdout else "cpu"


def variables(device: Device, *, make: bool = False) -> dict[str, str]:
    """The table for ``device``; ``make=True`` adds what must precede the start of Python."""
    table = dict(AT_IMPORT)
    if device == "cpu":
        table |= AT_IMPORT_CPU
    if make:
        table |= FOR_MAKE | {"OMP_NUM_THREADS": str(min(usable_cores(), MOST_THREADS))}
        if device == "cpu":
            table |= AT_START_CPU
    return table


def apply(device: Device, *, make: bool = False) -> None:
    """Set the variables that are unset. Call before torch, transformers or vllm is imported.

    With ``make=True`` also those a launcher should export: of these, child processes see all, and
    this process only the ones read after this call (OpenMP's, not malloc's).
    On a CPU torch this also makes torchvision importable, see :mod:`ovlt.system.torchvision_shim`.
    """
    from ovlt.system import torchvision_shim as _torchvision_shim

    for name, value in variables(device, make=make).items():
        os.environ.setdefault(name, value)
    _torchvision_shim.install()


def exports(device: Device) -> str:
    """The lines a POSIX shell evaluates to get the whole table."""
    table = variables(device, make=True)
    return "\n".join(
        f"export {name}={shlex.quote(os.environ.get(name, value))}" for name, value in table.items()
    )


def main(arguments: list[str]) -> int:
    if len(arguments) > 1 or (arguments and arguments[0] not in ("cpu", "cuda")):
        print("usage: python -m ovlt.system.env [cpu|cuda]", file=sys.stderr)
        return 2
    print(exports("cuda" if (arguments or [machine()])[0] == "cuda" else "cpu"))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
