"""The best translation and assignment of atoms, for all bases of some structures' lattices at once.

The last steps of `irlkit.evaluate.matcher`, with pymatgen's results.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment

from irlkit.evaluate._lattices import dot, gram_schmidt

_IMAGES = np.stack(np.meshgrid(*[[-1.0, 0.0, 1.0]] * 3, indexing="ij"), axis=-1).reshape(27, 3)
_FORBIDDEN = 1e20
"""Squared distance of pairs that must not be assigned to each other, Å²."""
_CACHED_ELEMENTS = 1 << 13
"""Pairs of atoms for which displacements are computed at once; measured to be fastest."""


class Search:
    """Structures with the same atomic numbers in the same order, and a reference of more than one.

    Args:
        numbers: Atomic numbers of the structures, shape (n,).
        pos: Their fractional coordinates, shape (s, n, 3).
        reference_numbers: Of what to match with, shape (n,).
        reference_pos: Its fractional coordinates, shape (n, 3).
        owner: Structure of each basis, ascending, shape (m,).
        inverses: From positions in a structure's cell to those in each basis, shape (m, 3, 3).
        tolerance: Fractional differences beyond which atoms cannot match, shape (m, 3).

    Attributes:
        bases: Those of which some translation brings every atom near another, shape (u,).
    """

    def __init__(
        self,
        numbers: np.ndarray,
        pos: np.ndarray,
        reference_numbers: np.ndarray,
        reference_pos: np.ndarray,
        owner: np.ndarray,
        inverses: np.ndarray,
        tolerance: np.ndarray,
    ) -> None:
        self._reference, self._n_structures = reference_pos, len(pos)
        self._allowed = reference_numbers[:, None] == numbers[None, :]
        # An atom of the rarest element goes onto each of its kind.
        pivot = int(self._allowed.sum(axis=1).argmin())
        # Positions in the new basis = integers · old basis.
        pos = pos[owner] @ inverses
        pos -= np.floor(pos)
        shifts = pos[:, self._allowed[pivot]] - reference_pos[pivot]
        basis, self._translation = _within_tolerance(
            reference_pos, pos, shifts, self._allowed, tolerance, pivot
        )
        self.bases, self._basis = np.unique(basis, return_inverse=True)
        self._owner, self._pos, self._shifts = (x[self.bases] for x in (owner, pos, shifts))

    def displacements(
        self,
        lll: np.ndarray,
        mapping: np.ndarray,
        tolerance: np.ndarray,
        norm: np.ndarray,
        exact: float,
    ) -> np.ndarray:
        """Return the smallest displacement of each structure, infinite where there is none.

        Args:
            lll: LLL-reduced lattices of `bases`, Å, shape (u, 3, 3).
            mapping: To positions in them, shape (u, 3, 3).
            tolerance: As of the bases, shape (u, 3).
            norm: (N/V)^(1/3), 1/Å, shape (u,).
            exact: Displacement at which pymatgen ends its search.
        """
        n, owner = len(self._reference), self._owner
        best = np.full(self._n_structures, np.inf)
        size = max(16, _CACHED_ELEMENTS // n**2)
        waiting = np.arange(len(self._basis))
        while len(waiting):
            part, waiting = waiting[:size], waiting[size:]
            m = self._basis[part]
            moved = self._reference + self._shifts[m, self._translation[part]][:, None, :]
            values = norm[m] * _displacements(
                moved @ mapping[m], self._pos[m] @ mapping[m], lll[m], tolerance[m], self._allowed
            )
            # pymatgen ends its search at the first displacement that is as good as none.
            settled, first = np.unique(owner[m[values < exact]], return_index=True)
            np.minimum.at(best, owner[m], values)
            best[settled] = values[values < exact][first]
            if len(settled):
                waiting = waiting[~np.isin(owner[self._basis[waiting]], settled)]
        return best


def _within_tolerance(
    reference: np.ndarray,
    pos: np.ndarray,
    shifts: np.ndarray,
    allowed: np.ndarray,
    tolerance: np.ndarray,
    pivot: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Bases and translations that bring every reference atom near an atom of its element.

    Args:
        reference: Fractional coordinates, shape (n, 3).
        pos: Fractional coordinates in each basis, shape (m, n, 3).
        shifts: Translations of the reference in each basis, shape (m, t, 3).
        allowed: True where reference atom i and atom j are of one element, shape (n, n).
        tolerance: Largest fractional difference along each axis, shape (m, 3).
        pivot: Atom that the translations bring into coincidence.

    Returns:
        Indices of basis and translation of the candidates that remain, in order.
    """
    n_bases, n_shifts = shifts.shape[:2]
    basis = np.repeat(np.arange(n_bases), n_shifts)
    translation = np.tile(np.arange(n_shifts), n_bases)
    if (tolerance >= 0.5).all():
        return basis, translation
    for i in range(len(reference)):
        if i == pivot:
            continue
        d = (reference[i] + shifts[basis, translation])[:, None, :] - pos[basis][:, allowed[i]]
        d -= np.rint(d)
        np.abs(d, out=d)
        near = (d <= tolerance[basis][:, None, :]).all(axis=2).any(axis=1)
        basis, translation = basis[near], translation[near]
        if not len(basis):
            break
    return basis, translation


