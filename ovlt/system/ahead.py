"""Work in a thread: items made before they are asked for, or worked on while others are made."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
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


class Meanwhile(Generic[T]):
    """Works on items in a thread, all that are there at a time, while others are still made.

    ``with Meanwhile(work) as thread``: ``put`` the items, then ``finish``. If the block is left
    early, what has not begun is dropped.
    """

    def __init__(self, work: Callable[[Sequence[T]], None]) -> None:
        self._work = work
        self._items: queue.SimpleQueue[T | None] = queue.SimpleQueue()
        self._error: BaseException | None = None
        self._dropped = False
        self._thread: threading.Thread | None = None  # from the first item on

    def put(self, item: T) -> None:
        """Hand over an item; returns at once."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="ovlt-meanwhile", daemon=True)
            self._thread.start()
        self._items.put(item)

    def finish(self) -> None:
        """Wait until all items are worked on. Raises what the work raised."""
        if self._thread is not None:
            self._items.put(None)
            self._thread.join()
            self._thread = None
        if self._error is not None:
            raise self._error

    def __enter__(self) -> Meanwhile[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self._dropped = True
        if self._thread is not None:  # the block was left early
            self._items.put(None)
            self._thread.join()

    def _run(self) -> None:
        try:
            last = False
            while not last:
                entries = [self._items.get()]
                while not self._items.empty():
                    entries.append(self._items.get())
                last = None in entries
                items = [entry for entry in entries if entry is not None]
                if items and not self._dropped:
                    self._work(items)
        except BaseException as error:
            self._error = error
