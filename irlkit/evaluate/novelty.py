"""Which generated structures repeat one another or known ones, and whether compositions make sense.

Two structures are equal if they have one reduced formula and pymatgen's `StructureMatcher` matches
them, within the tolerances of the pool that compares them. Structures that `validity.check`
rejects are compared with nothing.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping
from itertools import chain
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from irlkit.crystals import CrystalBatch, validity
from irlkit.data import CrystalDataset
from irlkit.evaluate.amd import _smallest, amd
from irlkit.evaluate.matching import MatchPool
from irlkit.utils.checks import checked

TOLERANCES: Mapping[str, Any] = MappingProxyType({"stol": 0.3, "ltol": 0.2, "angle_tol": 5.0})
"""Of equal structures, for `MatchPool`: pymatgen's, which MatterGen uses as well. `MatchPool()` has
the wider ones of the match rate."""


@checked
def is_unique(structures: CrystalBatch, pool: MatchPool) -> np.ndarray:
    """Return where a valid structure is the first of a group of equal ones, bool, shape (B,).

    It belongs to the first group whose first structure it equals, as in pymatgen's
    `StructureMatcher.group_structures`.

    Args:
        structures: B structures.
        pool: Compares them, for instance `MatchPool(**TOLERANCES)`.
    """
    unique = np.zeros(len(structures), dtype=bool)
    valid = validity.check(structures).valid
    waiting = list(_by_formula(structures.reduced_formulas(), valid).values())
    while waiting:  # One group of each formula at a time.
        unique[[rows[0] for rows in waiting]] = True
        pairs = [(i, rows[0]) for rows in waiting for i in rows[1:]]
        found = _matched(pool, structures, structures, pairs)
        waiting = [left for rows in waiting if (left := [i for i in rows[1:] if not found[i]])]
    return unique


class KnownStructures:
    """Structures that others are compared with, formula by formula: what is new, and by how much.

    Args:
        known: The training set, for instance.
        k: Neighbours of `amd`.

    Attributes:
        structures: Those known, on the CPU.

    Raises:
        ValueError: there is none, or the data set holds compositions alone.

    Example:
        >>> from irlkit import data
        >>> known = data.load("prototypes", progress=False)[:100]
        >>> new = KnownStructures(known.select(range(1, 100)))
        >>> new.is_novel(known.batch[:3], MatchPool(n_workers=0, **TOLERANCES)).tolist()
        [True, False, False]
    """

    @checked
    def __init__(self, known: CrystalDataset | CrystalBatch, k: int = 100) -> None:
        if not len(known):
            raise ValueError(
                "the known structures (the training set) must be at least one, got none"
            )
        if isinstance(known, CrystalDataset):
            known.references()  # Which refuses compositions without structures.
            known = known.batch
        valid = validity.check(known).valid
        self.k, self.structures = k, known.to("cpu")
        self._rows = _by_formula(known.reduced_formulas(), np.ones(len(known), dtype=bool))
        self._usable = {
            formula: [i for i in rows if valid[i]] for formula, rows in self._rows.items()
        }
        self._amd: dict[str, torch.Tensor] = {}

    @checked
    def has_formula(self, structures: CrystalBatch) -> np.ndarray:
        """Return where the reduced formula is a known one, bool, shape (B,)."""
        return np.array([f in self._rows for f in structures.reduced_formulas()], dtype=bool)

    @checked
    def is_novel(self, structures: CrystalBatch, pool: MatchPool) -> np.ndarray:
        """Return where a valid structure equals no known one, bool, shape (B,); see `is_unique`."""
        valid = validity.check(structures).valid
        pairs = self._pairs(structures, valid)
        return valid & ~_matched(pool, structures, self.structures, pairs)

    @checked
    def distance(self, structures: CrystalBatch) -> np.ndarray:
        """Return the smallest `amd_distance` from known structures of one formula, shape (B,).

        nan where the formula is new or the structure is not valid.
        """
        valid = validity.check(structures).valid
        groups = _by_formula(structures.reduced_formulas(), valid)
        groups = {formula: rows for formula, rows in groups.items() if self._usable.get(formula)}
        nearest = np.full(len(structures), np.nan)
        missing = sorted(groups.keys() - self._amd.keys())
        if missing:
            rows = [self._usable[formula] for formula in missing]
            found = amd(self.structures.select(list(chain(*rows))), self.k)
            self._amd |= dict(zip(missing, found.split([len(r) for r in rows]), strict=True))
        used = list(chain(*groups.values()))
        ours = dict(zip(used, amd(structures.select(used), self.k), strict=True))
        for formula, members in groups.items():
            a = torch.stack([ours[i] for i in members])
            nearest[members] = _smallest(a, self._amd[formula]).numpy()
        return nearest

    def _pairs(self, structures: CrystalBatch, use: np.ndarray) -> list[tuple[int, int]]:
        groups = _by_formula(structures.reduced_formulas(), use)
        known = ((members, self._usable.get(formula, ())) for formula, members in groups.items())
        return [(i, j) for ours, theirs in known for i in ours for j in theirs]


@checked
def is_valid_composition(structures: CrystalBatch) -> np.ndarray:
    """Return where SMACT's test passes: neutral, ordered by electronegativity, or metals alone.

    An element by itself passes. One that SMACT has no oxidation state of, which it may raise an
    error for (noble gases), makes a compound fail.

    Returns:
        bool, shape (B,).

    Raises:
        ImportError: the package smact is not installed.
    """
    try:
        import smact.screening  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "whether compositions are valid is said by the package smact, which is not "
            'installed: pip install "irlkit[denovo]"'
        ) from error
    found = [_passes_smact(formula) for formula in structures.reduced_formulas()]
    return np.array(found, dtype=bool)


@functools.lru_cache(maxsize=1 << 16)
def _passes_smact(formula: str) -> bool:
    from smact.screening import smact_validity

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Noble gases have no electronegativity.
        try:
            return bool(smact_validity(formula))
        except (KeyError, TypeError, ValueError):  # Elements without oxidation states.
            return False


def _by_formula(formulas: list[str], use: np.ndarray) -> dict[str, list[int]]:
    """Numbers of the structures of each formula, those alone that are to be used."""
    groups: dict[str, list[int]] = {}
    for i in np.flatnonzero(use).tolist():
        groups.setdefault(formulas[i], []).append(i)
    return groups


def _matched(
    pool: MatchPool, ours: CrystalBatch, others: CrystalBatch, pairs: list[tuple[int, int]]
) -> np.ndarray:
    """Which of our structures match one of the others that they are paired with."""
    found = np.zeros(len(ours), dtype=bool)
    if pairs:
        sides = [np.unique(side, return_inverse=True) for side in np.transpose(pairs)]
        (mine, _), (theirs, _) = sides
        index = np.stack([place for _, place in sides], axis=1)
        matched = np.isfinite(pool.rmsd(ours.select(mine), others.select(theirs), index))
        found[mine[index[matched, 0]]] = True
    return found
