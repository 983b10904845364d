"""The head's losses, forward and backward: ovlt, its peers and the floor (``make bench``).

A group is one task at one shape and dtype. The tasks: ``grpo`` a clipped policy loss,
``grpo_entropy`` the same with an entropy bonus, ``sft`` cross-entropy; a mean over tokens each. The
floor is the three bare matrix products. ``errors`` are the relative errors of loss, hidden gradient
and weight gradient against float64; those of ``eager`` are what the dtype itself costs.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from head import IMPLEMENTATIONS, Head, Results
from timing import DEVICE, relative_errors, short, timed

ON_GPU = DEVICE.type == "cuda"
SHAPES = (  # N, H, V
    {"7B": (16_384, 3584, 152_064), "3B": (16_384, 2048, 151_936)}
    if ON_GPU
    else {"smoke": (1504, 128, 464), "wide": (2048, 256, 32_768)}
)
DTYPES = [torch.bfloat16] if ON_GPU else [torch.bfloat16, torch.float32]


@functools.lru_cache(maxsize=1)  # tests of one shape follow one another
def head_of(shape: str, dtype: torch.dtype) -> Head:
    return Head(*SHAPES[shape], dtype)


@functools.lru_cache(maxsize=1)
def exact_of(shape: str, dtype: torch.dtype, task: str) -> Results:
    return head_of(shape, dtype).exact(task)


@pytest.mark.parametrize("which", IMPLEMENTATIONS)
@pytest.mark.parametrize("task", ["grpo", "grpo_entropy", "sft"])
@pytest.mark.parametrize("dtype", DTYPES, ids=short)
@pytest.mark.parametrize("shape", SHAPES)
def test_head(benchmark: Any, shape: str, dtype: torch.dtype, task: str, which: str) -> None:
    head = head_of(shape, dtype)
    info: dict[str, Any] = {"shape": SHAPES[shape], "which": which}
    run = functools.partial(getattr(head, which), task)
    if which != "floor":
        got = run()  # a peer that is not here says so before the exact values are worked out
        info["errors"] = relative_errors(got, exact_of(shape, dtype, task))
        del got
    timed(benchmark, f"{task} fwd+bwd {shape} {short(dtype)}", run, **info)
