"""Pixels in time: rows are decoded by a few threads while the engine samples or the model trains.

Threads are enough: decoding and resizing release the interpreter lock, and nothing is copied
between processes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Loader(Generic[T]):
    """Makes items of rows by index; each requested row is decoded once per request."""

    def __init__(self, make: Callable[[int], T], workers: int):
        self._make = make
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="ovlt-loader")
        self._pending: dict[int, Future[T]] = {}

    def prefetch(self, indices: Sequence[int]) -> None:
        """Start decoding; returns at once."""
        for index in indices:
            if index not in self._pending:
                self._pending[index] = self._pool.submit(self._make, index)

    def get(self, indices: Sequence[int]) -> list[T]:
        """The items of these rows, in order, waiting for them. Raises what making one raised."""
        self.prefetch(indices)
        items = {index: self._pending.pop(index).result() for index in set(indices)}
        return [items[index] for index in indices]

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
