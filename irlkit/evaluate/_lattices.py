"""Many 3 x 3 lattices, vectors as rows, at once: geometry and LLL reduction as pymatgen does it."""

from __future__ import annotations

import numpy as np
from pymatgen.core import Lattice


def dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Scalar products along the last axis; for three components faster than a sum."""
    return np.einsum("...k,...k->...", a, b)


def cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cross products of rows; NumPy's own spends its time on preparing the axes."""
    return a[:, [1, 2, 0]] * b[:, [2, 0, 1]] - a[:, [2, 0, 1]] * b[:, [1, 2, 0]]


def cofactor_matrices(matrices: np.ndarray) -> np.ndarray:
    """Cross products of the rows, so that the inverse is the transpose over the determinant."""
    a, b, c = matrices[:, 0], matrices[:, 1], matrices[:, 2]
    return np.stack([cross(b, c), cross(c, a), cross(a, b)], axis=1)


def determinants(matrices: np.ndarray) -> np.ndarray:
    return dot(cross(matrices[:, 0], matrices[:, 1]), matrices[:, 2])


def inverse(matrices: np.ndarray) -> np.ndarray:
    cofactors = cofactor_matrices(matrices)
    return cofactors.transpose(0, 2, 1) / dot(cofactors[:, 0], matrices[:, 0])[:, None, None]


def parameters(matrices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lengths, Å, and angles, degrees, each of shape (m, 3)."""
    lengths = np.sqrt((matrices**2).sum(axis=2))
    products = (np.roll(matrices, -1, axis=1) * np.roll(matrices, -2, axis=1)).sum(axis=2)
    products /= np.roll(lengths, -1, axis=1) * np.roll(lengths, -2, axis=1)
    return lengths, np.degrees(np.arccos(np.clip(products, -1, 1)))


def matrices(lengths: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """Lattices from lengths and angles, third vector along z, first in the xz plane."""
    a, b, c = lengths.T
    cos, sin = np.cos(np.radians(angles)).T, np.sin(np.radians(angles)).T
    cos_star = np.clip((cos[0] * cos[1] - cos[2]) / (sin[0] * sin[1]), -1, 1)
    sin_star = np.sqrt(1 - cos_star**2)
    zero = np.zeros_like(a)
    return np.stack(
        [
            np.stack([a * sin[1], zero, a * cos[1]], axis=1),
            np.stack([-b * sin[0] * cos_star, b * sin[0] * sin_star, b * cos[0]], axis=1),
            np.stack([zero, zero, c], axis=1),
        ],
        axis=1,
    )


def fractional_tolerance(lattices: np.ndarray, norm: np.ndarray, stol: float) -> np.ndarray:
    """Fractional differences beyond which two atoms cannot match, shape (m, 3).

    A displacement of 2 stol (V/N)^(1/3) normal to a lattice plane; `norm` is (N/V)^(1/3), 1/Å.
    """
    cofactors = cofactor_matrices(lattices)
    volumes = np.abs(dot(cofactors[:, 0], lattices[:, 0]))
    reciprocal = np.sqrt(dot(cofactors, cofactors)) / volumes[:, None]
    return 2 * stol * reciprocal / norm[:, None]


def gram_schmidt(lattices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Squared lengths (m, 3), Å², of the orthogonalised vectors, and coefficients u10, u20, u21."""
    a, b, c = lattices[:, 0], lattices[:, 1], lattices[:, 2]
    aa = dot(a, a)
    u10, u20 = dot(a, b) / aa, dot(a, c) / aa
    b = b - u10[:, None] * a
    bb = dot(b, b)
    u21 = dot(b, c) / bb
    c = c - u20[:, None] * a - u21[:, None] * b
    return np.stack([aa, bb, dot(c, c)], axis=1), np.stack([u10, u20, u21], axis=1)


def lll_reduced(lattices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """LLL-reduced lattices, Å, and the matrices that give coordinates in them from the old.

    Steps as `Lattice.get_lll_reduced_lattice` takes them (parameter 0.75), for all lattices
    together; where a rounding error may decide a step, pymatgen takes it.
    """
    margin = 1e-9
    reduced = lattices.copy()
    unclear = np.zeros(len(lattices), dtype=bool)
    k = np.ones(len(lattices), dtype=np.int64)
    active = np.arange(len(lattices))
    for _ in range(100):
        if not len(active):
            break
        a, row = reduced[active], k[active]
        rows = np.arange(len(active))
        _, u = gram_schmidt(a)
        # Size reduction of the row by the one above it, then of the last one by the first.
        q = np.where(row == 1, u[:, 0], u[:, 2])
        close = np.abs(np.abs(q - np.rint(q)) - 0.5) < margin
        a[rows, row] -= np.rint(q)[:, None] * a[rows, row - 1]
        q = np.where(row == 2, u[:, 1] - np.rint(u[:, 2]) * u[:, 0], 0.0)
        close |= np.abs(np.abs(q - np.rint(q)) - 0.5) < margin
        a[:, 2] -= np.rint(q)[:, None] * a[:, 0]
        # Lovász condition; a swap takes the row back.
        squares, u = gram_schmidt(a)
        bound = (0.75 - np.where(row == 1, u[:, 0], u[:, 2]) ** 2) * squares[rows, row - 1]
        excess = squares[rows, row] - bound
        close |= np.abs(excess) < margin * squares[rows, row]
        swap = np.flatnonzero(excess < 0)
        above, here = a[swap, row[swap] - 1].copy(), a[swap, row[swap]].copy()
        a[swap, row[swap] - 1], a[swap, row[swap]] = here, above
        reduced[active] = a
        k[active] = np.where(excess < 0, np.maximum(row - 1, 1), row + 1)
        unclear[active] |= close
        active = active[(k[active] <= 2) & ~close]
    unclear[active] = True
    for i in np.flatnonzero(unclear):
        reduced[i] = Lattice(lattices[i]).lll_matrix
    return reduced, np.rint(lattices @ inverse(reduced))
