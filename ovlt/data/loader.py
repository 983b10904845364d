"""Decode rows ahead of time: a few threads work while the engine samples or the model trains.

Threads are enough: decoding and resizing release the interpreter lock, and nothing is copied
between processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Loader(Generic[T]):
    """Make items of rows by index, in threads; a row is decoded once per request."""

    def __init__(self, make: Callable[[int], T], workers: int):
        self._make = make
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="ovlt-loader")
        self._pending: dict[int, Future[T]] = {}

    def prefetch(self, indices: Sequence[int]) -> None:
        """Start to decode these rows and return at once."""
        for index in indices:
            if index not in self._pending:
                self._pending[index] = self._pool.submit(self._make, index)

    def get(self, indices: Sequence[int]) -> list[T]:
        """Wait for the items of these rows; return them in order. Raises what making one raised."""
        self.prefetch(indices)
        items = {index: self._pending.pop(index).result() for index in set(indices)}
        return [items[index] for index in indices]

    def stream(self, indices: Sequence[int], ahead: int) -> Iterator[T]:
        """Yield the items of these rows in order, at most ``ahead`` of them made before their turn.

        However many there are, only these are in memory. Raises what making one raised.
        """
        for place, index in enumerate(indices):
            self.prefetch(indices[place : place + 1 + ahead])
            yield self._pending.pop(index).result()

    def close(self) -> None:
        """Drop what was requested and not yet started, and let the threads end."""
        self._pool.shutdown(wait=False, cancel_futures=True)
