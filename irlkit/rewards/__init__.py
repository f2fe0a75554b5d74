"""Rewards of generated structures."""

from typing import TYPE_CHECKING

from irlkit._lazy import from_homes

if TYPE_CHECKING:
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

_HOMES = {
    "BandGapReward": "irlkit.rewards.composition",
    "CRMSEReward": "irlkit.rewards.structure_match",
    "CompositeReward": "irlkit.rewards.composite",
    "CompoundReward": "irlkit.rewards.composition",
    "CreativityReward": "irlkit.rewards.creativity",
    "DiversityReward": "irlkit.rewards.diversity",
    "EnergyReward": "irlkit.rewards.energy",
    "FunctionReward": "irlkit.rewards.function",
    "GatedReward": "irlkit.rewards.gate",
    "RareFormulaReward": "irlkit.rewards.composition",
    "RayReward": "irlkit.rewards.ray",
    "Reward": "irlkit.rewards.base",
    "RewardResult": "irlkit.rewards.base",
    "StabilityReward": "irlkit.rewards.stability",
    "SymmetryReward": "irlkit.rewards.symmetry",
    "ValidCompositionReward": "irlkit.rewards.composition",
    "as_reward": "irlkit.rewards.function",
    "band_gap_and_diversity": "irlkit.rewards.chemeleon",
    "creativity_and_stability": "irlkit.rewards.chemeleon",
}
"""Imported when first asked for: a worker process that asks a function needs none of the others."""

__getattr__ = from_homes(globals(), _HOMES)


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
