"""Micro-batches on their way to the model: built when it is their turn, and copied ahead of it."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import overload

import torch

from ovlt.model.batch import PackedBatch
from ovlt.model.packed_model import PackedModel
from ovlt.system.ahead import ahead

# Micro-batches that wait on the device for their turn. One more is in the making meanwhile.
AHEAD = 1


class MicroBatches(Sequence[PackedBatch]):
    """Micro-batches that are built when they are first asked for.

    ``keep`` holds them for the passes that follow (log-probs, then the update); without it each is
    built anew. Ask from one thread at a time.
    """

    def __init__(self, makers: Sequence[Callable[[], PackedBatch]], *, keep: bool) -> None:
        self._makers, self._keep = list(makers), keep
        self._made: dict[int, PackedBatch] = {}

    def __len__(self) -> int:
        return len(self._makers)

    @overload
    def __getitem__(self, index: int) -> PackedBatch: ...
    @overload
    def __getitem__(self, index: slice) -> list[PackedBatch]: ...
    def __getitem__(self, index: int | slice) -> PackedBatch | list[PackedBatch]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = range(len(self))[index]  # raises IndexError, which ends an iteration
        batch = self._made.get(place)
        if batch is None:
            batch = self._makers[place]()
            if self._keep:
                self._made[place] = batch
        return batch


def joined(parts: Sequence[Sequence[PackedBatch]]) -> MicroBatches:
    """Return the micro-batches of all parts, one part after the other; each part keeps its own."""
    makers = [functools.partial(part.__getitem__, i) for part in parts for i in range(len(part))]
    return MicroBatches(makers, keep=False)


@contextlib.contextmanager
def feed(
    model: PackedModel, batches: Sequence[PackedBatch], device: torch.device
) -> Iterator[Iterator[PackedBatch]]:
    """Give the micro-batches in order, on ``device``.

    For a GPU they are built (if ``batches`` builds them) and copied in a thread, while the model is
    at work on the one before: from pinned memory, on a stream of their own. A few wait at a time,
    and what building one raises is raised at its turn. On a CPU there is nothing to copy, and every
    core is at work anyway.
    """
    if device.type != "cuda":
        yield iter(batches)
        return
    with contextlib.closing(_copied(model, batches, device)) as copied:
        yield copied


def _copied(
    model: PackedModel, batches: Sequence[PackedBatch], device: torch.device
) -> Generator[PackedBatch, None, None]:
    ready = ahead((_copy(model, batch, device) for batch in batches), AHEAD)
    with contextlib.closing(ready):
        for batch, done in ready:
            stream = torch.cuda.current_stream(device)
            stream.wait_event(done)
            # The copies' memory belongs to the other stream, which must not use it again before
            # this one is through with it.
            for tensor in batch.tensors():
                tensor.record_stream(stream)
            yield batch


def _copy(
    model: PackedModel, batch: PackedBatch, device: torch.device
) -> tuple[PackedBatch, torch.cuda.Event]:
    """Start to copy a batch, and return it with what says that the copy is done."""
    model.check_labels(batch)  # here, since on a GPU the head does not look at them
    stream = _copy_stream(device)
    with torch.cuda.device(device), torch.cuda.stream(stream):  # of this thread
        moved = batch.to(device)
        done = torch.cuda.Event()
        done.record(stream)
    return moved, done


@functools.cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
