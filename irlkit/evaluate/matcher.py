"""pymatgen's structure matching for arrays, with the same results, several times as fast.

`StructureMatcher.get_rms_dist` takes one pair of structures at a time: it brings both to a
primitive Niggli cell and equal volume, tries every basis of the first lattice that resembles the
second, and in each of them every translation that puts an atom of the rarest element onto one of
the second structure; an optimal assignment of the atoms and the best translation then give a
displacement (Ong et al., 2013). Here the same steps are taken

- on arrays, for all bases and translations of a pair together;
- once per structure where they concern one structure only (`RmsdMatcher.prepare`);
- after tests that rule out a match without computing one: unequal compositions of the primitive
  cells, and lattice vectors that no basis can bring within the length tolerance.

This module needs neither torch nor the rest of the package: worker processes load it alone.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pymatgen.core import Element, Lattice, Structure
from scipy.optimize import linear_sum_assignment

from irlkit.evaluate._lattices import (
    determinants,
    dot,
    fractional_tolerance,
    gram_schmidt,
    inverse,
    lll_reduced,
    matrices,
    parameters,
)

_IMAGES = np.stack(np.meshgrid(*[[-1.0, 0.0, 1.0]] * 3, indexing="ij"), axis=-1).reshape(27, 3)
_FORBIDDEN = 1e20
"""Squared distance of pairs that must not be assigned to each other, Å²."""
_PRIMITIVE_TOLERANCE = 0.25
"""Distance within which pymatgen takes atoms as translated copies, Å."""
_EXACT = 1e-5
"""Displacement at which pymatgen ends its search, dimensionless."""
_MAX_VOLUME = 1e15
"""pymatgen's tolerance of a lattice grows with its volume, and with it the time: past this volume,
a cubic cell of 1e5 Å, it takes any basis for a Niggli basis."""
_MAX_ELEMENTS = 1 << 22
"""Size of temporary arrays that needs more memory than a processor's cache, but not too much."""
_CACHED_ELEMENTS = 1 << 13
"""Pairs of atoms for which displacements are computed at once; measured to be fastest."""


@dataclass(frozen=True)
class PreparedStructure:
    """A structure in its primitive, Niggli-reduced cell.

    Attributes:
        numbers: Atomic numbers, shape (n,).
        pos: Fractional coordinates, shape (n, 3).
        cell: Lattice vectors as rows, Å, shape (3, 3).
        volume: Å³.
        lengths: Lengths of the lattice vectors in ascending order, Å.
    """

    numbers: np.ndarray
    pos: np.ndarray
    cell: np.ndarray
    volume: float
    lengths: np.ndarray