def _displacements(
    reference: np.ndarray,
    pos: np.ndarray,
    lattices: np.ndarray,
    tolerance: np.ndarray,
    allowed: np.ndarray,
) -> np.ndarray:
    """Root-mean-square displacement of the best assignment, after the best translation, Å.

    Args:
        reference: Fractional coordinates, shape (s, n, 3).
        pos: Fractional coordinates, shape (s, n, 3).
        lattices: LLL-reduced lattices, Å, shape (s, 3, 3).
        tolerance: Pairs further apart along an axis are not assigned, shape (s, 3).
        allowed: Pairs of one element, shape (n, n).

    Returns:
        Shape (s,); larger than any cell where no assignment is within the tolerance.
    """
    n_candidates, n, _ = reference.shape
    first, second = allowed.nonzero()
    # Wrapped before the difference is taken: the 27 images around it are those pymatgen tries.
    difference = (pos % 1.0)[:, second] - (reference % 1.0)[:, first]
    wrapped = difference - np.rint(difference)
    near = np.abs(wrapped) <= tolerance[:, None, :]
    candidate, pair = (near[..., 0] & near[..., 1] & near[..., 2]).nonzero()
    found = (wrapped @ lattices)[candidate, pair]
    squares = dot(found, found)
    # Two images of one vector differ by at least the shortest lattice vector, which is no shorter
    # than the least Gram-Schmidt vector: below half of that the wrapped image is the closest.
    shortest = gram_schmidt(lattices)[0].min(axis=1)
    open_ = np.flatnonzero(squares >= shortest[candidate] / 4 * (1 - 1e-9))
    found[open_], squares[open_] = _closest_images(
        difference[candidate[open_], pair[open_]], lattices, candidate[open_]
    )
    cost = np.full((n_candidates, n, n), _FORBIDDEN)
    cost[candidate, first[pair], second[pair]] = squares
    vectors = np.full((n_candidates, n, n, 3), _FORBIDDEN)
    vectors[candidate, first[pair], second[pair]] = found
    assignment = _assign(cost)
    rows = np.arange(n_candidates)[:, None], np.arange(n)[None, :]
    chosen = vectors[*rows, assignment]
    chosen -= chosen.mean(axis=1, keepdims=True)
    return np.sqrt(np.einsum("snk,snk->s", chosen, chosen) / n)


def _closest_images(
    difference: np.ndarray, lattices: np.ndarray, lattice: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Shortest of the 27 vectors around fractional differences, Å, and their squares, Å².

    Args:
        difference: Shape (k, 3).
        lattices: Shape (s, 3, 3), Å.
        lattice: Which one each difference is in, shape (k,).
    """
    metric = lattices @ lattices.transpose(0, 2, 1)
    image_squares = dot(_IMAGES @ metric, _IMAGES)
    product = np.einsum("ki,kij->kj", difference, metric[lattice])
    # |v + t|² = |v|² + 2 v·t + |t|², of which the first does not matter here.
    relative = (2 * product) @ _IMAGES.T + image_squares[lattice]
    image = relative.argmin(axis=1)
    least = relative.min(axis=1)
    # Where two are equally short, the first with the least rounding error is pymatgen's choice.
    tied = np.flatnonzero(
        (relative <= (least + 1e-9 * (1 + np.abs(least)))[:, None]).sum(axis=1) > 1
    )
    if len(tied):
        vectors = (difference[tied, None, :] @ lattices[lattice[tied]]) + (_IMAGES @ lattices)[
            lattice[tied]
        ]
        image[tied] = dot(vectors, vectors).argmin(axis=1)
    closest = np.einsum("ki,kij->kj", difference + _IMAGES[image], lattices[lattice])
    return closest, dot(closest, closest)


def _assign(cost: np.ndarray) -> np.ndarray:
    """Column of each row in the cheapest assignment, shape (s, n), for costs (s, n, n)."""
    nearest = cost.argmin(axis=2)
    rest = cost.copy()
    np.put_along_axis(rest, nearest[:, :, None], np.inf, axis=2)
    gap = rest.min(axis=2) - np.take_along_axis(cost, nearest[:, :, None], axis=2)[:, :, 0]
    # If all rows prefer different columns, without ties, nothing cheaper exists.
    settled = (np.sort(nearest, axis=1) == np.arange(cost.shape[1])).all(axis=1)
    settled &= (gap > 1e-9).all(axis=1)
    for k in np.flatnonzero(~settled):
        nearest[k] = linear_sum_assignment(cost[k])[1]
    return nearest
