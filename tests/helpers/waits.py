"""Counts what would wait for the device on a GPU: every place where Python asks for a value."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = str(Path(__file__).parents[2])
# Operators whose result, or its size, depends on values.
OPERATORS = (
    "_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique", "_unique2",
    "unique_consecutive", "unique_dim", "bincount", "repeat_interleave.Tensor",
    "nonzero_static",
)  # fmt: skip
METHODS = (
    "tolist", "item", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__",
    "__contains__", "__array__", "tensor", "as_tensor",  # a copy from a list waits too
)  # fmt: skip


class Waits:
    """Inside ``with``, ``seen`` collects (what, file and line of this repository that asks)."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []
        self._modes: list[Any] = [_Operators(self), _Methods(self)]

    def __enter__(self) -> Waits:
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)

    def note(self, what: str) -> None:
        ours = [f for f in traceback.extract_stack() if f.filename.startswith(ROOT)]
        ours = [f for f in ours if not f.filename.endswith("helpers/waits.py")]
        self.seen.append((what, f"{ours[-1].filename.removeprefix(ROOT)}:{ours[-1].name}"))


class _Operators(TorchDispatchMode):
    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).removeprefix("aten.")
        masked = name.startswith(("index.", "index_put")) and any(
            isinstance(i, torch.Tensor) and i.dtype == torch.bool for i in args[1]
        )
        if masked or any(name == o or name.startswith(f"{o}.") for o in OPERATORS):
            self.waits.note(name)
        return func(*args, **(kwargs or {}))


class _Methods(TorchFunctionMode):
    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in METHODS:
            self.waits.note(name)
        return func(*args, **(kwargs or {}))
