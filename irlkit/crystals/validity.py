"""Which generated structures are physical enough to be matched or given an energy.

The three criteria of Appendix B of the paper: cell volume, smallest interatomic distance with
periodic images, and polar sine of the lattice vectors. Generated cells can be anything (needles,
sheets, zero, infinite, not a number), so that the cheap criteria come first and the distances are
computed for the remaining structures only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from irlkit.crystals import CrystalBatch
from irlkit.utils.checks import check_finite, checked

_IMAGES = np.stack(np.meshgrid(*[[-1.0, 0.0, 1.0]] * 3, indexing="ij"), axis=-1).reshape(27, 3)
_MAX_PAIRS = 1 << 20
"""Pairs of atoms handled at once; bounds the memory to some 100 MB."""


@dataclass(frozen=True)
class Validity:
    """Outcome of `check` for B structures, as NumPy arrays of shape (B,).

    Attributes:
        valid: True where all criteria are met.
        volume: |det cell|, Å³; nan where the cell is not finite.
        min_distance: Smallest distance between two atoms, including an atom and its own periodic
            images, Å. Exact where it is below the cut-off; otherwise an upper bound that is not
            below the cut-off. nan where another criterion has failed already.
        polar_sine: |det cell|/(|a||b||c|), from 0 to 1; nan where the cell is not finite or has a
            vector of length 0.
        finite: True where all positions and cell entries are finite.
    """

    valid: np.ndarray
    volume: np.ndarray
    min_distance: np.ndarray
    polar_sine: np.ndarray
    finite: np.ndarray

    def __len__(self) -> int:
        return len(self.valid)


@checked
def check(
    batch: CrystalBatch,
    min_volume: float = 0.1,
    min_distance: float = 0.5,
    min_polar_sine: float = 1e-3,
) -> Validity:
    """Check the criteria of Appendix B in float64.

    >>> check(CrystalBatch.from_formulas(["Na", "NaCl"])).valid.tolist()  # two atoms at one place
    [True, False]

    Args:
        batch: Structures; positions need not be wrapped.
        min_volume: Cells below this volume are invalid, Å³.
        min_distance: Structures with a smaller interatomic distance are invalid, Å.
        min_polar_sine: Cells below this polar sine are invalid.

    Raises:
        ValueError: a cut-off is negative or not finite.
    """
    check_finite("min_volume", min_volume, least=0)
    check_finite("min_distance", min_distance, least=0)
    check_finite("min_polar_sine", min_polar_sine, least=0)
    pos = batch.pos.detach().cpu().double().numpy()
    cell = batch.cell.detach().cpu().double().numpy()
    n_atoms = batch.n_atoms.cpu().numpy()
    starts = np.cumsum(n_atoms) - n_atoms

    with np.errstate(all="ignore"):
        atom_finite = np.isfinite(pos).all(axis=1)
        finite = np.isfinite(cell).all(axis=(1, 2))
        if len(n_atoms):
            finite &= np.logical_and.reduceat(atom_finite, starts)
        lengths = np.sqrt((cell**2).sum(axis=2))
        volume = np.abs(_determinant(cell))
        # Directions first: the product of three lengths overflows long before they do.
        polar_sine = np.abs(_determinant(cell / lengths[:, :, None]))
        good = finite & np.isfinite(volume) & np.isfinite(lengths).all(axis=1)
        good &= (volume >= min_volume) & (polar_sine >= min_polar_sine)
    # A cell of volume 0 has no distances, even where the caller asks for no minimum.
    measurable = good & (volume > 0) & (polar_sine > 1e-12)
    distance = np.full(len(n_atoms), np.nan)
    reduced, integers = reduce_lattices(cell[measurable])
    inverse = np.rint(np.linalg.inv(integers))
    self_distance = np.sqrt((reduced**2).sum(axis=2)).min(axis=1)
    distance[measurable] = self_distance
    rows = np.flatnonzero(measurable)
    for size in np.unique(n_atoms[rows]):
        if size == 1:
            continue
        first, second = np.triu_indices(size, 1)
        members = np.flatnonzero(n_atoms[rows] == size)
        step = max(1, _MAX_PAIRS // len(first))
        for begin in range(0, len(members), step):
            chunk = members[begin : begin + step]
            atoms = starts[rows[chunk]][:, None] + np.arange(size)
            # cell = integers⁻¹ reduced, so that pos integers⁻¹ are coordinates in the reduced cell.
            x = np.matmul(pos[atoms] % 1.0, inverse[chunk])
            closest = _closest_pair(x[:, second] - x[:, first], reduced[chunk], min_distance)
            distance[rows[chunk]] = np.minimum(distance[rows[chunk]], closest)
    valid = good & (distance >= min_distance)
    return Validity(valid, volume, distance, polar_sine, finite)


def reduce_lattices(cell: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return Minkowski-reduced bases, all at once.

    In such a basis the shortest lattice vector is a basis vector, and the image of a point that
    is closest to the origin is one of the 27 around the wrapped point (Nguyen and Stehlé, 2004).

    Args:
        cell: Regular finite matrices with lattice vectors as rows, Å, shape (B, 3, 3).

    Returns:
        The reduced matrices, shape (B, 3, 3), by increasing length of the vectors, and the integer
        matrices (as float64) that make them: reduced = integers @ cell.
    """
    cell = np.asarray(cell, dtype=np.float64)
    reduced = cell.copy()
    integers = np.broadcast_to(np.eye(3), cell.shape).copy()
    active = np.arange(len(cell))
    # Every round shortens a vector of each active lattice: some tens suffice for any valid cell.
    for _ in range(200):
        if not len(active):
            break
        b, u = reduced[active], integers[active]
        order = np.argsort((b**2).sum(axis=2), axis=1, kind="stable")[:, :, None]
        b, u = np.take_along_axis(b, order, axis=1), np.take_along_axis(u, order, axis=1)
        squares = (b**2).sum(axis=2)
        q = np.rint((b[:, 1] * b[:, 0]).sum(axis=1) / squares[:, 0])
        b[:, 1] -= q[:, None] * b[:, 0]
        u[:, 1] -= q[:, None] * u[:, 0]
        # Third vector: nearest lattice point of the plane, one of 9 around the projection.
        g00, g11 = squares[:, 0], (b[:, 1] ** 2).sum(axis=1)
        g01 = (b[:, 0] * b[:, 1]).sum(axis=1)
        p0, p1 = (b[:, 0] * b[:, 2]).sum(axis=1), (b[:, 1] * b[:, 2]).sum(axis=1)
        det = g00 * g11 - g01**2
        y = np.stack([(g11 * p0 - g01 * p1) / det, (g00 * p1 - g01 * p0) / det], axis=1)
        y = np.where(np.isfinite(y), np.rint(y), 0.0)
        shift = y[:, None, :] + _IMAGES[_IMAGES[:, 2] == 0][None, :, :2]
        candidates = b[:, 2:3] - np.matmul(shift, b[:, :2])
        best = (candidates**2).sum(axis=2).argmin(axis=1)
        taken = np.take_along_axis(shift, best[:, None, None], axis=1)
        b[:, 2] -= np.matmul(taken, b[:, :2])[:, 0]
        u[:, 2] -= np.matmul(taken, u[:, :2])[:, 0]
        # A relative margin ends the rounds of ties, which rounding errors could prolong.
        shorter = (b**2).sum(axis=2) < squares * (1 - 1e-12)
        reduced[active], integers[active] = b, u
        active = active[shorter.any(axis=1)]
    order = np.argsort((reduced**2).sum(axis=2), axis=1, kind="stable")[:, :, None]
    integers = np.take_along_axis(integers, order, axis=1)
    return np.matmul(integers, cell), integers


