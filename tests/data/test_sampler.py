"""The order of rows: each once per epoch, and the same whatever else happens."""

from __future__ import annotations

import numpy as np
import pytest

from ovlt.data.sampler import Sampler


@pytest.mark.parametrize("rows", [1, 2, 7, 501])
def test_every_epoch_holds_every_row_once(rows: int) -> None:
    sampler = Sampler(rows, seed=3)
    epochs = [sampler.take(rows) for _ in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(rows))
    if rows > 100:
        assert epochs[0] != epochs[1] != epochs[2] != list(range(rows))


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    whole = Sampler(11, seed=5).take(55)
    np.random.default_rng(0)
    np.random.seed(1)  # noqa: NPY002 - what the order must not depend on
    by_sevens = Sampler(11, seed=5)
    assert [i for _ in range(5) for i in by_sevens.take(7)] == whole[:35]
    assert Sampler(11, seed=6).take(55) != whole
    assert Sampler(12, seed=5).take(11) != whole[:11]
    assert Sampler(11, seed=5).at(22, 11) == whole[22:33]  # an epoch on its own


def test_the_position_is_all_there_is_to_resume() -> None:
    whole = Sampler(7, seed=1).take(40)
    first = Sampler(7, seed=1)
    assert first.take(9) == whole[:9]
    again = Sampler(7, seed=1, position=first.position)
    assert again.take(20) == whole[9:29]
    moved = Sampler(7, seed=1)
    moved.position = 29
    assert moved.take(11) == whole[29:]


def test_looking_ahead_moves_nothing() -> None:
    sampler = Sampler(5, seed=0)
    ahead = sampler.peek(12)  # into the third epoch
    assert sampler.position == 0
    assert sampler.at(3, 4) == ahead[3:7]
    assert sampler.take(12) == ahead
    assert sampler.position == 12
    assert sampler.at(0, 12) == ahead  # and back
    assert all(type(i) is int for i in ahead)


def test_no_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="dataset is empty"):
        Sampler(0, seed=0)
