from __future__ import annotations

import math

import numpy as np
import pytest

from ovlt.train.advantage import group_advantages, has_signal

REWARDS = [1.0, 0.0, 0.5, 0.0, 0.25]


def test_grpo_divides_by_the_unbiased_standard_deviation() -> None:
    mean = sum(REWARDS) / 5
    std = math.sqrt(sum((r - mean) ** 2 for r in REWARDS) / 4)
    expected = [(r - mean) / (std + 1e-6) for r in REWARDS]
    assert group_advantages(REWARDS, use_std=True).tolist() == pytest.approx(expected, rel=1e-12)


def test_dr_grpo_only_centres() -> None:
    expected = [r - 0.35 for r in REWARDS]
    assert group_advantages(REWARDS, use_std=False).tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("use_std", [True, False])
def test_advantages_sum_to_zero(use_std: bool) -> None:
    rewards = np.random.default_rng(0).normal(size=7)
    assert group_advantages(rewards, use_std).sum() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("use_std", [True, False])
@pytest.mark.parametrize("rewards", [[0.1] * 3, [0.0] * 5, [1.0], [0.7] * 7])
def test_equal_rewards_give_exactly_zero(rewards: list[float], use_std: bool) -> None:
    """The mean of three times 0.1 is not 0.1 in floating point."""
    assert group_advantages(rewards, use_std).tolist() == [0.0] * len(rewards)
    assert not has_signal(rewards)


def test_scale_of_rewards_cancels_with_the_standard_deviation() -> None:
    small = group_advantages(REWARDS, True)
    large = group_advantages(100 * np.array(REWARDS) + 3, True)
    np.testing.assert_allclose(small, large, rtol=1e-5)


def test_eps_bounds_the_advantages_of_nearly_equal_rewards() -> None:
    assert np.abs(group_advantages([0.0, 1e-9], True)).max() < 1e-3
    assert np.abs(group_advantages([0.0, 1e-9], True, eps=1e-12)).max() > 0.5


def test_rewards_are_not_changed() -> None:
    rewards = np.array([1.0, 2.0])
    group_advantages(rewards, True)
    assert rewards.tolist() == [1.0, 2.0]


def test_signal() -> None:
    assert has_signal([0.0, 0.0, 1.0])
    assert has_signal([0.9, 1.0])


@pytest.mark.parametrize("rewards", [[], [[1.0, 0.0]], [1.0, math.nan], [math.inf, 0.0]])
def test_what_is_no_group_is_refused(rewards: list) -> None:
    with pytest.raises(ValueError, match="rewards"):
        group_advantages(rewards, True)
    with pytest.raises(ValueError, match="rewards"):
        has_signal(rewards)
