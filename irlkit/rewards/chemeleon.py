"""The rewards that Chemeleon2 reinforces de novo generation with."""

from __future__ import annotations

from collections.abc import Collection

from irlkit.data import CrystalDataset
from irlkit.evaluate.hull import Hull
from irlkit.potentials import Potential
from irlkit.rewards.base import Reward
from irlkit.rewards.composite import CompositeReward
from irlkit.rewards.composition import BandGapReward, CompoundReward
from irlkit.rewards.creativity import CreativityReward
from irlkit.rewards.diversity import DiversityReward
from irlkit.rewards.gate import GatedReward
from irlkit.rewards.stability import StabilityReward
from irlkit.utils.checks import checked

WEIGHTS = {"creativity": 1.0, "stability": 1.0, "structure": 0.1, "composition": 1.0}
"""Of the parts of `creativity_and_stability`; all but creativity are scaled to [0, 1]."""


@checked
def creativity_and_stability(
    training_set: CrystalDataset,
    hull: Hull,
    potential: Potential | str = "chgnet",
    *,
    without: Collection[str] = (),
    bounded: bool = True,
    relax_steps: int = 0,
    least_elements: int = 1,
) -> CompositeReward:
    """Return creativity + scaled stability + 0.1 scaled structure + scaled composition diversity.

    Scaled means from lowest to highest of an iteration. Where Chemeleon2 takes the features of
    diversity from its autoencoder, these are distances of neighbours and shares of elements.

    With Chemeleon2's own reward (``least_elements=1``) a policy can learn to make pure elements,
    whose polymorphs are easily both new and metastable; with 2, these earn what is not creative and
    not stable does.

    Args:
        training_set: what is not novel, and what diversity is compared with.
        hull: of the potential's energies.
        potential: a potential, or its name for `irlkit.potentials.get`.
        without: parts that are measured only, with weight 0, of `WEIGHTS`.
        bounded: see `CreativityReward`.
        relax_steps: see `StabilityReward`.
        least_elements: that a structure needs to earn creativity and stability.

    Raises:
        ValueError: an unknown part, or see the parts.
    """
    if unknown := sorted(set(without) - set(WEIGHTS)):
        raise ValueError(f"without must name parts of {sorted(WEIGHTS)}, got {unknown}")
    creativity = CreativityReward(training_set, bounded)
    stability = StabilityReward(hull, potential, relax_steps=relax_steps)
    gate = CompoundReward(least_elements)
    parts: dict[str, Reward] = {
        "creativity": GatedReward(creativity, gate),
        "stability": GatedReward(stability, gate, least=-stability.limit),
        "structure": DiversityReward(training_set, "structure"),
        "composition": DiversityReward(training_set),
    }
    weights = {name: 0.0 if name in without else weight for name, weight in WEIGHTS.items()}
    return CompositeReward(parts, weights, normalized=("stability", "structure", "composition"))


@checked
def band_gap_and_diversity(training_set: CrystalDataset, target: float = 3.0) -> CompositeReward:
    """Return the scaled closeness to a band gap, plus half the scaled composition diversity.

    Args:
        training_set: what diversity is compared with.
        target: eV.
    """
    parts: dict[str, Reward] = {
        "gap": BandGapReward(target),
        "composition": DiversityReward(training_set),
    }
    return CompositeReward(parts, {"gap": 1.0, "composition": 0.5}, normalized=tuple(parts))
