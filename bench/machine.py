"""What figures were made on and with; how scripts time work and write their results."""

from __future__ import annotations

import datetime as dt
import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch

from ovlt.run import provenance
from ovlt.system.files import write_whole

GPU_FIELDS = (
    "name", "driver_version", "memory.total", "memory.used", "clocks.sm", "clocks.mem",
    "clocks.max.sm", "power.draw", "power.limit", "temperature.gpu",
)  # fmt: skip
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def about() -> dict[str, object]:
    """Return date, commit (OVLT_COMMIT names it if there is no git), hardware, versions, clocks."""
    commit = os.environ.get("OVLT_COMMIT") or provenance.commit()
    return {
        "date": dt.datetime.now(dt.UTC).strftime("%Y-%m-%d %H:%M"),
        "commit": commit[:12],
        "hardware": provenance.hardware(),
        "versions": provenance.versions() | {"cuda": str(torch.version.cuda)},
        "gpu": gpu_state(),
    }


def gpu_state() -> dict[str, str]:
    """Return what nvidia-smi says of the first GPU: clocks, power, memory; {} without one."""
    query = ["nvidia-smi", f"--query-gpu={','.join(GPU_FIELDS)}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    lines = answer.stdout.splitlines()
    if answer.returncode or not lines:
        return {}
    return dict(zip(GPU_FIELDS, [word.strip() for word in lines[0].split(",")], strict=False))


def seconds_of(run: Callable[[], object], *, least: int = 5, total_s: float = 0.5) -> float:
    """Return the median seconds of ``run`` to the end of its work, after a warm-up."""

    def once() -> float:
        began = time.perf_counter()
        run()
        synchronize()
        return time.perf_counter() - began

    once()
    rounds = min(50, max(least, round(total_s / max(1e-6, once()))))
    return statistics.median(once() for _ in range(rounds))


def synchronize() -> None:
    """Wait for the device."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def write_json(path: Path, value: object) -> None:
    """Write a result; a reader sees the old file or the new one, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(value, indent=1).encode() + b"\n")
