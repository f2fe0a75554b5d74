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
"""Length of the temporary arrays that the search is cut into."""


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

    def prepare(self, numbers: np.ndarray, pos: np.ndarray, cell: np.ndarray) -> PreparedStructure:
        """Brings one structure to its primitive Niggli cell.

        Args:
            numbers: Atomic numbers, shape (n,).
            pos: Fractional coordinates, shape (n, 3).
            cell: Lattice vectors as rows, Å, shape (3, 3).

        Raises:
            ValueError: the lattice cannot be reduced.
        """
        lattice = Lattice(cell)
        if not lattice.volume < _MAX_VOLUME:
            raise ValueError(f"cell must be below {_MAX_VOLUME:g} Å³, got {lattice.volume:g}")
        reduced = lattice.get_niggli_reduced_lattice()
        if reduced != lattice:
            pos = (pos @ cell) @ np.linalg.inv(reduced.matrix) % 1.0
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
        self,
        numbers: np.ndarray,
        pos: np.ndarray,
        cell: np.ndarray,
        references: Sequence[PreparedStructure],
    ) -> np.ndarray:
        """Displacements between one structure and several references.

        Args:
            numbers: Atomic numbers of the structure, shape (n,).
            pos: Fractional coordinates, shape (n, 3).
            cell: Lattice vectors as rows, Å, shape (3, 3); not singular.
            references: From `prepare`.

        Returns:
            Shape (len(references),), float64, nan where there is no match.

        Raises:
            ValueError: the lattice cannot be reduced.
        """
        result = np.full(len(references), np.nan)
        possible = self._possible(numbers, cell, references)
        if possible:
            prepared = self.prepare(numbers, pos, cell)
            for i in possible:
                result[i] = self.rmsd(prepared, references[i])
        return result

    def rmsd(self, structure: PreparedStructure, reference: PreparedStructure) -> float:
        """Displacement between two prepared structures, nan where they do not match."""
        n = len(reference.numbers)
        if len(structure.numbers) != n or not np.array_equal(
            np.sort(structure.numbers), np.sort(reference.numbers)
        ):
            return np.nan
        scale = (reference.volume / structure.volume) ** (1 / 6)
        # Niggli lengths are the successive minima: no basis has shorter vectors.
        longest = reference.lengths / scale * (1 + self.ltol)
        if (structure.lengths * scale > longest * (1 + 1e-9)).any():
            return np.nan
        bases = self._bases(structure.cell * scale, reference.cell / scale)
        if not len(bases[0]):
            return np.nan
        if n == 1:
            return 0.0
        return self._search(structure, reference, *bases)

    def _possible(
        self, numbers: np.ndarray, cell: np.ndarray, references: Sequence[PreparedStructure]
    ) -> list[int]:
        """References that may match, judged before the structure is reduced."""
        count = np.bincount(numbers, minlength=128)
        n, volume = len(numbers), abs(np.linalg.det(cell))
        # The longest of any three independent lattice vectors is at least as long as the last
        # Gram-Schmidt vector of any basis; that of the LLL basis is a good bound.
        lll = Lattice(cell).lll_matrix
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
        self, cell: np.ndarray, target: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Bases of a lattice whose lengths and angles are close to those of the target.

        Returns:
            Integer matrices (as float64) that give the bases from `cell`, shape (m, 3, 3), and the
            lengths (m, 3), Å, and angles (m, 3), degrees, of the averages of basis and target.
        """
        none = np.empty((0, 3, 3)), np.empty((0, 3)), np.empty((0, 3))
        target_lengths, target_angles = _parameters(target[None])
        target_lengths, target_angles = target_lengths[0], target_angles[0]
        integers, distances, _, _ = Lattice(cell).get_points_in_sphere(
            [[0, 0, 0]], [0, 0, 0], target_lengths.max() * (1 + self.ltol), zip_results=False
        )
        if not len(distances):
            return none
        ratios = distances[:, None] / target_lengths
        close = (ratios < 1 + self.ltol) & (ratios > 1 / (1 + self.ltol))
        choices = [integers[close[:, k]] for k in range(3)]
        vectors = [choice @ cell for choice in choices]
        units = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in vectors]

        def angles_match(j: int, k: int, angle: float) -> np.ndarray:
            cosines = np.clip(units[j] @ units[k].T, -1, 1)
            return np.abs(np.degrees(np.arccos(cosines)) - angle) <= self.angle_tol

        alpha = angles_match(1, 2, target_angles[0])
        beta = angles_match(0, 2, target_angles[1])
        gamma = angles_match(0, 1, target_angles[2])
        step = max(1, _MAX_ELEMENTS // max(1, alpha.size))
        found = []
        for begin in range(0, len(gamma), step):
            part = slice(begin, begin + step)
            triples = np.argwhere(gamma[part, :, None] & alpha[None] & beta[part, None, :])
            triples[:, 0] += begin
            found.append(triples)
        a, b, c = np.concatenate(found).T if found else np.empty((3, 0), dtype=np.int64)
        matrices = np.stack([choices[0][a], choices[1][b], choices[2][c]], axis=1)
        matrices = matrices[np.rint(np.abs(np.linalg.det(matrices))) == 1]
        lengths, angles = _parameters(matrices @ cell)
        return matrices, (lengths + target_lengths) / 2, (angles + target_angles) / 2

    def _search(
        self,
        structure: PreparedStructure,
        reference: PreparedStructure,
        integers: np.ndarray,
        lengths: np.ndarray,
        angles: np.ndarray,
    ) -> float:
        """Smallest displacement over bases and translations, nan if above `stol`."""
        n = len(reference.numbers)
        allowed = reference.numbers[:, None] == structure.numbers[None, :]
        # An atom of the rarest element goes onto each of its kind.
        pivot = int(allowed.sum(axis=1).argmin())
        lattices = _matrices(lengths, angles)
        volumes = np.abs(np.linalg.det(lattices))
        norm = (n / volumes) ** (1 / 3)
        tolerance = _fractional_tolerance(lattices, norm, self.stol)
        # The rows of pos are coordinates in `cell` = integers⁻¹ basis.
        pos = structure.pos @ np.linalg.inv(integers)
        pos -= np.floor(pos)
        shifts = pos[:, allowed[pivot]] - reference.pos[pivot]
        basis, translation = _within_tolerance(
            reference.pos, pos, shifts, allowed, tolerance, pivot
        )
        used, inverse = np.unique(basis, return_inverse=True)
        lll, mapping = _lll(lattices[used])
        lll_tolerance = _fractional_tolerance(lll, norm[used], self.stol)
        best = np.nan
        size, begin = 16, 0
        largest = max(16, _MAX_ELEMENTS // (8 * n * n))
        while begin < len(basis):
            part = slice(begin, begin + size)
            m, u = basis[part], inverse[part]
            moved = reference.pos + shifts[m, translation[part]][:, None, :]
            values = norm[m] * _displacements(
                moved @ mapping[u], pos[m] @ mapping[u], lll[u], lll_tolerance[u], allowed
            )
            # pymatgen takes the first displacement that is as good as none.
            exact = np.flatnonzero(values < min(_EXACT, self.stol))
            if len(exact):
                return float(np.fmin(best, values[: exact[0] + 1].min()))
            best = np.fmin(best, values.min())
            begin, size = begin + size, min(2 * size, largest)
        return float(best) if best < self.stol else np.nan


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
    candidate, pair = (np.abs(wrapped) <= tolerance[:, None, :]).all(axis=2).nonzero()
    lattice = lattices[candidate]
    found = _times(wrapped[candidate, pair], lattice)
    squares = (found**2).sum(axis=1)
    # Two images of one vector differ by at least the shortest lattice vector, which is no shorter
    # than the least Gram-Schmidt vector: below half of that the wrapped image is the closest.
    shortest = _gram_schmidt(lattices)[0].min(axis=1)
    open_ = np.flatnonzero(squares >= shortest[candidate] / 4 * (1 - 1e-9))
    images = (
        _times(difference[candidate[open_], pair[open_]], lattice[open_])[:, None, :]
        + (_IMAGES @ lattices)[candidate[open_]]
    )
    all_squares = (images**2).sum(axis=2)
    closest = all_squares.argmin(axis=1)
    rows = np.arange(len(open_))
    found[open_], squares[open_] = images[rows, closest], all_squares[rows, closest]

    cost = np.full((n_candidates, n, n), _FORBIDDEN)
    cost[candidate, first[pair], second[pair]] = squares
    vectors = np.full((n_candidates, n, n, 3), _FORBIDDEN)
    vectors[candidate, first[pair], second[pair]] = found
    assignment = _assign(cost)
    chosen = np.take_along_axis(vectors, assignment[:, :, None, None], axis=2)[:, :, 0]
    chosen -= chosen.mean(axis=1, keepdims=True)
    return np.sqrt((chosen**2).sum(axis=2).mean(axis=1))


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


def _times(vectors: np.ndarray, matrices: np.ndarray) -> np.ndarray:
    """One row vector times one matrix each, shapes (k, 3) and (k, 3, 3)."""
    return (vectors[:, :, None] * matrices).sum(axis=1)


def _parameters(matrices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lengths, Å, and angles, degrees, each of shape (m, 3)."""
    lengths = np.sqrt((matrices**2).sum(axis=2))
    products = (np.roll(matrices, -1, axis=1) * np.roll(matrices, -2, axis=1)).sum(axis=2)
    products /= np.roll(lengths, -1, axis=1) * np.roll(lengths, -2, axis=1)
    return lengths, np.degrees(np.arccos(np.clip(products, -1, 1)))


