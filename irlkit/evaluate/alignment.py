"""How generated structures would have to move to become known ones, atom by atom."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from irlkit.crystals import CrystalBatch
from irlkit.data import CrystalDataset

_MAX_STRAIN = 0.2
"""Relative difference of cells beyond which they do not describe one lattice in the same way."""


@dataclass(frozen=True)
class _Crystal:
    species: np.ndarray
    pos: np.ndarray
    cell: np.ndarray


def align(
    batch: CrystalBatch, references: CrystalDataset, max_distance: float = 0.25
) -> dict[str, Tensor]:
    """Return how each structure has to move to become the closest reference of its composition.

    Cells are compared as they are, up to rotations, and equal atoms are assigned to each other;
    unlike ``MatchPool``, other descriptions of a lattice are not looked for. Structures without a
    reference that is close enough need not move.

    Args:
        batch: B structures.
        references: known structures.
        max_distance: of the references, as a root mean square over atoms in units of (V/N)^(1/3).

    Returns:
        "pos" (n, 3), unwrapped and without a common translation; "cell" (B, 3, 3), in the
        orientation of the structures' cells.

    >>> from irlkit import data
    >>> known = data.load("prototypes", split="val").subset(1)
    >>> moved = known.batch.replace(cell=1.05 * known.batch.cell)
    >>> torch.allclose(moved.cell + align(moved, known)["cell"], known.batch.cell, atol=1e-5)
    True
    """
    rows = references.references_of(batch.reduced_formulas())
    found, known = _crystals(batch), references.batch
    kept = {int(r): _crystals(known[int(r)])[0] for r in {int(r) for of in rows for r in of}}
    pos, cell = torch.zeros_like(batch.pos), torch.zeros_like(batch.cell)
    seen: dict[bytes, tuple[np.ndarray, np.ndarray] | None] = {}
    ends = batch.n_atoms.cumsum(0).tolist()
    for i, crystal in enumerate(found):
        key = crystal.pos.tobytes() + crystal.cell.tobytes()  # Groups share their end points.
        if key not in seen:
            trials = (_align(crystal, kept[int(r)]) for r in rows[i])
            near = [trial for trial in trials if trial is not None and trial[0] < max_distance]
            seen[key] = min(near, key=lambda trial: trial[0])[1:] if near else None
        move = seen[key]
        if move is not None:
            pos[ends[i] - len(crystal.pos) : ends[i]] = torch.from_numpy(move[0]).to(pos)
            cell[i] = torch.from_numpy(move[1]).to(cell)
    return {"pos": pos, "cell": cell}


def _crystals(batch: CrystalBatch) -> list[_Crystal]:
    ends = np.cumsum(batch.n_atoms.cpu().numpy())[:-1]
    species, pos = (
        np.split(x.cpu().numpy(), ends) for x in (batch.species, batch.pos.detach().double())
    )
    cells = batch.cell.detach().cpu().double().numpy()
    return [_Crystal(*of) for of in zip(species, pos, cells, strict=True)]


def _align(crystal: _Crystal, other: _Crystal) -> tuple[float, np.ndarray, np.ndarray] | None:
    """Distance, and moves of positions and cell; None where there is no correspondence."""
    species, cell = crystal.species, crystal.cell
    if not np.array_equal(np.sort(other.species), np.sort(species)):
        return None
    if not (np.isfinite(cell).all() and np.isfinite(crystal.pos).all() and cell.any()):
        return None
    u, _, vt = np.linalg.svd(other.cell.T @ cell)
    proper = np.diag([1.0, 1.0, np.sign(np.linalg.det(u @ vt))])
    target = other.cell @ u @ proper @ vt
    if np.linalg.norm(target - cell) > _MAX_STRAIN * np.linalg.norm(cell):
        return None
    metric, n = target @ target.T, len(species)
    kinds, counts = np.unique(species, return_counts=True)
    rare = kinds[counts.argmin()]
    first = other.pos[np.flatnonzero(other.species == rare)[0]]
    atoms = [(np.flatnonzero(species == k), np.flatnonzero(other.species == k)) for k in kinds]
    trials = []
    for start in np.flatnonzero(species == rare):
        shift, move = crystal.pos[start] - first, np.zeros((n, 3))
        for _ in range(2):  # Assigned once more after the best translation.
            for ours, theirs in atoms:
                apart = other.pos[theirs][None] + shift - crystal.pos[ours][:, None]
                apart -= np.round(apart)
                cost = np.einsum("abi,ij,abj->ab", apart, metric, apart)
                i, j = linear_sum_assignment(cost)
                move[ours[i]] = apart[i, j]
            shift, move = shift - move.mean(0), move - move.mean(0)
        trials.append((float(np.einsum("ai,ij,aj->", move, metric, move)) / n, move))
    squared, move = min(trials, key=lambda trial: trial[0])
    unit = (abs(np.linalg.det(target)) / n) ** (1 / 3)
    return float(np.sqrt(squared)) / unit, move, target - cell
