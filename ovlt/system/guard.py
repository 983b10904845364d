"""The state of a process that an engine inside it must not change."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from ovlt.system.rng import guarded_rng


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Leave generators, torch's number of threads and its switch for determinism as they were.

    Inside, the switch is off: it is the trainer's. With it an engine would fill every empty tensor,
    and refuse operations that have no deterministic version, also while it captures CUDA graphs.
    vLLM's worker on CUDA sets torch to one thread for good.
    """
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    threads = torch.get_num_threads()
    torch.use_deterministic_algorithms(False)
    try:
        with guarded_rng():
            yield
    finally:
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
