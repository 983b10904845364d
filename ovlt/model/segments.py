"""Which tokens of a packed row see which: segments, and the prompts that they continue.

A sample alone is one segment. Samples that share their prompt are laid out as

    [prompt][response 1]...[response n]

with a segment for each part. The tokens of a response see the whole prompt and, causally, their own
response; never another response. So the prompt is computed once for all its responses.

The values are held on the host: every layer asks for them, and reading them from a GPU would wait
for the device.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

_ATTRIBUTE = "_ovlt_segments"  # of a boundaries tensor, see segments_of
# On a CPU, segments of one call are filled up to the longest of them. A shorter
# one joins if it lacks at most this many tokens, or this share of the longest (measured:
# bench/NOTES.md, 2026-11-27).
FILL_TOKENS, FILL_SHARE = 16, 0.125


@dataclass(frozen=True)
class Call:
    """Segments that one attention call takes: each of ``length`` tokens after ``prefix`` others."""

    segments: int
    length: int
    prefix: int  # tokens of the prompt that each continues; 0: none


@dataclass(frozen=True)
class EqualCalls:
    """Segments gathered by equal lengths, their own and their prefix's."""

    calls: list[Call]
    queries: Tensor | None  # int64 [T], call after call; None: the row is in this order already
    keys: Tensor | None  # int64 [K], each segment's prefix and own tokens; None: as the queries
    inverse: Tensor | None  # int64 [T], from the order of the queries back to the row


@dataclass(frozen=True)
class Buckets:
    """All segments in a few calls, each filled up to one length with its last token.

    Without their prefixes.
    """

    calls: list[Call]
    filled: Tensor | None  # int64, the token of each place, call after call; None: as in the row
    inverse: Tensor | None  # int64 [T], the place of each token


class Segments:
    """The segments of a packed row of T tokens.

    Raises ValueError if a segment is empty or does not follow its prefix as it must.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        prefix: Sequence[int] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """Describe segments of these ``lengths``, end to end.

        Args:
            lengths: tokens of each segment, int [S], all > 0.
            prefix: the segment that each continues, int [S]; -1, or None for all: none. A prefix
                continues nothing, and those that continue it follow it directly.
            device: where the index tensors are wanted.
        """
        self.lengths = list(lengths)
        self.prefix = [-1] * len(self.lengths) if prefix is None else list(prefix)
        self.device = torch.device(device)
        ends = list(itertools.accumulate(self.lengths, initial=0))
        self.starts, self.total = ends[:-1], ends[-1]
        self.longest = max(self.lengths, default=0)
        self._check()
        if self.device.type == "cuda":  # start the copies now, so that no layer waits for them
            _ = self.cu_seqlens, self.cu_seqlens_keys, self.key_index

    def _check(self) -> None:
        if not self.lengths:
            raise ValueError("cu_seqlens must be [S + 1] boundaries of at least one segment.")
        for s, length in enumerate(self.lengths):
            if length <= 0:
                raise ValueError(
                    f"cu_seqlens must be strictly increasing, but segment {s} has the length "
                    f"{length}: leave out samples without tokens."
                )
        if len(self.prefix) != len(self.lengths):
            raise ValueError(f"{len(self.prefix)} prefixes for {len(self.lengths)} segments.")
        for s, p in enumerate(self.prefix):
            follows = s > 0 and ((p == s - 1 and self.prefix[p] == -1) or p == self.prefix[s - 1])
            if p != -1 and not follows:
                raise ValueError(
                    f"segment {s} continues segment {p}, but only a segment directly behind it, or "
                    "behind others that continue it, can do so."
                )

    def to(self, device: torch.device | str) -> Segments:
        """The same segments, with their index tensors on ``device``."""
        if torch.device(device) == self.device:
            return self
        return Segments(self.lengths, self.prefix, device)

    @cached_property
    def shared(self) -> bool:
        """Whether any segment continues another."""
        return any(p >= 0 for p in self.prefix)

    @cached_property
    def prefix_lengths(self) -> list[int]:
        """Tokens before its own that each segment sees, int [S]."""
        return [self.lengths[p] if p >= 0 else 0 for p in self.prefix]

    @cached_property
    def longest_keys(self) -> int:
        """Most tokens that a segment sees, its own included."""
        return max(map(sum, zip(self.prefix_lengths, self.lengths, strict=True)))

    @cached_property
    def cu_seqlens(self) -> Tensor:
        """Boundaries of the segments' own tokens, int32 [S + 1]."""
        return self._placed(np.array([*self.starts, self.total], np.int32))

    @cached_property
    def cu_seqlens_keys(self) -> Tensor:
        """Boundaries of the tokens that each segment sees, int32 [S + 1].

        ``cu_seqlens`` itself if nothing is shared.
        """
        if not self.shared:
            return self.cu_seqlens
        sizes = map(sum, zip(self.prefix_lengths, self.lengths, strict=True))
        return self._placed(np.array([*itertools.accumulate(sizes, initial=0)], np.int32))

    @cached_property
    def key_index(self) -> Tensor | None:
        """The tokens that each segment sees, end to end, int64 [K]; None if nothing is shared."""
        if not self.shared:
            return None
        return self._placed(np.concatenate([self._keys(s) for s in range(len(self.lengths))]))

    @cached_property
    def equal_calls(self) -> EqualCalls:
        """Return the segments gathered by equal lengths."""
        members: dict[tuple[int, int], list[int]] = {}
        for s, kind in enumerate(zip(self.lengths, self.prefix_lengths, strict=True)):
            members.setdefault(kind, []).append(s)
        ordered = sorted(members.items())
        calls = [Call(len(of), length, before) for (length, before), of in ordered]
        queries = np.concatenate([self._own(s) for _, of in ordered for s in of])
        inverse = np.argsort(queries, kind="stable")
        keys = None
        if self.shared:
            keys = self._placed(np.concatenate([self._keys(s) for _, of in ordered for s in of]))
        elif np.array_equal(queries, inverse):  # in order
            return EqualCalls(calls, None, None, None)
        return EqualCalls(calls, self._placed(queries), keys, self._placed(inverse))

    @cached_property
    def buckets(self) -> Buckets:
        """Return the segments gathered by similar lengths."""
        by_length = sorted(range(len(self.lengths)), key=lambda s: (-self.lengths[s], s))
        members: list[list[int]] = []
        for s in by_length:
            longest = self.lengths[members[-1][0]] if members else 0
            if members and longest - self.lengths[s] <= max(FILL_TOKENS, FILL_SHARE * longest):
                members[-1].append(s)
            else:
                members.append([s])
        filled: list[np.ndarray] = []
        inverse = np.empty(self.total, np.int64)
        at = 0
        for of in members:
            longest = self.lengths[of[0]]
            for s in sorted(of):
                own = self._own(s)
                filled.append(np.minimum(self.starts[s] + np.arange(longest), own[-1]))
                inverse[own] = np.arange(at, at + len(own))
                at += longest
        places = np.concatenate(filled)
        calls = [Call(len(of), self.lengths[of[0]], prefix=0) for of in members]
        if np.array_equal(places, np.arange(self.total)):
            return Buckets(calls, None, None)
        return Buckets(calls, self._placed(places), self._placed(inverse))

    @cached_property
    def continued(self) -> list[tuple[int, int, int]]:
        """The segments that others continue: first token, end, end of the last that does."""
        last = {p: s for s, p in enumerate(self.prefix) if p >= 0}
        ends = [start + length for start, length in zip(self.starts, self.lengths, strict=True)]
        return [(self.starts[p], ends[p], ends[s]) for p, s in last.items()]

    def _own(self, s: int) -> np.ndarray:
        return np.arange(self.starts[s], self.starts[s] + self.lengths[s])

    def _keys(self, s: int) -> np.ndarray:
        """The tokens that segment s sees: its prefix, then its own."""
        own, p = self._own(s), self.prefix[s]
        return own if p < 0 else np.concatenate([self._own(p), own])

    def _placed(self, index: np.ndarray) -> Tensor:
        return _moved(torch.from_numpy(index), self.device)

    def tensors(self) -> Iterator[Tensor]:
        """Yield the index tensors that exist by now."""
        for value in vars(self).values():
            for part in (
                vars(value).values() if isinstance(value, EqualCalls | Buckets) else (value,)
            ):
                if isinstance(part, Tensor):
                    yield part


