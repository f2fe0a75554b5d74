"""Symmetry of single structures, within a tolerance."""

from __future__ import annotations

import math
import os
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pymatgen.core import Structure

# spglib's library prints what it tries and gives up, which nobody can do anything about.
os.environ.setdefault("SPGLIB_WARNING", "OFF")

SYMPREC = 0.1
"""Å that atoms may be away from where a space group has them: generated ones are never exact."""


def conventional(structure: Structure) -> tuple[Structure, str, int]:
    """Return the conventional cell, the space group, and the order of its point group.

    The cell has a along x and b in the plane of x and y, and the origin of the space group. Atoms
    stay where they are beside each other, however far they are from the symmetry. Where spglib
    finds none, the structure stays as it is, the name is empty, and the order 0.
    """
    import spglib
    from pymatgen.core import Lattice, Structure

    arrays = (structure.lattice.matrix, structure.frac_coords, structure.atomic_numbers)
    if not all(np.isfinite(x).all() for x in arrays[:2]):  # On which spglib ends the process.
        return structure, "", 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # spglib announces other errors
        try:
            found = spglib.get_symmetry_dataset(arrays, SYMPREC)
            standard = spglib.standardize_cell(arrays, no_idealize=True, symprec=SYMPREC)
        except Exception:  # spglib's own, whose classes differ between its versions
            found = standard = None
    if found is None or standard is None:
        return structure, "", 0
    cell, pos, species = map(np.asarray, standard)
    lattice = Lattice.from_parameters(*Lattice(cell).parameters, vesta=True)
    order = len({rotation.tobytes() for rotation in found.rotations})
    # spglib leaves the origin where it was; the standard one puts atoms on corners and faces.
    pos = _settled_origin(lattice.matrix, (pos + found.origin_shift) % 1, species)
    return Structure(lattice, species.tolist(), pos), found.international, order


def _settled_origin(cell: np.ndarray, pos: np.ndarray, species: np.ndarray) -> np.ndarray:
    """Choose between origins half a diagonal apart, if the group leaves that open.

    The most electropositive of the elements that are at one of them comes to the corners, so that
    a perovskite or rock salt looks the same wherever it came from.
    """
    import spglib
    from pymatgen.core import Element

    arrays: Any = (cell, pos, species)
    symmetry = spglib.get_symmetry(arrays, SYMPREC)
    if symmetry is None:
        return pos
    same = (symmetry["rotations"] == np.eye(3, dtype=int)).all((1, 2))
    moved = ((symmetry["rotations"] - np.eye(3)) @ np.full(3, 0.5))[:, None]
    away = moved - symmetry["translations"][same]
    if not (np.abs(away - away.round()) < 1e-3).all(-1).any(1).all():
        return pos
    candidates = [pos, (pos + 0.5) % 1]
    at = [(np.abs(p - p.round()) @ np.abs(cell) < SYMPREC).all(1) for p in candidates]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # noble gases have no electronegativity
        chi = [[float(Element.from_Z(z).X) for z in species[here]] for here in at]
    values = [min((x for x in found if not math.isnan(x)), default=9.0) for found in chi]
    return candidates[int(np.argmin(values))]
