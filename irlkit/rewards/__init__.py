"""Rewards of generated structures."""

from irlkit.rewards.base import Reward, RewardResult
from irlkit.rewards.energy import EnergyReward
from irlkit.rewards.structure_match import CRMSEReward

__all__ = ["CRMSEReward", "EnergyReward", "Reward", "RewardResult"]
