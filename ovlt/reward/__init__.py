"""Rewards: functions of a response and its question, run in killable processes."""

from ovlt.reward.functions import RewardFunction, RewardInput, RewardOutput

__all__ = ["RewardFunction", "RewardInput", "RewardOutput"]
