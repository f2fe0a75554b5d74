"""Rewards of generated structures."""

from irlkit.rewards.base import Reward, RewardResult
from irlkit.rewards.composite import CompositeReward
from irlkit.rewards.energy import EnergyReward
from irlkit.rewards.function import FunctionReward, as_reward
from irlkit.rewards.ray import RayReward
from irlkit.rewards.structure_match import CRMSEReward
from irlkit.rewards.symmetry import SymmetryReward

__all__ = [
    "CRMSEReward",
    "CompositeReward",
    "EnergyReward",
    "FunctionReward",
    "RayReward",
    "Reward",
    "RewardResult",
    "SymmetryReward",
    "as_reward",
]
