"""Threads make the rows, in the requested order; the caller gets the errors they raise."""

from __future__ import annotations

import threading

import pytest

from ovlt.data.image_refs import BadImage
from ovlt.data.loader import Loader


def test_items_come_in_the_order_asked_for_and_are_made_in_other_threads() -> None:
    made: list[tuple[int, str]] = []

    def make(index: int) -> str:
        made.append((index, threading.current_thread().name))
        return f"row {index}"

    loader = Loader(make, workers=2)
    loader.prefetch([4, 1])
    assert loader.get([1, 7, 4, 1]) == ["row 1", "row 7", "row 4", "row 1"]
    assert sorted(index for index, _ in made) == [1, 4, 7]  # a row twice in a batch is made once
    assert all(name.startswith("ovlt-loader") for _, name in made)
    assert loader.get([1]) == ["row 1"]  # pixels are not kept: the next request makes it anew
    assert [index for index, _ in made].count(1) == 2
    assert loader.get([]) == []
    loader.close()


def test_prefetching_returns_at_once_and_works_at_the_same_time() -> None:
    together = threading.Barrier(3, timeout=20)

    def make(index: int) -> int:
        together.wait()  # passes only when two workers and the caller are here at once
        return index

    loader = Loader(make, workers=2)
    loader.prefetch([0, 1])
    together.wait()
    assert loader.get([0, 1]) == [0, 1]
    loader.close()


def test_what_fails_in_a_thread_is_raised_where_the_row_is_asked_for() -> None:
    broken = {3}

    def make(index: int) -> int:
        if index in broken:
            raise BadImage("image file is missing")
        return index

    loader = Loader(make, workers=1)
    loader.prefetch([2, 3, 4])
    assert loader.get([2, 4]) == [2, 4]
    with pytest.raises(BadImage, match="image file is missing"):
        loader.get([3])
    broken.clear()
    assert loader.get([3]) == [3]  # a second request makes it again
    loader.close()


def test_closing_drops_what_has_not_started() -> None:
    hold, entered = threading.Event(), threading.Event()
    made: list[int] = []

    def make(index: int) -> int:
        entered.set()
        hold.wait(20)
        made.append(index)
        return index

    loader = Loader(make, workers=1)
    loader.prefetch(range(50))
    assert entered.wait(20)
    loader.close()
    hold.set()
    with pytest.raises(RuntimeError):
        loader.prefetch([99])
    assert len(made) <= 1


def test_a_stream_makes_rows_a_little_ahead_and_keeps_none() -> None:
    made: list[int] = []
    loader = Loader(lambda index: (made.append(index), index)[1], workers=2)
    rows = list(range(100, 0, -1))
    for count, item in enumerate(loader.stream(rows, ahead=3), start=1):
        assert item == rows[count - 1]
        assert len(loader._pending) <= 3  # what has been made and not been taken
        assert len(made) <= count + 3
    assert sorted(made) == sorted(rows)
    assert not loader._pending
    loader.close()


def test_a_stream_may_ask_for_a_row_twice() -> None:
    loader = Loader(lambda index: index * 2, workers=2)
    assert list(loader.stream([3, 3, 1, 3], ahead=2)) == [6, 6, 2, 6]
    assert list(loader.stream([], ahead=2)) == []
    loader.close()
