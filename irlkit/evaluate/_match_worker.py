"""What a process that matches structures does; loads neither torch nor the rest of the package."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pymatgen.core import Lattice

from irlkit.evaluate.matcher import PreparedStructure, RmsdMatcher
from irlkit.utils.system import time_limit

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Atomic numbers (n,), fractional coordinates (n, 3), cell (3, 3)."""

Item = tuple[Arrays, Sequence[Arrays]]
"""A structure and its references."""

_ERRORS = (ArithmeticError, ValueError, np.linalg.LinAlgError, MemoryError)
_MAX_PREPARED = 1 << 16
"""References kept at most, a kilobyte each."""


class MatchSession:
    """Matches structures with references, each of which is prepared once.

    Args:
        timeout: seconds that all matchings of some structures may take together.
        tolerances: of `RmsdMatcher`.
    """

    def __init__(self, timeout: float, **tolerances: float) -> None:
        self.timeout = timeout
        self.matcher = RmsdMatcher(**tolerances)
        self._prepared: dict[bytes, PreparedStructure | None] = {}

    def __call__(self, items: Sequence[Item]) -> list[np.ndarray | None]:
        """Return displacements from the references, nan without a match; None after an error.

        It is faster where items of one composition come together. TimeUp: it took too long.
        """
        if len(self._prepared) > _MAX_PREPARED:
            self._prepared.clear()
        # References are prepared on their own time: they are no fault of a structure.
        keys = [[self._prepare(reference) for reference in references] for _, references in items]
        with time_limit(self.timeout), np.errstate(all="ignore"):
            return self._match(items, keys)

    def _match(self, items: Sequence[Item], keys: list[list[bytes]]) -> list[np.ndarray | None]:
        results: list[np.ndarray | None] = []
        structures: list[PreparedStructure] = []
        references: list[PreparedStructure] = []
        places: list[tuple[np.ndarray, int]] = []
        for ((numbers, pos, cell), _), own in zip(items, keys, strict=True):
            result = np.full(len(own), np.nan)
            usable = [
                (k, reference) for k, key in enumerate(own) if (reference := self._prepared[key])
            ]
            lattice = Lattice(cell)
            try:
                possible = self.matcher.possible(numbers, lattice, [entry[1] for entry in usable])
                if possible:
                    structure = self.matcher.prepare(numbers, pos, lattice)
                    for k, reference in (usable[i] for i in possible):
                        structures.append(structure)
                        references.append(reference)
                        places.append((result, k))
                results.append(result)
            except _ERRORS:
                # Lattices without a Niggli cell, for which pymatgen raises, match nothing.
                results.append(None)
        values = self.matcher.rmsds(structures, references)
        for (result, k), value in zip(places, values, strict=True):
            result[k] = value
        return results

    def _prepare(self, reference: Arrays) -> bytes:
        """The key of a reference among those that are prepared; None is kept where it cannot be."""
        key = b"".join(array.tobytes() for array in reference)
        if key not in self._prepared:
            numbers, pos, cell = reference
            try:
                self._prepared[key] = self.matcher.prepare(numbers, pos, Lattice(cell))
            except ValueError:
                self._prepared[key] = None
        return key
