"""pymatgen's structure matching for arrays, with the same results, several times as fast.

`StructureMatcher.get_rms_dist` takes one pair of structures at a time: it brings both to a
primitive Niggli cell and equal volume, tries every basis of the first lattice that resembles the
second, and in each of them every translation that puts an atom of the rarest element onto one of
the second structure; an optimal assignment of the atoms and the best translation then give a
displacement (Ong et al., 2013). Here the same steps are taken

- on arrays, for the bases of many pairs together, and all translations of those that are alike;
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

from irlkit.evaluate._lattices import (
    determinants,
    fractional_tolerance,
    inverse,
    lll_reduced,
    matrices,
    parameters,
)
from irlkit.evaluate._search import Search

_PRIMITIVE_TOLERANCE = 0.25
"""Distance within which pymatgen takes atoms as translated copies, Å."""
_EXACT = 1e-5
"""Displacement at which pymatgen ends its search, dimensionless."""
_MAX_VOLUME = 1e15
"""pymatgen's tolerance of a lattice grows with its volume, and with it the time: past this volume,
a cubic cell of 1e5 Å, it takes any basis for a Niggli basis."""
_MAX_ELEMENTS = 1 << 22
"""Size of temporary arrays that needs more memory than a processor's cache, but not too much."""


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
        self, structures: Sequence[PreparedStructure], references: Sequence[PreparedStructure]
    ) -> np.ndarray:
        """Return displacements between structures and one reference each, over (V/N)^⅓.

        It is faster the more pairs come together, and those of one composition with one reference
        the most.

        Args:
            structures: To match.
            references: What to match with, as many.

        Returns:
            Shape (len(structures),), float64, nan where there is no match.
        """
        result = np.full(len(structures), np.nan)
        # One reference, and species in one order: searched together.
        groups: dict[tuple[int, bytes], list[int]] = {}
        for i, (structure, reference) in enumerate(zip(structures, references, strict=True)):
            if np.array_equal(np.sort(structure.numbers), np.sort(reference.numbers)):
                groups.setdefault((id(reference), structure.numbers.tobytes()), []).append(i)
        members = [i for group in groups.values() for i in group]
        if not members:
            return result
        owner, integers, lengths, angles = self._bases(
            [structures[i] for i in members], [references[i] for i in members]
        )
        # What concerns bases alone is computed for those of all pairs together.
        sizes = np.array([len(references[i].numbers) for i in members])[owner]
        lattices = matrices(lengths, angles)
        norm = (sizes / np.abs(determinants(lattices))) ** (1 / 3)
        tolerance = fractional_tolerance(lattices, norm, self.stol)
        inverses = inverse(integers)
        searches, first = [], 0
        for group in groups.values():
            begin, end = np.searchsorted(owner, (first, first + len(group)))
            own, reference = owner[begin:end] - first, references[group[0]]
            if len(own) and len(reference.numbers) == 1:
                result[[group[k] for k in np.unique(own)]] = 0.0
            elif len(own):
                numbers, part = structures[group[0]].numbers, slice(begin, end)
                pos = np.stack([structures[i].pos for i in group])
                known = reference.numbers, reference.pos
                search = Search(numbers, pos, *known, own, inverses[part], tolerance[part])
                searches.append((group, begin + search.bases, search))
            first += len(group)
        if not searches:
            return result
        used = np.concatenate([bases for _, bases, _ in searches])
        lll, mapping = lll_reduced(lattices[used])
        norm = norm[used]
        lll_tolerance = fractional_tolerance(lll, norm, self.stol)
        first = 0
        for group, bases, search in searches:
            part = slice(first, first + len(bases))
            best = search.displacements(
                lll[part], mapping[part], lll_tolerance[part], norm[part], min(_EXACT, self.stol)
            )
            result[group] = np.where(best < self.stol, best, np.nan)
            first += len(bases)
        return result

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
        self, structures: Sequence[PreparedStructure], references: Sequence[PreparedStructure]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Bases of structures' lattices whose lengths and angles are close to their references'.

        Both lattices of a pair are first scaled to the geometric mean of their volumes.

        Returns:
            The pair of each basis, ascending, shape (m,); integer matrices (as float64) that give
            the bases from the structures', shape (m, 3, 3); and the lengths (m, 3), Å, and angles
            (m, 3), degrees, of the averages of basis and reference.
        """
        pairs = zip(structures, references, strict=True)
        volumes = np.array([[ours.volume, theirs.volume] for ours, theirs in pairs])
        scale = (volumes[:, 1] / volumes[:, 0]) ** (1 / 6)
        cells = np.stack([structure.cell for structure in structures]) * scale[:, None, None]
        targets = parameters(
            np.stack([reference.cell for reference in references]) / scale[:, None, None]
        )
        # Niggli lengths are the successive minima: but for the tolerance of the reduction, no
        # basis has shorter vectors.
        lengths = np.stack([structure.lengths for structure in structures]) * scale[:, None]
        longest = np.stack([reference.lengths for reference in references]) / scale[:, None]
        possible = (lengths <= longest * (1 + self.ltol) * 1.01).all(axis=1)
        found: list[tuple[np.ndarray, ...]] = []
        waiting: list[tuple[int, np.ndarray, np.ndarray]] = []
        most = 0
        for i in np.flatnonzero(possible).tolist():
            points, distances, _, _ = Lattice(cells[i]).get_points_in_sphere(
                [[0, 0, 0]], [0, 0, 0], targets[0][i].max() * (1 + self.ltol), zip_results=False
            )
            most = max(most, len(points))
            if waiting and (len(waiting) + 1) * most**2 > _MAX_ELEMENTS:
                found.append(self._close_bases(waiting, cells, *targets))
                waiting, most = [], len(points)
            waiting.append((i, points, distances))
        if waiting:
            found.append(self._close_bases(waiting, cells, *targets))
        if not found:
            return np.empty(0, dtype=np.int64), np.empty((0, 3, 3)), *np.empty((2, 0, 3))
        owner, integers, lengths, angles = map(np.concatenate, zip(*found, strict=True))
        return owner, integers, lengths, angles

    def _close_bases(
        self,
        pairs: Sequence[tuple[int, np.ndarray, np.ndarray]],
        cells: np.ndarray,
        target_lengths: np.ndarray,
        target_angles: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """What `_bases` returns, of some pairs: number, lattice points (k, 3), distances (k,)."""
        number = np.array([pair[0] for pair in pairs])
        target_lengths, target_angles = target_lengths[number], target_angles[number]
        most = max(len(points) for _, points, _ in pairs)
        points, distances = np.zeros((len(pairs), most, 3)), np.full((len(pairs), most), np.inf)
        for i, (_, own, lengths) in enumerate(pairs):
            points[i, : len(own)], distances[i, : len(own)] = own, lengths
        ratios = distances[:, :, None] / target_lengths[:, None, :]
        close = (ratios < 1 + self.ltol) & (ratios > 1 / (1 + self.ltol))
        units = (points @ cells[number]) / distances[:, :, None]
        # Per vector of a basis its candidates, in order, and which of them are not padding.
        choices, chosen, present = [], [], []
        for k in range(3):
            choice = np.argsort(~close[:, :, k], axis=1, kind="stable")
            choice = choice[:, : close[:, :, k].sum(axis=1).max()]
            choices.append(choice)
            present.append(np.take_along_axis(close[:, :, k], choice, axis=1))
            chosen.append(np.take_along_axis(units, choice[:, :, None], axis=1))
        angles, fit = [], []
        for axis, (j, k) in enumerate(((1, 2), (0, 2), (0, 1))):
            cosines = np.clip(chosen[j] @ chosen[k].transpose(0, 2, 1), -1, 1)
            angles.append(np.degrees(np.arccos(cosines)))
            off = np.abs(angles[axis] - target_angles[:, axis, None, None])
            fit.append((off <= self.angle_tol) & present[j][:, :, None] & present[k][:, None, :])
        pair, a, b = fit[2].nonzero()
        step = max(1, _MAX_ELEMENTS // max(1, choices[2].shape[1]))
        thirds = [np.empty((2, 0), dtype=np.int64)]
        for begin in range(0, len(pair), step):
            part = slice(begin, begin + step)
            row, c = (fit[1][pair[part], a[part]] & fit[0][pair[part], b[part]]).nonzero()
            thirds.append(np.stack([row + begin, c]))
        row, c = np.concatenate(thirds, axis=1)
        pair, a, b = pair[row], a[row], b[row]
        vectors = np.stack([choices[0][pair, a], choices[1][pair, b], choices[2][pair, c]], axis=1)
        integers = points[pair[:, None], vectors]
        regular = np.flatnonzero(np.rint(np.abs(determinants(integers))) == 1)
        pair, a, b, c, vectors = (x[regular] for x in (pair, a, b, c, vectors))
        basis_angles = np.stack(
            [angles[0][pair, b, c], angles[1][pair, a, c], angles[2][pair, a, b]], axis=1
        )
        return (
            number[pair],
            integers[regular],
            (distances[pair[:, None], vectors] + target_lengths[pair]) / 2,
            (basis_angles + target_angles[pair]) / 2,
        )


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
