"""Items made ahead in a thread: in order, bounded, with their errors, and ended with their user."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from ovlt.system.ahead import ahead


def test_items_come_in_order() -> None:
    assert list(ahead(range(100), 3)) == list(range(100))
    assert list(ahead([], 3)) == []
    assert list(ahead([None, 1], 1)) == [None, 1]


def test_no_more_than_the_bound_are_made_before_they_are_taken() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for i in range(50):
            made.append(i)
            yield i

    taken = ahead(items(), 4)
    assert next(taken) == 0
    time.sleep(0.2)
    assert len(made) <= 1 + 4 + 1  # taken, waiting, and the one that finds no room
    taken.close()


def test_an_error_is_raised_where_its_item_would_be_taken() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise OSError("gone")

    taken = ahead(items(), 4)
    assert next(taken) == 1
    with pytest.raises(OSError, match="gone"):
        next(taken)


def test_the_thread_ends_with_its_user() -> None:
    before = threading.active_count()
    taken = ahead(iter(int, 1), 2)  # zeros for ever
    assert next(taken) == 0
    assert threading.active_count() == before + 1
    taken.close()
    assert threading.active_count() == before