def boundaries(lengths: Sequence[int]) -> Tensor:
    """Return the boundaries of segments of these lengths, int32 [S + 1], with their Segments."""
    ends = torch.from_numpy(np.array([0, *itertools.accumulate(lengths)], np.int32))
    _remember(ends, Segments(lengths))
    return ends


def segments_of(cu_seqlens: Tensor) -> Segments:
    """Return the Segments of int32 ``[S + 1]`` boundaries, remembered on the tensor itself.

    For the vision tower: transformers chooses between windows and whole images per layer, and hands
    the attention that one boundaries tensor, nothing else. A tensor that was written to since is
    read again. Raises ValueError if the values do not start at 0 and increase.
    """
    segments, version = getattr(cu_seqlens, _ATTRIBUTE, (None, -1))
    if segments is None or version != _version(cu_seqlens):
        segments = _remember(cu_seqlens, _read(cu_seqlens, cu_seqlens.device))
    return segments


def remembered(cu_seqlens: Tensor) -> Iterator[Tensor]:
    """Yield the tensors of the Segments that a tensor takes along, if it is boundaries."""
    segments, _ = getattr(cu_seqlens, _ATTRIBUTE, (None, -1))
    if segments is not None:
        yield from segments.tensors()


def to_device(value: Tensor, device: torch.device | str) -> Tensor:
    """Return ``value`` on ``device``, without waiting for the copy.

    On its way to a GPU it passes through pinned memory, from which alone a copy overlaps with work.
    Boundaries (int32) take their Segments along, so no layer has to read them from a GPU, which
    would wait for the device. Raises ValueError, as ``segments_of`` does.
    """
    moved = _moved(value, torch.device(device))
    if value.dtype == torch.int32 and moved is not value and value.device.type == "cpu":
        _remember(moved, segments_of(value).to(moved.device))
    return moved


def _moved(value: Tensor, device: torch.device) -> Tensor:
    if device.type == "cuda" and value.device.type == "cpu":
        value = value.pin_memory()
    return value.to(device, non_blocking=True)


def _read(cu_seqlens: Tensor, device: torch.device) -> Segments:
    bounds = cu_seqlens.cpu().long()
    if int(bounds[0]) != 0:
        raise ValueError(f"cu_seqlens must start at 0, not at {int(bounds[0])}.")
    return Segments(bounds.diff().tolist(), device=device)


def _remember(cu_seqlens: Tensor, segments: Segments) -> Segments:
    segments.__dict__["cu_seqlens"] = (
        cu_seqlens.detach()
    )  # the kernels take the tensor that is there
    setattr(cu_seqlens, _ATTRIBUTE, (segments, _version(cu_seqlens)))
    return segments


def _version(tensor: Tensor) -> int:
    """Return how often the tensor was written to in place; inference tensors do not count it."""
    return 0 if tensor.is_inference() else tensor._version
