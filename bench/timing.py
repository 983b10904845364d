"""How a benchmark is timed, how its memory is measured, and what is recorded beside the time."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from torch import Tensor

from ovlt.system.env import KEEP_BYTES, M_MMAP_THRESHOLD
from ovlt_kernels.extension import WHY

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
LEAST, MOST = 5, 50  # rounds; short work gets more, to meet a quiet moment
# bench/on_gpu.sh has less time than `make bench`, and wants each line kept when it is there.
SECONDS = float(os.environ.get("OVLT_BENCH_SECONDS", "1.5"))
LINES = os.environ.get("OVLT_BENCH_LINES")  # a file that gets one line of JSON for each benchmark
PEAKS = 3  # the lowest counts: which freed blocks are there to be used again is partly chance
MAPPED_BYTES = 1 << 20  # while a peak is measured, blocks of this size are mapped one by one
LIBC = ctypes.CDLL(None)


def timed(benchmark: Any, group: str, run: Callable[[], object], **info: Any) -> None:
    """Time ``run`` up to the end of its work on the device.

    Args:
        benchmark: pytest-benchmark's fixture.
        group: what is compared; the table has one part for each.
        run: the work, on inputs that are there already.
        info: written into ``extra_info``, with what describes the machine and the peak of memory.
    """

    def whole() -> None:
        run()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    whole()  # compiles, tunes, fills caches
    began = time.perf_counter()
    whole()
    rounds = min(MOST, max(LEAST, round(SECONDS / (time.perf_counter() - began))))
    benchmark.group = group
    benchmark.extra_info |= info | {
        "peak_mib": round(min(peak_mib(whole) for _ in range(PEAKS)), 1),
        "device": torch.cuda.get_device_name() if DEVICE.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "extension": WHY,
    }
    benchmark.pedantic(whole, rounds=rounds, iterations=1, warmup_rounds=1)
    if LINES:
        with Path(LINES).open("a", encoding="utf-8") as file:
            file.write(json.dumps(benchmark.stats.as_dict(include_data=False), default=str) + "\n")


def peak_mib(run: Callable[[], object]) -> float:
    """Return the most memory beyond that before ``run``; on a CPU of the whole process (VmHWM).

    On a CPU the large blocks of memory are mapped one by one meanwhile, so that the peak does not
    depend on which freed blocks earlier work has left behind.
    """
    gc.collect()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**20

    def status(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith(name)))

    LIBC.mallopt(M_MMAP_THRESHOLD, MAPPED_BYTES)
    LIBC.malloc_trim(0)  # else work that uses pages which the process has kept would not be seen
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before = status("VmRSS")
    run()
    peak = (status("VmHWM") - before) / 1024
    LIBC.mallopt(M_MMAP_THRESHOLD, KEEP_BYTES)
    return peak


def relative_errors(got: Sequence[Tensor], exact: Sequence[Tensor]) -> list[float]:
    """Return |got - exact| / |exact| of each, in Frobenius norms and float64."""
    return [
        float((a.detach().double() - b).norm() / b.norm()) for a, b in zip(got, exact, strict=True)
    ]


def short(dtype: torch.dtype) -> str:
    return {torch.bfloat16: "bf16", torch.float32: "fp32", torch.float16: "fp16"}[dtype]


def absent(why: str) -> NoReturn:
    """Leave out a peer that this machine does not have: the table then has no line for it."""
    pytest.skip(why)
