"""Reward for low energies (Appendix E of the paper)."""

from __future__ import annotations

import math

import numpy as np
import torch

from irlkit.crystals import CrystalBatch
from irlkit.data import CrystalDataset
from irlkit.potentials import Potential, get
from irlkit.rewards._parts import runs
from irlkit.rewards.base import Reward, RewardResult
from irlkit.utils.checks import checked


class _PotentialReward(Reward):
    """What rewards from energies share: a potential that was made from its name is closed too."""

    def __init__(self, potential: Potential | str) -> None:
        self._owns_potential = not isinstance(potential, Potential)
        self.potential = get(potential)

    def energies(self) -> str:
        """Return the name of the potential."""
        return self.potential.name

    def close(self) -> None:
        """Close the potential if this reward has made it."""
        if self._owns_potential:
            self.potential.close()


class EnergyReward(_PotentialReward):
    """Negative energy per atom, r = -E/N, outliers clipped.

    Structures that are invalid (Appendix B), or that the potential fails on, count with a penalty
    energy. The energies of the others are clipped to a band around the mean of their group,
    `clip` times the population standard deviation wide on both sides; only structures with an
    energy enter the mean and the standard deviation.

    A trainer says which structures form a group, those of one request. Where nobody does, as in a
    call of your own, a group is `group_size` structures, or a run of structures with equal formulas
    of their cells. A structure that stands alone, as in a validation, is never clipped.

    The result's `info` holds `energy_per_atom` (unclipped, eV/atom, nan where there is none),
    `valid`, `failed` (valid, but the potential gave no energy), `clipped`, and, with references,
    `energy_above_reference` (unclipped, eV/atom).

    Args:
        potential: a potential, or its name for `irlkit.potentials.get`.
        group_size: structures per group; None: any.
        penalty: energy of structures without one, eV/atom.
        clip: half-width of the band in standard deviations; math.inf does not clip.
        references: structures whose lowest energy for the composition is subtracted from all
            energies, the penalty included. That changes no advantage, but makes rewards of
            different compositions comparable, as in the mean of a validation. They are computed
            with the same potential. None subtracts nothing.

    Raises:
        ValueError: an argument is out of its range, or no reference of a composition has an energy.
    """

    compares = True

    @checked
    def __init__(
        self,
        potential: Potential | str = "chgnet",
        group_size: int | None = None,
        penalty: float = 3.0,
        clip: float = 3.0,
        references: CrystalDataset | None = None,
    ) -> None:
        if group_size is not None and group_size < 1:
            raise ValueError(f"group_size must be at least 1 or None, got {group_size}")
        if not math.isfinite(penalty):
            raise ValueError(f"penalty must be a finite energy in eV/atom, got {penalty}")
        if not clip > 0:
            raise ValueError(f"clip must be positive (math.inf does not clip), got {clip}")
        super().__init__(potential)
        self.group_size = group_size
        self.penalty = float(penalty)
        self.clip = float(clip)
        self.references = references
        self._lowest: dict[str, float] = {}
        if references is not None:
            energies = self.potential(references.batch).energy_per_atom
            for formula, rows in references.references().items():
                finite = energies[rows][np.isfinite(energies[rows])]
                if not len(finite):
                    raise ValueError(
                        f"references must have an energy for every composition, but "
                        f"{self.potential.name} gives none for {formula}"
                    )
                self._lowest[formula] = float(finite.min())

    @checked
    def check(self, compositions: CrystalBatch) -> None:
        """Raise a ValueError that names unknown elements or compositions without a reference."""
        self.potential.check(compositions)
        if self.references is not None:
            self.references.references_of(compositions.reduced_formulas())

    @checked
    def __call__(self, batch: CrystalBatch) -> RewardResult:
        """Compute the energies of all structures and clip them.

        Raises:
            ValueError: an element that the potential does not know, or a composition without a
                reference.
        """
        begins = runs(batch)
        if self.group_size is not None:
            begins |= np.arange(len(batch)) % self.group_size == 0
        return self._judge(batch, np.cumsum(begins) - 1)

    def in_groups(self, batch: CrystalBatch, group_size: int) -> RewardResult:
        """Compute the energies of all structures and clip them in groups."""
        return self._judge(batch, np.arange(len(batch)) // group_size)

    def _judge(self, batch: CrystalBatch, groups: np.ndarray) -> RewardResult:
        """Judge structures, each with the number of its group, shape (B,)."""
        self.check(batch)
        result = self.potential(batch)
        energy = result.energy_per_atom
        lowest = np.zeros(len(batch))
        if self.references is not None:
            lowest = np.array([self._lowest[formula] for formula in batch.reduced_formulas()])
        clipped = clip_energies(energy, groups, self.clip)
        filled = np.where(np.isfinite(energy), clipped, self.penalty) - lowest
        info = {
            "energy_per_atom": energy,
            "valid": result.valid,
            "failed": result.failed,
            "clipped": np.isfinite(energy) & (clipped != energy),
        }
        if self.references is not None:
            info["energy_above_reference"] = energy - lowest
        return RewardResult(torch.from_numpy(-filled), info)


def clip_energies(energy: np.ndarray, groups: np.ndarray, width: float) -> np.ndarray:
    """Clip energies to a band around the mean of their group.

    >>> clip_energies(np.array([-3.0, -3.0, 9.0, np.nan]), np.zeros(4, dtype=int), 1.0)
    array([-3.        , -3.        ,  6.65685425,         nan])

    Args:
        energy: energies, nan where there is none, shape (B,).
        groups: number of each structure's group, from 0, shape (B,).
        width: half-width of the band in population standard deviations of the group's energies.

    Returns:
        Shape (B,), nan where `energy` is.
    """
    if not len(energy) or math.isinf(width):
        return energy.copy()
    finite = np.isfinite(energy)
    weight = finite.astype(np.float64)
    count = np.maximum(np.bincount(groups, weight), 1)
    known = np.where(finite, energy, 0.0)
    mean = np.bincount(groups, known) / count
    deviation = np.where(finite, energy - mean[groups], 0.0)
    band = width * np.sqrt(np.bincount(groups, deviation**2) / count)[groups]
    # A lone structure must stay as it is, whatever rounding does to its mean.
    outside = np.abs(deviation) > band * (1 + 1e-12)
    return np.where(outside, mean[groups] + np.clip(deviation, -band, band), energy)