class RmsdMatcher:
    """Normalised root-mean-square displacement of matched structures.

    Equal to `StructureMatcher(stol=stol, ltol=ltol, angle_tol=angle_tol).get_rms_dist(a, b)[0]`,
    with nan where that is None.

    Args:
        stol: Largest displacement of a match, in units of (V/N)^(1/3).
        ltol: Relative tolerance of lattice vector lengths.
        angle_tol: Tolerance of lattice angles, degrees.

    Raises:
        ValueError: a tolerance is not positive.
    """

    def __init__(self, stol: float = 0.5, ltol: float = 0.3, angle_tol: float = 10.0) -> None:
        for name, value in (("stol", stol), ("ltol", ltol), ("angle_tol", angle_tol)):
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be positive, got {value}")
        self.stol, self.ltol, self.angle_tol = float(stol), float(ltol), float(angle_tol)

    def prepare(self, numbers: np.ndarray, pos: np.ndarray, lattice: Lattice) -> PreparedStructure:
        """Bring one structure to its primitive Niggli cell.

        Args:
            numbers: Atomic numbers, shape (n,).
            pos: Fractional coordinates, shape (n, 3).
            lattice: Not singular.

        Raises:
            ValueError: the lattice cannot be reduced.
        """
        if not lattice.volume < _MAX_VOLUME:
            raise ValueError(f"cell must be below {_MAX_VOLUME:g} Å³, got {lattice.volume:g}")
        reduced = lattice.get_niggli_reduced_lattice()
        if reduced != lattice:
            pos = (pos @ lattice.matrix) @ np.linalg.inv(reduced.matrix) % 1.0
        matrix = np.array(reduced.matrix)
        if _may_be_reducible(numbers, pos, np.linalg.norm(matrix, axis=1)):
            structure = Structure(reduced, _elements(numbers), pos).get_primitive_structure()
            numbers = np.array(structure.atomic_numbers)
            pos, matrix = np.array(structure.frac_coords), np.array(structure.lattice.matrix)
        return PreparedStructure(
            np.asarray(numbers),
            np.ascontiguousarray(pos, dtype=np.float64),
            matrix,
            float(abs(np.linalg.det(matrix))),
            np.sort(np.linalg.norm(matrix, axis=1)),
        )

    def rmsds(
        self, structures: Sequence[PreparedStructure], reference: PreparedStructure
    ) -> np.ndarray:
        """Return displacements between several structures and one reference, over (V/N)^⅓.

        Args:
            structures: With the same atomic numbers in the same order.
            reference: What to match with.

        Returns:
            Shape (len(structures),), float64, nan where there is no match.
        """
        result = np.full(len(structures), np.nan)
        n = len(reference.numbers)
        if not len(structures) or not np.array_equal(
            np.sort(structures[0].numbers), np.sort(reference.numbers)
        ):
            return result
        owners, bases = [], []
        for i, structure in enumerate(structures):
            found = self._bases(structure, reference)
            if found is not None:
                owners.append(np.full(len(found[0]), i))
                bases.append(found)
        if not bases:
            return result
        owner = np.concatenate(owners)
        if n == 1:
            result[owner] = 0.0
            return result
        integers, lengths, angles = (np.concatenate(part) for part in zip(*bases, strict=True))
        return self._search(structures, reference, owner, integers, lengths, angles)

    def possible(
        self, numbers: np.ndarray, lattice: Lattice, references: Sequence[PreparedStructure]
    ) -> list[int]:
        """Return references that may match, judged before the structure is prepared.

        Args:
            numbers: Atomic numbers of the structure, shape (n,).
            lattice: Not singular.
            references: Candidates.

        Returns:
            Indices into `references`.
        """
        count = np.bincount(numbers, minlength=128)
        n, volume = len(numbers), lattice.volume
        # The longest of any three independent lattice vectors is at least as long as the last
        # Gram-Schmidt vector of any basis; that of the LLL basis is a good bound.
        lll = lattice.lll_matrix
        height = volume / np.linalg.norm(np.cross(lll[0], lll[1]))
        possible = []
        for i, reference in enumerate(references):
            factor, rest = divmod(n, len(reference.numbers))
            if rest or (count != factor * np.bincount(reference.numbers, minlength=128)).any():
                continue
            # `factor` primitive cells make up the given one, if anything can match at all.
            stretch = (reference.volume / (volume / factor)) ** (1 / 3)
            limit = reference.lengths[2] * (1 + self.ltol) * (1 + 1e-9)
            if height / factor * stretch <= limit:
                possible.append(i)
        return possible

    def _bases(
        self, structure: PreparedStructure, reference: PreparedStructure
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """Bases of a structure's lattice whose lengths and angles are close to the reference's.

        Both lattices are first scaled to the geometric mean of their volumes.

        Returns:
            Integer matrices (as float64) that give the bases from the structure's, shape
            (m, 3, 3), and the lengths (m, 3), Å, and angles (m, 3), degrees, of the averages of
            basis and reference; None for m = 0.
        """
        scale = (reference.volume / structure.volume) ** (1 / 6)
        # Niggli lengths are the successive minima: but for the tolerance of the reduction, no
        # basis has shorter vectors.
        longest = reference.lengths / scale * (1 + self.ltol)
        if (structure.lengths * scale > longest * 1.01).any():
            return None
        cell = structure.cell * scale
        target_lengths, target_angles = parameters(reference.cell[None] / scale)
        target_lengths, target_angles = target_lengths[0], target_angles[0]
        integers, distances, _, _ = Lattice(cell).get_points_in_sphere(
            [[0, 0, 0]], [0, 0, 0], target_lengths.max() * (1 + self.ltol), zip_results=False
        )
        if not len(distances):
            return None
        ratios = distances[:, None] / target_lengths
        close = (ratios < 1 + self.ltol) & (ratios > 1 / (1 + self.ltol))
        choices = [np.flatnonzero(close[:, k]) for k in range(3)]
        units = [(integers[choice] @ cell) / distances[choice, None] for choice in choices]
        angles = [
            np.degrees(np.arccos(np.clip(units[j] @ units[k].T, -1, 1)))
            for j, k in ((1, 2), (0, 2), (0, 1))
        ]
        alpha, beta, gamma = (
            np.abs(angles[k] - target_angles[k]) <= self.angle_tol for k in range(3)
        )
        step = max(1, _MAX_ELEMENTS // max(1, alpha.size))
        triples = [np.empty((0, 3), dtype=np.int64)]
        for begin in range(0, len(gamma), step):
            part = slice(begin, begin + step)
            found = np.argwhere(gamma[part, :, None] & alpha[None] & beta[part, None, :])
            found[:, 0] += begin
            triples.append(found)
        chosen = np.concatenate(triples)
        points = np.stack([choices[k][chosen[:, k]] for k in range(3)], axis=1)
        regular = np.rint(np.abs(determinants(integers[points]))) == 1
        points, (a, b, c) = points[regular], chosen[regular].T
        if not len(points):
            return None
        basis_angles = np.stack([angles[0][b, c], angles[1][a, c], angles[2][a, b]], axis=1)
        return (
            integers[points],
            (distances[points] + target_lengths) / 2,
            (basis_angles + target_angles) / 2,
        )

    def _search(
        self,
        structures: Sequence[PreparedStructure],
        reference: PreparedStructure,
        owner: np.ndarray,
        integers: np.ndarray,
        lengths: np.ndarray,
        angles: np.ndarray,
    ) -> np.ndarray:
        """Smallest displacements over bases and translations, nan if above `stol`.

        Args:
            structures: With the same atomic numbers in the same order.
            reference: What to match with.
            owner: Structure of each basis, ascending, shape (m,).
            integers: Bases, shape (m, 3, 3).
            lengths: Of the averaged lattices, Å, shape (m, 3).
            angles: Of the averaged lattices, degrees, shape (m, 3).
        """
        n = len(reference.numbers)
        allowed = reference.numbers[:, None] == structures[0].numbers[None, :]
        # An atom of the rarest element goes onto each of its kind.
        pivot = int(allowed.sum(axis=1).argmin())
        lattices = matrices(lengths, angles)
        norm = (n / np.abs(determinants(lattices))) ** (1 / 3)
        tolerance = fractional_tolerance(lattices, norm, self.stol)
        # Positions in the new basis = integers · old basis.
        pos = np.stack([structure.pos for structure in structures])[owner] @ inverse(integers)
        pos -= np.floor(pos)
        shifts = pos[:, allowed[pivot]] - reference.pos[pivot]
        basis, translation = _within_tolerance(
            reference.pos, pos, shifts, allowed, tolerance, pivot
        )
        used, compact = np.unique(basis, return_inverse=True)
        lll, mapping = lll_reduced(lattices[used])
        lll_tolerance = fractional_tolerance(lll, norm[used], self.stol)
        best = np.full(len(structures), np.inf)
        exact = min(_EXACT, self.stol)
        size = max(16, _CACHED_ELEMENTS // n**2)
        waiting = np.arange(len(basis))
        while len(waiting):
            part, waiting = waiting[:size], waiting[size:]
            m, u = basis[part], compact[part]
            moved = reference.pos + shifts[m, translation[part]][:, None, :]
            values = norm[m] * _displacements(
                moved @ mapping[u], pos[m] @ mapping[u], lll[u], lll_tolerance[u], allowed
            )
            # pymatgen ends its search at the first displacement that is as good as none.
            settled, first = np.unique(owner[m[values < exact]], return_index=True)
            np.minimum.at(best, owner[m], values)
            best[settled] = values[values < exact][first]
            if len(settled):
                waiting = waiting[~np.isin(owner[basis[waiting]], settled)]
        return np.where(best < self.stol, best, np.nan)


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


def _may_be_reducible(numbers: np.ndarray, pos: np.ndarray, lengths: np.ndarray) -> bool:
    """False where no translation within pymatgen's tolerance maps the structure onto itself."""
    elements, counts = np.unique(numbers, return_counts=True)
    cells = math.gcd(*counts.tolist())
    if cells == 1:
        return False
    tolerance = _PRIMITIVE_TOLERANCE / lengths
    if tolerance.max() > min(0.25, 1 / cells):
        return True
    rarest = pos[numbers == elements[counts.argmin()]]
    vectors = rarest[1:] - rarest[0]
    for element in elements:
        group = pos[numbers == element]
        steps = group[None, :, :] - group[:, None, :]
        d = vectors[:, None, None, :] - steps[None]
        near = (np.abs(d - np.rint(d)) <= 2 * tolerance * (1 + 1e-9)).all(axis=3)
        vectors = vectors[near.any(axis=2).all(axis=1)]
        if not len(vectors):
            return False
    return True


@functools.lru_cache(maxsize=128)
def _element(number: int) -> Element:
    return Element.from_Z(number)


def _elements(numbers: np.ndarray) -> list[Element]:
    return [_element(int(number)) for number in numbers]
