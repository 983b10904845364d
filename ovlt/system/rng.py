"""The global random generators of a process: Python, NumPy, torch CPU and CUDA."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor


def rng_state() -> dict[str, Any]:
    """Return the state of all global generators as JSON values; of CUDA the current device's."""
    version, words, gauss = random.getstate()
    # NumPy's legacy generator is what libraries draw from; ours have their own.
    kind, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002
    return {
        "python": [version, list(words), gauss],
        "numpy": [kind, [int(key) for key in keys], int(position), int(has_gauss), float(cached)],
        "torch": _hex(torch.get_rng_state()),
        "cuda": _hex(torch.cuda.get_rng_state()) if torch.cuda.is_initialized() else None,
    }


def set_rng_state(saved: dict[str, Any]) -> None:
    """Put all generators back to a state of ``rng_state``; CUDA's only if both have one."""
    version, words, gauss = saved["python"]
    kind, keys, *rest = saved["numpy"]
    random.setstate((version, tuple(words), gauss))
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(_tensor(saved["torch"]))
    if saved["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(_tensor(saved["cuda"]))


def seed_everything(seed: int) -> None:
    """Seed all global generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - libraries draw from the global generator
    torch.manual_seed(seed)


@contextlib.contextmanager
def guarded_rng() -> Iterator[None]:
    """Leave all global generators as they were: engines seed them."""
    if torch.cuda.is_available():
        torch.cuda.init()  # otherwise there is no state to keep yet
    saved = rng_state()
    try:
        yield
    finally:
        set_rng_state(saved)


def _hex(state: Tensor) -> str:
    return state.numpy().tobytes().hex()


def _tensor(text: str) -> Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
