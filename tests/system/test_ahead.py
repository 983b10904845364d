"""Items made ahead in a thread: in order, bounded, with their errors, and ended with their user."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence

import pytest

from ovlt.system.ahead import Meanwhile, ahead


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


# --- Meanwhile ---------------------------------------------------------------------------------
def test_items_are_worked_on_while_others_are_made_and_all_by_the_end() -> None:
    done: list[int] = []
    first = threading.Event()

    def work(items: Sequence[int]) -> None:
        done.extend(items)
        first.set()

    with Meanwhile(work) as thread:
        thread.put(0)
        assert first.wait(10)  # before the others exist
        for i in range(1, 100):
            thread.put(i)
        thread.finish()
        assert done == list(range(100))
    with Meanwhile(work) as thread:
        thread.finish()  # nothing was put
    assert done == list(range(100))


def test_what_the_work_raises_is_raised_at_the_end() -> None:
    def work(items: Sequence[int]) -> None:
        raise ValueError(f"no grade for {items[0]}")

    with Meanwhile(work) as thread:
        thread.put(1)
        with pytest.raises(ValueError, match="no grade for 1"):
            thread.finish()


def test_a_block_that_fails_ends_the_thread_and_drops_what_has_not_begun() -> None:
    done: list[int] = []
    going, go_on = threading.Event(), threading.Event()

    def work(items: Sequence[int]) -> None:
        going.set()
        assert go_on.wait(10)
        done.extend(items)

    def sample() -> None:
        with Meanwhile(work) as thread:
            thread.put(1)
            assert going.wait(10)
            thread.put(2)
            threading.Timer(0.05, go_on.set).start()
            raise RuntimeError("the engine failed")

    with pytest.raises(RuntimeError, match="the engine failed"):
        sample()
    assert done == [1]
    assert not [t for t in threading.enumerate() if t.name == "ovlt-meanwhile"]
