"""How many different structures there are, by a fingerprint that is fast to compare."""

from __future__ import annotations

import numpy as np

from irlkit.crystals import CrystalBatch, validity
from irlkit.crystals.compositions import element_counts
from irlkit.utils.checks import check_count, checked

N_NEIGHBOURS = 12
SAME = 0.08
"""Largest difference of the fingerprints of equal structures, in units of (V/N)^(1/3). Of what
pymatgen's default matcher calls different, it takes one pair in a hundred for equal."""


@checked
def fingerprints(batch: CrystalBatch, n_neighbours: int = N_NEIGHBOURS) -> np.ndarray:
    """Return vectors that are equal for equal structures, whatever their cell, origin and order.

    The distances of an atom to its nearest neighbours, and to the nearest of its own element, in
    units of (V/N)^(1/3), averaged over the atoms of a structure. It changes continuously with the
    structure. (Chirality is not seen.)

    Args:
        batch: B structures.
        n_neighbours: neighbours per atom, at most 26.

    Returns:
        Shape (B, 2 n_neighbours); nan for structures that are not finite or flat.
    """
    pos = batch.pos.detach().cpu().double().numpy()
    cell = batch.cell.detach().cpu().double().numpy()
    species = batch.species.cpu().numpy()
    n_atoms = batch.n_atoms.cpu().numpy()
    starts = np.cumsum(n_atoms) - n_atoms
    check_count("n_neighbours", n_neighbours, most=26)
    result = np.full((len(batch), 2 * n_neighbours), np.nan)
    with np.errstate(all="ignore"):
        volume = np.abs(np.linalg.det(np.nan_to_num(cell)))
        lengths = np.sqrt((cell**2).sum(axis=2))
        good = np.isfinite(volume) & (volume > 1e-6 * lengths.prod(axis=1)) & (volume > 1e-6)
        good &= np.isfinite(cell).all(axis=(1, 2)) & (lengths < 1e6).all(axis=1)
        if len(batch):
            good &= np.logical_and.reduceat(np.isfinite(pos).all(axis=1), starts)
    rows = np.flatnonzero(good)
    if not len(rows):
        return result
    reduced, integers = validity.reduce_lattices(cell[rows])
    inverse = np.rint(np.linalg.inv(integers))
    for size in np.unique(n_atoms[rows]):
        members = np.flatnonzero(n_atoms[rows] == size)
        step = max(1, (1 << 20) // (27 * size * size))
        for begin in range(0, len(members), step):
            chunk = members[begin : begin + step]
            atoms = starts[rows[chunk]][:, None] + np.arange(size)
            x = np.matmul(pos[atoms] % 1.0, inverse[chunk]) % 1.0
            difference = x[:, None, :, :] - x[:, :, None, :]
            difference -= np.rint(difference)
            shifted = difference[:, :, :, None, :] + validity._IMAGES
            flat = shifted.reshape(len(chunk), -1, 3).astype(np.float32)
            cartesian = np.matmul(flat, reduced[chunk].astype(np.float32))
            distance = np.sqrt((cartesian**2).sum(axis=-1)).reshape(len(chunk), size, -1)
            other = species[atoms][:, :, None] != species[atoms][:, None, :]
            own = np.where(other[:, :, :, None], np.inf, distance.reshape(*other.shape, 27))
            parts = [_nearest(x, n_neighbours) for x in (distance, own.reshape(distance.shape))]
            scale = np.cbrt(volume[rows[chunk]] / size)[:, None]
            result[rows[chunk]] = np.concatenate(parts, axis=1) / scale
    return result


def _nearest(distance: np.ndarray, n: int) -> np.ndarray:
    """The n smallest distances of each atom but that from itself, (m, atoms, all) to (m, n)."""
    near = np.sort(np.partition(distance, n, axis=2)[:, :, : n + 1], axis=2)
    return near[:, :, 1:].mean(axis=1)


@checked
def count_distinct(prints: np.ndarray, group_size: int, tolerance: float = SAME) -> np.ndarray:
    """Count the different structures of every group.

    >>> count_distinct(np.array([[0.0], [0.01], [1.0], [1.5]]), 2)
    array([1, 2])

    Args:
        prints: of `fingerprints`, shape (n_groups * group_size, F), groups adjacent; structures
            with nan are not counted.
        group_size: structures per group.
        tolerance: largest difference of equal structures.

    Returns:
        Structures without an equal before them in their group, shape (n_groups,).

    Raises:
        ValueError: `group_size` is not positive, or does not divide the number of structures.
    """
    if prints.ndim != 2 or prints.dtype.kind not in "fiu":
        raise ValueError(
            f"prints must be numbers of shape (B, F), got {prints.dtype} of shape {prints.shape}"
        )
    if group_size < 1 or len(prints) % group_size:
        raise ValueError(
            f"group_size must be positive and divide the {len(prints)} structures, got {group_size}"
        )
    groups = prints.reshape(-1, group_size, prints.shape[1])
    counted = np.isfinite(groups).all(axis=2)
    earlier = np.tril(np.ones((group_size, group_size), dtype=bool), -1)
    distinct = []
    for group, use in zip(groups, counted, strict=True):  # G x G x F numbers at a time
        with np.errstate(invalid="ignore"):
            difference = np.abs(group[:, None] - group[None]).max(axis=2)
        distinct.append((use & ~((difference < tolerance) & earlier).any(axis=1)).sum())
    return np.array(distinct)


@checked
def composition_diversity(batch: CrystalBatch, weights: np.ndarray | None = None) -> np.ndarray:
    """Return the Vendi score of compositions: how many that share no element are as diverse.

    The exponential of the entropy of the eigenvalues of K/B, with K the cosine similarity of the
    compositions as vectors of atoms per element (Friedman and Dieng, 2023).

    >>> composition_diversity(CrystalBatch.from_formulas(["NaCl", "Na2Cl2", "MgO"])).round(2)
    array([1.89])

    Args:
        batch: B structures, at least one.
        weights: how often each counts, shape (m, B); None: once.

    Returns:
        From 1 to the number of elements, shape (m,) or (1,).

    Raises:
        ValueError: weights of another number of structures.
    """
    weights = np.ones((1, len(batch))) if weights is None else weights
    if not len(batch) or weights.ndim != 2 or weights.shape[1] != len(batch):
        raise ValueError(
            f"weights must have shape (m, {len(batch)}), one per structure of the batch, which has "
            f"at least one, got {weights.shape}"
        )
    counts = element_counts(batch).cpu().double()
    counts = counts[:, counts.any(0)]
    x = (counts / counts.norm(dim=1, keepdim=True)).numpy()
    share = weights / weights.sum(axis=1, keepdims=True).clip(min=1e-300)
    size = x.shape[1]
    matrix = (share @ (x[:, :, None] * x[:, None]).reshape(len(x), -1)).reshape(-1, size, size)
    eigenvalues = np.linalg.eigvalsh(matrix).clip(min=1e-300)
    return np.exp(-(eigenvalues * np.log(eigenvalues)).sum(axis=1))
