"""When the parts of a training step end, on the device's own clock, for bench/step.py."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from machine import DEVICE
from torch import Tensor, nn

from ovlt.model.packed_model import PackedModel


class Marks:
    """Points in the order of one stream: what has just ended there, and bytes of tensors then."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._times: list[torch.cuda.Event | float] = []
        self._bytes: list[int] = []
        self("")

    def __call__(self, name: str) -> None:
        """Mark the end of ``name``."""
        self._names.append(name)
        if DEVICE.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._times.append(event)
            self._bytes.append(torch.cuda.memory_allocated())
        else:
            self._times.append(time.perf_counter())
            self._bytes.append(0)

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each part; call it after the device has come to the end."""
        result: dict[str, float] = {}
        for i, name in enumerate(self._names[1:], 1):
            result[name] = result.get(name, 0.0) + self._between(i - 1, i)
        return result

    def total(self) -> float:
        """Return the seconds from the first mark to the last."""
        return self._between(0, len(self._names) - 1)

    def grown(self, part: str) -> int:
        """Return the bytes that were there more at the end of a part's forward than at first."""
        return self._bytes[self._names.index(f"{part} forward")] - self._bytes[0]

    def _between(self, first: int, last: int) -> float:
        a, b = self._times[first], self._times[last]
        if isinstance(a, float) or isinstance(b, float):
            assert isinstance(a, float)
            assert isinstance(b, float)
            return b - a
        return a.elapsed_time(b) / 1e3


@contextmanager
def marked(model: PackedModel) -> Iterator[Marks]:
    """Yield the marks of a step of ``model``: of tower, decoder and head, forward and backward.

    The head's forward makes its gradients too. A part's backward has ended when the gradient of
    what it got is there.
    """
    marks = Marks()
    tower, decoder = model.model.visual, model.model.language_model

    def begins(module: nn.Module, args: object) -> None:
        marks("embedding")

    def tower_ends(module: nn.Module, args: object, output: object) -> None:
        marks("tower forward")
        on_gradient(output, "decoder backward")

    def decoder_ends(module: nn.Module, args: object, output: object) -> None:
        marks("decoder forward")
        on_gradient(output, "head backward")

    def on_gradient(output: object, name: str) -> None:
        for value in vars(output).values() if hasattr(output, "__dict__") else ():
            if isinstance(value, Tensor) and value.requires_grad:
                value.register_hook(lambda _: marks(name))
                return

    def model_ends(module: nn.Module, args: object, output: object) -> None:
        marks("head forward and its gradients")

    handles = [
        tower.register_forward_pre_hook(begins),
        tower.register_forward_hook(tower_ends),
        decoder.register_forward_hook(decoder_ends),
        model.register_forward_hook(model_ends),
    ]
    try:
        yield marks
    finally:
        for handle in handles:
            handle.remove()
