"""Where the recurrent layers find what a segment starts from: in levels, chunks and contexts.

A segment that continues a prompt starts from the prompt's last state. So the segments of a packed
row are computed in two levels: those that continue nothing, then those that continue one of these.
All indices are made once for a row, on the host, and serve every layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from ovlt.model.segments import Segments

CHUNK = 64  # tokens that are computed at once between two states
SHORT = (16, 32, CHUNK)  # lengths to which a segment of at most one chunk is filled


@dataclass(frozen=True)
class Boundaries:
    """Boundaries of N sequences, end to end, int64 [N + 1]."""

    there: Tensor  # on the device
    host: Tensor


@dataclass(frozen=True)
class Level:
    """N segments that can be computed at once."""

    segments: list[int]  # of the row, int [N]
    rows: Tensor | None  # int64 [tokens of the level], in the row; None: the level is the row
    boundaries: Boundaries
    parents: Tensor | None  # int64 [N], the segment of the first level that each continues


@dataclass(frozen=True)
class ChunkCall:
    """Segments of one length in chunks, side by side in a batch."""

    segments: list[int]
    chunks: int
    size: int  # tokens of a chunk
    parents: Tensor | None  # int64, see ``Chunks``; None: they start from 0


@dataclass(frozen=True)
class Chunks:
    """All segments in a few calls, each filled up to whole chunks with its last token.

    A call depends on the lengths of its own segments alone, so a segment is computed in the same
    way whatever else is in the row. ``parents`` count the segments of the first level in the order
    of its calls.
    """

    calls: list[ChunkCall]  # those of the first level first
    filled: Tensor  # int64 [F], the token of each place, call after call
    real: Tensor  # bool [F], False: filled
    inverse: Tensor  # int64 [T], the place of each token


@dataclass(frozen=True)
class Contexts:
    """The row with some rows before each segment: the last of the prompt that it continues.

    Or rows of zeros, which come from no token.
    """

    total: int
    own: Tensor  # int64 [T], the place of each token
    places: Tensor  # int64 [copies], where a prompt's tokens stand again
    sources: Tensor  # int64 [copies], these tokens
    boundaries: Boundaries


class DeltaLayout:
    """The indices that the delta rule and the convolution need for one row."""

    def __init__(self, segments: Segments) -> None:
        self._lengths, self._starts = segments.lengths, segments.starts
        self._prefix, self._total = segments.prefix, segments.total
        self._device = segments.device
        self._contexts: dict[tuple[int, bool], Contexts] = {}

    @cached_property
    def levels(self) -> list[Level]:
        """Return one level, or two if segments continue others."""
        first = [s for s, p in enumerate(self._prefix) if p < 0]
        if len(first) == len(self._prefix):
            return [Level(first, None, self._boundaries(self._lengths), None)]
        second = [s for s, p in enumerate(self._prefix) if p >= 0]
        number = {s: i for i, s in enumerate(first)}
        parents = self._placed([number[self._prefix[s]] for s in second])
        return [self._level(first, None), self._level(second, parents)]

    @cached_property
    def chunks(self) -> Chunks:
        """Return the segments gathered by their numbers of chunks, level after level."""
        calls: list[ChunkCall] = []
        number: dict[int, int] = {}  # of the first level's segments, in the order of their calls
        for level, continues in enumerate((False, True)):
            shapes: dict[tuple[int, int], list[int]] = {}
            for s, p in enumerate(self._prefix):
                if (p >= 0) == continues:
                    shapes.setdefault(_shape(self._lengths[s]), []).append(s)
            for (chunks, size), members in sorted(shapes.items()):
                parents = None
                if level:
                    parents = self._placed([number[self._prefix[s]] for s in members])
                else:
                    number |= {s: len(number) + i for i, s in enumerate(members)}
                calls.append(ChunkCall(members, chunks, size, parents))
        filled: list[np.ndarray] = []
        real: list[np.ndarray] = []
        inverse = np.empty(self._total, np.int64)
        at = 0
        for call in calls:
            places = np.arange(call.chunks * call.size)
            for s in call.segments:
                start, length = self._starts[s], self._lengths[s]
                filled.append(start + np.minimum(places, length - 1))
                real.append(places < length)
                inverse[start : start + length] = at + places[:length]
                at += len(places)
        return Chunks(
            calls,
            self._placed(np.concatenate(filled)),
            self._placed(np.concatenate(real)),
            self._placed(inverse),
        )

    def contexts(self, rows: int, *, zeros: bool) -> Contexts:
        """Return the row with up to ``rows`` rows of context before each segment.

        With ``zeros``, exactly so many: what is lacking is zero.
        """
        key = (rows, zeros)
        if key not in self._contexts:
            self._contexts[key] = self._make_contexts(rows, zeros)
        return self._contexts[key]

    def _make_contexts(self, rows: int, zeros: bool) -> Contexts:
        own = np.empty(self._total, np.int64)
        places: list[int] = []
        sources: list[int] = []
        sizes: list[int] = []
        at = 0
        for start, length, p in zip(self._starts, self._lengths, self._prefix, strict=True):
            copies = min(rows, self._lengths[p]) if p >= 0 else 0
            before = rows if zeros else copies
            end = self._starts[p] + self._lengths[p]
            places += range(at + before - copies, at + before)
            sources += range(end - copies, end)
            own[start : start + length] = at + before + np.arange(length)
            sizes.append(before + length)
            at += sizes[-1]
        return Contexts(
            at,
            self._placed(own),
            self._placed(places),
            self._placed(sources),
            self._boundaries(sizes),
        )

    def _level(self, segments: list[int], parents: Tensor | None) -> Level:
        spans = [self._starts[s] + np.arange(self._lengths[s]) for s in segments]
        boundaries = self._boundaries([self._lengths[s] for s in segments])
        return Level(segments, self._placed(np.concatenate(spans)), boundaries, parents)

    def _boundaries(self, lengths: Sequence[int]) -> Boundaries:
        host = torch.from_numpy(np.cumsum([0, *lengths], dtype=np.int64))
        return Boundaries(host.to(self._device, non_blocking=True), host)

    def _placed(self, index: np.ndarray | Sequence[int]) -> Tensor:
        array = np.asarray(index, None if isinstance(index, np.ndarray) else np.int64)
        return torch.from_numpy(array).to(self._device, non_blocking=True)


_LAYOUTS: WeakKeyDictionary[Segments, DeltaLayout] = WeakKeyDictionary()


def layout_of(segments: Segments) -> DeltaLayout:
    """Return the layout of ``segments``, made once and kept as long as they are."""
    if segments not in _LAYOUTS:
        _LAYOUTS[segments] = DeltaLayout(segments)
    return _LAYOUTS[segments]


def _shape(length: int) -> tuple[int, int]:
    """Return number and size of the chunks to which a segment of ``length`` tokens is filled."""
    if length <= CHUNK:
        return 1, next(size for size in SHORT if length <= size)
    return -(-length // CHUNK), CHUNK
