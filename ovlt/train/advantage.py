"""Advantages relative to the group of responses to one prompt; no value model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ovlt.types import Group


def group_advantages(rewards: ArrayLike, use_std: bool, eps: float = 1e-6) -> NDArray[np.float64]:
    """How much better each response is than its group.

    ``use_std=True`` is the outcome advantage of GRPO (DeepSeekMath, arXiv 2402.03300, section
    4.1.2), ``(r - mean r) / (std r + eps)`` with the unbiased standard deviation. ``use_std=False``
    is Dr. GRPO (arXiv 2503.20783, section 3.2), ``r - mean r``: the division weighs questions up
    whose answers are nearly all right or nearly all wrong.

    Args:
        rewards: ``[n]``, the rewards of the n responses to one prompt.
        use_std: divide by the group's standard deviation.
        eps: added to the standard deviation.

    Returns:
        float64 ``[n]``; exactly 0 where all rewards are equal (a group of one included).

    Raises:
        ValueError: rewards are not a non-empty row of finite numbers.
    """
    values = _checked(rewards)
    if not has_signal(values):
        return np.zeros_like(values)  # the mean of equal numbers need not round to that number
    centred = values - values.mean()
    return centred / (values.std(ddof=1) + eps) if use_std else centred


def score_groups(groups: Sequence[Group], *, use_std: bool) -> None:
    """Set every sample's advantage from the rewards of its group."""
    for group in groups:
        advantages = group_advantages([sample.reward for sample in group.samples], use_std)
        for sample, advantage in zip(group.samples, advantages, strict=True):
            sample.advantage = float(advantage)


def has_signal(rewards: ArrayLike) -> bool:
    """Whether the group's rewards differ: else every advantage is 0 and nothing is learnt from it.

    DAPO (arXiv 2503.14476, section 3.2) draws groups without signal again.

    Raises:
        ValueError: as :func:`group_advantages`.
    """
    values = _checked(rewards)
    return bool(values.max() > values.min())


def _checked(rewards: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(rewards, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"rewards must be the [n] rewards of one group, not {values.shape}.")
    if not np.isfinite(values).all():
        raise ValueError(
            f"rewards holds a number that is not finite: {values.tolist()}; a reward function must "
            "return a finite score for every response."
        )
    return values
