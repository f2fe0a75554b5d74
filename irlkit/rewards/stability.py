"""Reward for structures near or on the convex hull."""

from __future__ import annotations

import numpy as np
import torch

from irlkit.crystals import CrystalBatch, validity
from irlkit.evaluate.hull import METASTABLE, Hull
from irlkit.potentials import Potential, relax
from irlkit.rewards.base import RewardResult
from irlkit.rewards.energy import _PotentialReward
from irlkit.utils.checks import check_count, check_finite, checked


class StabilityReward(_PotentialReward):
    """Negative energy above the convex hull, clipped: r = -min(max(E_hull, 0), limit).

    Structures that are invalid, that the potential fails on, or whose chemical system the hull does
    not cover earn the least, -limit: a hull with holes would pay for leaving what it knows.

    The result's `info` holds `energy_above_hull` (unclipped, eV/atom, nan where there is none),
    `metastable` (at most 0.1 eV/atom above the hull), `covered`, `energy_per_atom`, and `valid`.

    Args:
        hull: of entries whose energies are the potential's.
        potential: a potential, or its name for `irlkit.potentials.get`.
        limit: eV/atom above the hull at which nothing gets worse.
        relax_steps: steps of relaxation before the energy is taken; 0: as generated.

    Raises:
        ValueError: a number out of its range, or a hull of another potential.
    """

    @checked
    def __init__(
        self,
        hull: Hull,
        potential: Potential | str = "chgnet",
        limit: float = 1.0,
        relax_steps: int = 0,
    ) -> None:
        check_finite("limit", limit, above=0)
        check_count("relax_steps", relax_steps, least=0)
        super().__init__(potential)
        hull._check_potential(self.potential.name)
        self.hull = hull
        self.limit = float(limit)
        self.relax_steps = relax_steps

    @checked
    def check(self, compositions: CrystalBatch) -> None:
        """Raise a ValueError that names an element that potential or hull does not know."""
        self.potential.check(compositions)
        self.hull.check(compositions)

    @checked
    def __call__(self, batch: CrystalBatch) -> RewardResult:
        """Compute the energies of all structures, and how far they are above the hull.

        Raises:
            ValueError: an element that the potential does not know.
        """
        batch = batch.to("cpu")
        if self.relax_steps:
            # It begins with the energies as generated.
            self.potential.check(batch)
            valid = validity.check(batch).valid
            energy, rows = np.full(len(batch), np.nan), np.flatnonzero(valid)
            if len(rows):
                relaxed = relax(batch[rows], self.potential, max_steps=self.relax_steps)
                energy[rows] = relaxed.energy_per_atom
        else:
            measured = self.potential(batch)
            energy, valid = measured.energy_per_atom, measured.valid
        found = self.hull.energy_above_hull(batch, energy)
        above = np.where(found.covered, found.value, np.nan)
        cost = np.clip(np.nan_to_num(above, nan=np.inf), 0.0, self.limit)
        info = {
            "energy_above_hull": above,
            "metastable": np.nan_to_num(above, nan=np.inf) <= METASTABLE,
            "covered": np.asarray(found.covered),
            "energy_per_atom": energy,
            "valid": valid,
        }
        return RewardResult(torch.from_numpy(-cost), info)
