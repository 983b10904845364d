"""Make the items of an iterable in a thread of its own, a bounded number of them ahead."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

_POLL_S = 0.2  # in which a thread whose items nobody wants any more sees that


@dataclass(frozen=True)
class _Made(Generic[T]):
    item: T


def ahead(items: Iterable[T], size: int) -> Generator[T, None, None]:
    """Yield items in order, up to ``size`` of them made before they are taken.

    What making one raises is raised where the item would be taken. The thread ends with the
    iterator.
    """
    ready: queue.Queue[_Made[T] | BaseException | None] = queue.Queue(size)
    stopped = threading.Event()

    def put(entry: _Made[T] | BaseException | None) -> None:
        while not stopped.is_set():
            try:
                ready.put(entry, timeout=_POLL_S)
                return
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in items:
                put(_Made(item))
                if stopped.is_set():
                    return
            put(None)
        except BaseException as error:
            put(error)

    thread = threading.Thread(target=work, name="ovlt-ahead", daemon=True)
    thread.start()
    try:
        while (entry := ready.get()) is not None:
            if isinstance(entry, BaseException):
                raise entry
            yield entry.item
    finally:
        stopped.set()
        thread.join()