def _closest_pair(difference: np.ndarray, reduced: np.ndarray, cutoff: float) -> np.ndarray:
    """Smallest distance among pairs of atoms of each structure, shape (b,).

    Args:
        difference: Fractional differences in the reduced basis, shape (b, pairs, 3).
        reduced: Minkowski-reduced cells, Å, shape (b, 3, 3).
        cutoff: Distances below it are exact, Å.
    """
    difference -= np.rint(difference)
    vectors = np.matmul(difference, reduced)
    squares = np.einsum("bpk,bpk->bp", vectors, vectors)
    closest = squares.min(axis=1)
    # A vector shorter than the cut-off moves at most cutoff/height along each axis.
    heights = 1.0 / np.sqrt((np.linalg.inv(reduced) ** 2).sum(axis=1))
    reach = (cutoff / heights)[:, None, :]
    nearby = ((np.abs(difference) <= reach) | (reach >= 0.5)).all(axis=2)
    # Where all reaches are below one half, no image but the wrapped one can be that close.
    nearby &= (reach >= 0.5).any(axis=2)
    structure, pair = nearby.nonzero()
    for begin in range(0, len(structure), _MAX_PAIRS // 27):
        b = structure[begin : begin + _MAX_PAIRS // 27]
        p = pair[begin : begin + _MAX_PAIRS // 27]
        images = vectors[b, p][:, None, :] + np.matmul(_IMAGES, reduced[b])
        np.minimum.at(closest, b, (images**2).sum(axis=2).min(axis=1))
    return np.sqrt(closest)


def _determinant(matrices: np.ndarray) -> np.ndarray:
    """Determinants by the triple product, which lets nan and inf through."""
    return (np.cross(matrices[:, 0], matrices[:, 1]) * matrices[:, 2]).sum(axis=1)
