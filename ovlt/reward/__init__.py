"""Rewards: functions of one response and its question, run in processes that can be killed.

A reward is ``f(x: RewardInput) -> RewardOutput``. Shipped are "answer", "math_verify", "mathruler",
"judges", "released" and "exact"; your own is a function in a file,
``function = "my_reward.py:score"`` in the recipe's ``[reward]``:

    from ovlt.reward import RewardInput, RewardOutput

    def score(x: RewardInput) -> RewardOutput:
        right = x.answer in x.response
        return RewardOutput(float(right), {"accuracy": float(right)}, "contains the answer")

``async def score(x)`` answers many at once, as a judge behind an endpoint needs it, and ``@batch``
marks a function of a list of inputs.
"""

from ovlt.reward.functions import RewardFunction, RewardInput, RewardOutput, batch

__all__ = ["RewardFunction", "RewardInput", "RewardOutput", "batch"]
