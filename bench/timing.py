"""How a benchmark is timed, and where it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ovlt_kernels.extension import WHY

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def timed(benchmark: Any, group: str, run: Callable[[], object], **info: Any) -> None:
    """Time ``run`` up to the end of its work on the device."""

    def whole() -> None:
        run()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    benchmark.group = group
    benchmark.extra_info |= info | {
        "device": torch.cuda.get_device_name() if DEVICE.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "extension": WHY,
    }
    benchmark.pedantic(whole, rounds=7, iterations=1, warmup_rounds=2)
