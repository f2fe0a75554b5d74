"""Rewards for symmetry."""

from __future__ import annotations

import math
import warnings
from typing import Any, Literal

import numpy as np
import torch

from irlkit.crystals import CrystalBatch, validity
from irlkit.rewards.base import Reward, RewardResult
from irlkit.utils.checks import checked

Kind = Literal["not_triclinic", "not_centrosymmetric"]


class SymmetryReward(Reward):
    """1 for structures with the wanted symmetry, 0 for all others, as found by spglib.

    >>> from pymatgen.core import Lattice, Structure
    >>> batch = CrystalBatch.from_structures([Structure(Lattice.cubic(6), ["Cs"], [[0, 0, 0]])])
    >>> SymmetryReward("not_triclinic")(batch).info["spacegroup"]
    array([221])

    Invalid structures and those that spglib finds no symmetry of have a reward of 0.

    The result's `info` holds `spacegroup` (number, 0 if unknown), `centrosymmetric`, `valid` and
    `failed` (valid, but spglib found nothing).

    Args:
        kind: "not_triclinic": the space group is not P1 or P-1. "not_centrosymmetric": there is
            no inversion centre, as piezoelectricity and second harmonics need.
        symprec: Distance within which atoms count as equivalent, Å. Generated structures are
            never exactly symmetric.
        angle_tolerance: Tolerance of angles between lattice vectors, degrees; None for one that
            follows from `symprec`.

    Raises:
        ValueError: an argument is out of its range.
    """

    @checked
    def __init__(
        self, kind: Kind, symprec: float = 0.1, angle_tolerance: float | None = None
    ) -> None:
        if not (math.isfinite(symprec) and symprec > 0):
            raise ValueError(f"symprec must be positive, in Å, got {symprec}")
        if angle_tolerance is not None and not angle_tolerance > 0:
            raise ValueError(f"angle_tolerance must be positive or None, got {angle_tolerance}")
        self.kind = kind
        self.symprec = symprec
        self.angle_tolerance = angle_tolerance

    @checked
    def __call__(self, batch: CrystalBatch) -> RewardResult:
        """Find the symmetry of all structures."""
        valid = validity.check(batch).valid
        spacegroup = np.zeros(len(batch), dtype=np.int64)
        inversion = np.zeros(len(batch), dtype=bool)
        rows = np.flatnonzero(valid)
        with warnings.catch_warnings():
            # spglib announces other errors, which are handled here as well.
            warnings.simplefilter("ignore", DeprecationWarning)
            for i, arrays in zip(rows, batch[rows]._to_arrays(), strict=True):
                spacegroup[i], inversion[i] = self._find(*arrays)
        found = spacegroup > 0
        wanted = spacegroup > 2 if self.kind == "not_triclinic" else found & ~inversion
        info = {"spacegroup": spacegroup, "centrosymmetric": inversion, "valid": valid}
        info["failed"] = valid & ~found
        return RewardResult(torch.from_numpy(wanted.astype(np.float64)), info)

    def _find(self, numbers: np.ndarray, pos: np.ndarray, cell: np.ndarray) -> tuple[int, bool]:
        """Space group number, 0 if there is none, and whether there is an inversion centre."""
        import spglib

        tolerance = -1.0 if self.angle_tolerance is None else self.angle_tolerance
        try:
            crystal: Any = (cell, pos, numbers)
            found = spglib.get_symmetry_dataset(crystal, self.symprec, tolerance)
        except Exception:  # spglib's own errors, whose classes differ between its versions
            return 0, False
        if found is None:
            return 0, False
        return int(found.number), bool((found.rotations == -np.eye(3, dtype=int)).all((1, 2)).any())
