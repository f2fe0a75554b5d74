"""Symmetry of single structures, within a tolerance."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING

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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # spglib announces other errors
        try:
            found = spglib.get_symmetry_dataset(arrays, SYMPREC)
            standard = spglib.standardize_cell(arrays, no_idealize=True, symprec=SYMPREC)
        except Exception:  # spglib's own, whose classes differ between its versions
            found = standard = None
    if found is None or standard is None:
        return structure, "", 0
    cell, pos, species = standard
    lattice = Lattice.from_parameters(*Lattice(cell).parameters, vesta=True)
    order = len({rotation.tobytes() for rotation in found.rotations})
    # spglib leaves the origin where it was; the standard one puts atoms on corners and faces.
    shifted = (pos + found.origin_shift) % 1
    return Structure(lattice, species, shifted), found.international, order