def _matrices(lengths: np.ndarray, angles: np.ndarray) -> np.ndarray:
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


def _fractional_tolerance(lattices: np.ndarray, norm: np.ndarray, stol: float) -> np.ndarray:
    """Fractional differences beyond which two atoms cannot match, shape (m, 3).

    A displacement of 2 stol (V/N)^(1/3) normal to a lattice plane; `norm` is (N/V)^(1/3), 1/Å.
    """
    reciprocal = np.sqrt((np.linalg.inv(lattices) ** 2).sum(axis=1))
    return 2 * stol * reciprocal / norm[:, None]


def _gram_schmidt(lattices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Squared lengths (m, 3), Å², of the orthogonalised vectors, and coefficients u10, u20, u21."""
    a, b, c = lattices[:, 0], lattices[:, 1], lattices[:, 2]
    aa = (a * a).sum(axis=1)
    u10, u20 = (a * b).sum(axis=1) / aa, (a * c).sum(axis=1) / aa
    b = b - u10[:, None] * a
    bb = (b * b).sum(axis=1)
    u21 = (b * c).sum(axis=1) / bb
    c = c - u20[:, None] * a - u21[:, None] * b
    return np.stack([aa, bb, (c * c).sum(axis=1)], axis=1), np.stack([u10, u20, u21], axis=1)


def _lll(lattices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """LLL-reduced lattices, Å, and the matrices that give coordinates in them from the old."""
    squares, u = _gram_schmidt(lattices)
    slack = 1e-9
    # Averages of Niggli-reduced lattices mostly are reduced; near the edge, pymatgen decides.
    done = (np.abs(u) < 0.5 - slack).all(axis=1)
    for k, coefficient in ((1, u[:, 0]), (2, u[:, 2])):
        done &= squares[:, k] > (0.75 - coefficient**2) * squares[:, k - 1] * (1 + slack)
    reduced = lattices.copy()
    mapping = np.broadcast_to(np.eye(3), lattices.shape).copy()
    for k in np.flatnonzero(~done):
        lattice = Lattice(lattices[k])
        reduced[k], mapping[k] = lattice.lll_matrix, lattice.lll_inverse
    return reduced, mapping
