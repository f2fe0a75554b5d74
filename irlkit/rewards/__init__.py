"""Rewards of generated structures."""

from irlkit.rewards.base import Reward, RewardResult
from irlkit.rewards.chemeleon import band_gap_and_diversity, creativity_and_stability
from irlkit.rewards.composite import CompositeReward
from irlkit.rewards.composition import (
    BandGapReward,
    CompoundReward,
    RareFormulaReward,
    ValidCompositionReward,
)
from irlkit.rewards.creativity import CreativityReward
from irlkit.rewards.diversity import DiversityReward
from irlkit.rewards.energy import EnergyReward
from irlkit.rewards.function import FunctionReward, as_reward
from irlkit.rewards.gate import GatedReward
from irlkit.rewards.ray import RayReward
from irlkit.rewards.stability import StabilityReward
from irlkit.rewards.structure_match import CRMSEReward
from irlkit.rewards.symmetry import SymmetryReward

__all__ = [
    "BandGapReward",
    "CRMSEReward",
    "CompositeReward",
    "CompoundReward",
    "CreativityReward",
    "DiversityReward",
    "EnergyReward",
    "FunctionReward",
    "GatedReward",
    "RareFormulaReward",
    "RayReward",
    "Reward",
    "RewardResult",
    "StabilityReward",
    "SymmetryReward",
    "ValidCompositionReward",
    "as_reward",
    "band_gap_and_diversity",
    "creativity_and_stability",
]
