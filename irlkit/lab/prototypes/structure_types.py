"""The structure types of the set `prototypes`, as space group, axis ratios and occupied sites.

Every type is written for a formula whose sites are labelled A, B, X in the order of its
stoichiometry, which is that of the alphabet. Coordinates are conventional-cell fractional
coordinates in the setting that pymatgen gives a space-group number; free parameters carry typical
values, which relaxation then changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from irlkit.lab.prototypes._complex_types import COMPLEX_TABLE
from irlkit.lab.prototypes._radii import shannon_radius

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pymatgen.core import Structure


@dataclass(frozen=True)
class StructureType:
    """One structure type.

    Attributes:
        name: Strukturbericht symbol or the name of the prototype compound.
        space_group: International number.
        stoichiometry: Atoms of each label per formula unit, labels in the order A, B, X.
        n_atoms: Atoms in the primitive cell.
        sites: (label index, fractional coordinates), one entry per Wyckoff orbit.
        b_over_a: Second axis ratio.
        c_over_a: Third axis ratio.
        beta: Angle between the first and the third axis, degrees.
    """

    name: str
    space_group: int
    stoichiometry: tuple[int, ...]
    n_atoms: int
    sites: tuple[tuple[int, tuple[float, float, float]], ...]
    b_over_a: float = 1.0
    c_over_a: float = 1.0
    beta: float = 90.0

    def build(self, elements: Sequence[str]) -> Structure:
        """Build the primitive cell at a volume estimated from radii.

        Args:
            elements: Element symbols for the labels, or ions, such as "Al3+".

        Returns:
            Structure of elements with `n_atoms` sites. Of elements, the closest contact equals the
            sum of the two covalent radii. Of ions, the contacts of cations with their nearest
            anion equal the sum of Shannon's radii in the mean.

        Raises:
            ValueError: the number of elements differs from the number of labels.
        """
        from ase.data import atomic_numbers, covalent_radii
        from pymatgen.core import Structure, get_el_sp

        if len(elements) != len(self.stoichiometry):
            raise ValueError(
                f"elements: {self.name} has {len(self.stoichiometry)} labels, got {list(elements)}"
            )
        species = [get_el_sp(element) for element in elements]
        template, labels = _template(self)
        structure = Structure(
            template.lattice, [species[i].symbol for i in labels], template.frac_coords
        )
        radii = np.array([covalent_radii[atomic_numbers[s.symbol]] for s in species])[labels]
        charges = np.array([getattr(s, "oxi_state", 0) for s in species])[labels]
        if charges.any():
            radii = np.array([shannon_radius(s.symbol, int(s.oxi_state)) for s in species])[labels]
        first, second, _, distance = structure.get_neighbor_list(8.0)
        ratio = distance / (radii[first] + radii[second])
        scale = ratio.min()
        if charges.any():
            bonds = (charges[first] > 0) & (charges[second] < 0)
            nearest = np.full(len(structure), np.inf)
            np.minimum.at(nearest, first[bonds], ratio[bonds])
            scale = nearest[charges > 0].mean()
        structure.scale_lattice(structure.volume / scale**3)
        return structure


@cache
def _template(entry: StructureType) -> tuple[Structure, np.ndarray]:
    """Primitive cell of some size, and the number of the label of each site."""
    from pymatgen.core import Lattice, Structure

    hexagonal = 143 <= entry.space_group <= 194
    lattice = Lattice.from_parameters(
        5, 5 * entry.b_over_a, 5 * entry.c_over_a, 90, entry.beta, 120 if hexagonal else 90
    )
    structure = Structure.from_spacegroup(
        entry.space_group,
        lattice,
        [_PLACEHOLDERS[label] for label, _ in entry.sites],
        [coordinates for _, coordinates in entry.sites],
    ).get_primitive_structure()
    if len(structure) != entry.n_atoms:
        raise AssertionError(f"{entry.name}: {len(structure)} atoms instead of {entry.n_atoms}")
    return structure, np.array([_PLACEHOLDERS.index(site.specie.symbol) for site in structure])


_PLACEHOLDERS = ("Na", "Cl", "Ti", "O", "F")


_TABLE = """
# name        | no. | A B X | n  | b/a  | c/a   | sites
# Elements
A1 (fcc)      | 225 | 1     |  1 | 1    | 1     | A 0 0 0
A2 (bcc)      | 229 | 1     |  1 | 1    | 1     | A 0 0 0
A3 (hcp)      | 194 | 1     |  2 | 1    | 1.633 | A 1/3 2/3 0.25
A3' (dhcp)    | 194 | 1     |  4 | 1    | 3.267 | A 0 0 0, A 1/3 2/3 0.25
A4 (diamond)  | 227 | 1     |  2 | 1    | 1     | A 0 0 0
A5 (beta-Sn)  | 141 | 1     |  2 | 1    | 0.546 | A 0 0 0
A15 (element) | 223 | 1     |  8 | 1    | 1     | A 0 0 0, A 0.25 0 0.5
omega         | 191 | 1     |  3 | 1    | 0.62  | A 0 0 0, A 1/3 2/3 0.5
dimer (tI4)   | 139 | 1     |  2 | 1    | 1.6   | A 0 0 0.11
# AB
B1            | 225 | 1 1   |  2 | 1    | 1     | A 0 0 0, B 0.5 0.5 0.5
B2            | 221 | 1 1   |  2 | 1    | 1     | A 0 0 0, B 0.5 0.5 0.5
B3            | 216 | 1 1   |  2 | 1    | 1     | A 0 0 0, B 0.25 0.25 0.25
B4            | 186 | 1 1   |  4 | 1    | 1.633 | A 1/3 2/3 0, B 1/3 2/3 0.375
B8_1          | 194 | 1 1   |  4 | 1    | 1.5   | A 0 0 0, B 1/3 2/3 0.25
B_h           | 187 | 1 1   |  2 | 1    | 0.98  | A 0 0 0, B 1/3 2/3 0.5
B10           | 129 | 1 1   |  4 | 1    | 1.26  | A 0 0.5 0.24, B 0 0 0
B19           |  51 | 1 1   |  4 | 0.66 | 1.02  | A 0.25 0 0.81, B 0.25 0.5 0.31
B20           | 198 | 1 1   |  8 | 1    | 1     | A 0.137 0.137 0.137, B 0.842 0.842 0.842
B32           | 227 | 1 1   |  4 | 1    | 1     | A 0 0 0, B 0.5 0.5 0.5
B33           |  63 | 1 1   |  4 | 2.65 | 0.99  | A 0 0.146 0.25, B 0 0.44 0.25
L1_0          | 123 | 1 1   |  2 | 1    | 1.35  | A 0 0 0, B 0.5 0.5 0.5
# AB2
C1            | 225 | 1 2   |  3 | 1    | 1     | A 0 0 0, B 0.25 0.25 0.25
C2            | 205 | 1 2   | 12 | 1    | 1     | A 0 0 0, B 0.385 0.385 0.385
C3            | 224 | 1 2   |  6 | 1    | 1     | A 0 0 0, B 0.25 0.25 0.25
C4            | 136 | 1 2   |  6 | 1    | 0.66  | A 0 0 0, B 0.305 0.305 0
C6            | 164 | 1 2   |  3 | 1    | 1.6   | A 0 0 0, B 1/3 2/3 0.25
C7            | 194 | 1 2   |  6 | 1    | 3.9   | A 1/3 2/3 0.25, B 1/3 2/3 0.621
C11_b         | 139 | 1 2   |  3 | 1    | 2.45  | A 0 0 0, B 0 0 1/3
C14           | 194 | 1 2   | 12 | 1    | 1.63  | A 1/3 2/3 0.062, B 0 0 0, B 0.8305 0.661 0.25
C15           | 227 | 1 2   |  6 | 1    | 1     | A 0 0 0, B 0.625 0.625 0.625
C16           | 140 | 1 2   |  6 | 1    | 0.8   | A 0 0 0.25, B 0.158 0.658 0
C19           | 166 | 1 2   |  3 | 1    | 4.8   | A 0 0 0, B 0 0 0.255
C32           | 191 | 1 2   |  3 | 1    | 1.08  | A 0 0 0, B 1/3 2/3 0.5
# AB3
L1_2          | 221 | 1 3   |  4 | 1    | 1     | A 0 0 0, B 0 0.5 0.5
D0_3          | 225 | 1 3   |  4 | 1    | 1     | A 0 0 0, B 0.5 0.5 0.5, B 0.25 0.25 0.25
D0_9          | 221 | 1 3   |  4 | 1    | 1     | A 0 0 0, B 0.5 0 0
D0_18         | 194 | 1 3   |  8 | 1    | 1.77  | A 1/3 2/3 0.25, B 0 0 0.25, B 1/3 2/3 0.583
D0_19         | 194 | 1 3   |  8 | 1    | 0.8   | A 1/3 2/3 0.25, B 0.833 0.666 0.25
D0_22         | 139 | 1 3   |  4 | 1    | 2.1   | A 0 0 0, B 0 0 0.5, B 0 0.5 0.25
A15           | 223 | 1 3   |  8 | 1    | 1     | A 0 0 0, B 0.25 0 0.5
# ABX
C1_b          | 216 | 1 1 1 |  3 | 1    | 1     | A 0 0 0, B 0.25 0.25 0.25, X 0.5 0.5 0.5
ZrBeSi        | 194 | 1 1 1 |  6 | 1    | 1.6   | A 0 0 0, B 1/3 2/3 0.25, X 1/3 2/3 0.75
E0_1          | 129 | 1 1 1 |  6 | 1    | 1.65  | A 0 0.5 0.2, B 0 0 0, X 0 0.5 0.65
# ABX2
E1_1          | 122 | 1 1 2 |  8 | 1    | 2     | A 0 0 0, B 0 0 0.5, X 0.25 0.25 0.125
CuAu-like     | 115 | 1 1 2 |  4 | 1    | 1.41  | A 0 0 0, B 0.5 0.5 0.5, X 0 0.5 0.25
alpha-NaFeO2  | 166 | 1 1 2 |  4 | 1    | 5     | A 0 0 0, B 0 0 0.5, X 0 0 0.255
delafossite   | 166 | 1 1 2 |  4 | 1    | 5.7   | A 0 0 0, B 0 0 0.5, X 0 0 0.11
# A B X2 with the majority element first in the formula: A2BX written as (B, X, A)
L2_1          | 225 | 1 1 2 |  4 | 1    | 1     | A 0 0 0, B 0.5 0.5 0.5, X 0.25 0.25 0.25
X_a           | 216 | 1 1 2 |  4 | 1    | 1     | B 0 0 0, A 1/4 1/4 1/4, X 1/2 1/2 1/2, X 3/4 3/4 3/4
MAX           | 194 | 1 1 2 |  8 | 1    | 4.5   | A 1/3 2/3 0.75, B 0 0 0, X 1/3 2/3 0.086
# ABX3
E2_1          | 221 | 1 1 3 |  5 | 1    | 1     | A 0 0 0, B 0.5 0.5 0.5, X 0 0.5 0.5
2H perovskite | 194 | 1 1 3 | 10 | 1    | 0.85  | A 1/3 2/3 0.75, B 0 0 0, X 0.15 0.3 0.25
E2_2          | 148 | 1 1 3 | 10 | 1    | 2.76  | A 0 0 0.355, B 0 0 0.146, X 0.317 0.023 0.245
# AB2X2, A2BX4, A2BX6
ThCr2Si2      | 139 | 1 2 2 |  5 | 1    | 2.6   | A 0 0 0, B 0 0.5 0.25, X 0 0 0.37
CaAl2Si2      | 164 | 1 2 2 |  5 | 1    | 1.7   | A 0 0 0, B 1/3 2/3 0.63, X 1/3 2/3 0.26
K2NiF4        | 139 | 2 1 4 |  7 | 1    | 3.3   | A 0 0 0.355, B 0 0 0, X 0 0.5 0, X 0 0 0.155
K2PtCl6       | 225 | 2 1 6 |  9 | 1    | 1     | A 0.25 0.25 0.25, B 0 0 0, X 0.24 0 0
"""  # noqa: E501


def _read_table(text: str) -> dict[str, StructureType]:
    lines = [line for line in text.splitlines() if "|" in line and line[0] != "#"]
    return {entry.name: entry for entry in map(_read, lines)}


def _read(line: str) -> StructureType:
    name, group, stoichiometry, n_atoms, b, c, *beta, sites = map(str.strip, line.split("|"))
    places = [site.split() for site in sites.split(",")]
    labels = sorted({label for label, *_ in places})
    return StructureType(
        name,
        int(group),
        tuple(map(int, stoichiometry.split())),
        int(n_atoms),
        tuple((labels.index(label), _read_site(*x)) for label, *x in places),
        float(b),
        float(c),
        *map(float, beta),
    )


def _read_site(*coordinates: str) -> tuple[float, float, float]:
    x, y, z = (float(Fraction(number)) for number in coordinates)
    return x, y, z


STRUCTURE_TYPES = _read_table(_TABLE)
"""All types by name, simple ones first."""

COMPLEX_TYPES = _read_table(COMPLEX_TABLE)
"""Those of the set `complex`."""
