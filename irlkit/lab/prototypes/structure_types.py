"""The structure types of the embedded data set, as space group, axis ratios and occupied sites.

Every type is written for a formula whose sites are labelled ``A``, ``B``, ``X`` in the order of
its ``stoichiometry``.
Coordinates are conventional-cell fractional coordinates in the setting that pymatgen gives a
space-group number; free
parameters carry typical values, which relaxation then changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

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
    """

    name: str
    space_group: int
    stoichiometry: tuple[int, ...]
    n_atoms: int
    sites: tuple[tuple[int, tuple[float, float, float]], ...]
    b_over_a: float = 1.0
    c_over_a: float = 1.0

    def build(self, elements: Sequence[str]) -> Structure:
        """Primitive cell of this type at a volume estimated from covalent radii.

        Args:
            elements: Element symbols for the labels A, B, X.

        Returns:
            Structure with `n_atoms` sites whose closest contact equals the sum of the two covalent
            radii.

        Raises:
            ValueError: the number of elements differs from the number of labels.
        """
        from ase.data import atomic_numbers, covalent_radii
        from pymatgen.core import Lattice, Structure

        if len(elements) != len(self.stoichiometry):
            raise ValueError(
                f"elements: {self.name} has {len(self.stoichiometry)} labels, got {list(elements)}"
            )
        hexagonal = 143 <= self.space_group <= 194
        lattice = Lattice.from_parameters(
            5, 5 * self.b_over_a, 5 * self.c_over_a, 90, 90, 120 if hexagonal else 90
        )
        structure = Structure.from_spacegroup(
            self.space_group,
            lattice,
            [elements[label] for label, _ in self.sites],
            [coordinates for _, coordinates in self.sites],
        ).get_primitive_structure()
        if len(structure) != self.n_atoms:
            raise AssertionError(f"{self.name}: {len(structure)} atoms instead of {self.n_atoms}")
        radii = [covalent_radii[atomic_numbers[site.specie.symbol]] for site in structure]
        first, second, _, distance = structure.get_neighbor_list(8.0)
        ratio = min(
            d / (radii[i] + radii[j]) for i, j, d in zip(first, second, distance, strict=True)
        )
        structure.scale_lattice(structure.volume / ratio**3)
        return structure


_T = 1 / 3
_U = 2 / 3
STRUCTURE_TYPES: dict[str, StructureType] = {
    entry.name: entry
    for entry in (
        # Elements
        StructureType("A1 (fcc)", 225, (1,), 1, ((0, (0, 0, 0)),)),
        StructureType("A2 (bcc)", 229, (1,), 1, ((0, (0, 0, 0)),)),
        StructureType("A3 (hcp)", 194, (1,), 2, ((0, (_T, _U, 0.25)),), c_over_a=1.633),
        StructureType(
            "A3' (dhcp)", 194, (1,), 4, ((0, (0, 0, 0)), (0, (_T, _U, 0.25))), c_over_a=3.267
        ),
        StructureType("A4 (diamond)", 227, (1,), 2, ((0, (0, 0, 0)),)),
        StructureType("A5 (beta-Sn)", 141, (1,), 2, ((0, (0, 0, 0)),), c_over_a=0.546),
        StructureType("A15 (element)", 223, (1,), 8, ((0, (0, 0, 0)), (0, (0.25, 0, 0.5)))),
        StructureType("omega", 191, (1,), 3, ((0, (0, 0, 0)), (0, (_T, _U, 0.5))), c_over_a=0.62),
        StructureType("dimer (tI4)", 139, (1,), 2, ((0, (0, 0, 0.11)),), c_over_a=1.6),
        # AB
        StructureType("B1", 225, (1, 1), 2, ((0, (0, 0, 0)), (1, (0.5, 0.5, 0.5)))),
        StructureType("B2", 221, (1, 1), 2, ((0, (0, 0, 0)), (1, (0.5, 0.5, 0.5)))),
        StructureType("B3", 216, (1, 1), 2, ((0, (0, 0, 0)), (1, (0.25, 0.25, 0.25)))),
        StructureType(
            "B4", 186, (1, 1), 4, ((0, (_T, _U, 0)), (1, (_T, _U, 0.375))), c_over_a=1.633
        ),
        StructureType("B8_1", 194, (1, 1), 4, ((0, (0, 0, 0)), (1, (_T, _U, 0.25))), c_over_a=1.5),
        StructureType("B_h", 187, (1, 1), 2, ((0, (0, 0, 0)), (1, (_T, _U, 0.5))), c_over_a=0.98),
        StructureType("B10", 129, (1, 1), 4, ((0, (0, 0.5, 0.24)), (1, (0, 0, 0))), c_over_a=1.26),
        StructureType(
            "B19",
            51,
            (1, 1),
            4,
            ((0, (0.25, 0, 0.81)), (1, (0.25, 0.5, 0.31))),
            b_over_a=0.66,
            c_over_a=1.02,
        ),
        StructureType(
            "B20", 198, (1, 1), 8, ((0, (0.137, 0.137, 0.137)), (1, (0.842, 0.842, 0.842)))
        ),
        StructureType("B32", 227, (1, 1), 4, ((0, (0, 0, 0)), (1, (0.5, 0.5, 0.5)))),
        StructureType(
            "B33",
            63,
            (1, 1),
            4,
            ((0, (0, 0.146, 0.25)), (1, (0, 0.44, 0.25))),
            b_over_a=2.65,
            c_over_a=0.99,
        ),
        StructureType(
            "L1_0", 123, (1, 1), 2, ((0, (0, 0, 0)), (1, (0.5, 0.5, 0.5))), c_over_a=1.35
        ),
        # AB2
        StructureType("C1", 225, (1, 2), 3, ((0, (0, 0, 0)), (1, (0.25, 0.25, 0.25)))),
        StructureType("C2", 205, (1, 2), 12, ((0, (0, 0, 0)), (1, (0.385, 0.385, 0.385)))),
        StructureType("C3", 224, (1, 2), 6, ((0, (0, 0, 0)), (1, (0.25, 0.25, 0.25)))),
        StructureType(
            "C4", 136, (1, 2), 6, ((0, (0, 0, 0)), (1, (0.305, 0.305, 0))), c_over_a=0.66
        ),
        StructureType("C6", 164, (1, 2), 3, ((0, (0, 0, 0)), (1, (_T, _U, 0.25))), c_over_a=1.6),
        StructureType(
            "C7", 194, (1, 2), 6, ((0, (_T, _U, 0.25)), (1, (_T, _U, 0.621))), c_over_a=3.9
        ),
        StructureType("C11_b", 139, (1, 2), 3, ((0, (0, 0, 0)), (1, (0, 0, _T))), c_over_a=2.45),
        StructureType(
            "C14",
            194,
            (1, 2),
            12,
            ((0, (_T, _U, 0.062)), (1, (0, 0, 0)), (1, (0.8305, 0.661, 0.25))),
            c_over_a=1.63,
        ),
        StructureType("C15", 227, (1, 2), 6, ((0, (0, 0, 0)), (1, (0.625, 0.625, 0.625)))),
        StructureType(
            "C16", 140, (1, 2), 6, ((0, (0, 0, 0.25)), (1, (0.158, 0.658, 0))), c_over_a=0.8
        ),
        StructureType("C19", 166, (1, 2), 3, ((0, (0, 0, 0)), (1, (0, 0, 0.255))), c_over_a=4.8),
        StructureType("C32", 191, (1, 2), 3, ((0, (0, 0, 0)), (1, (_T, _U, 0.5))), c_over_a=1.08),
        # AB3
        StructureType("L1_2", 221, (1, 3), 4, ((0, (0, 0, 0)), (1, (0, 0.5, 0.5)))),
        StructureType(
            "D0_3",
            225,
            (1, 3),
            4,
            ((0, (0, 0, 0)), (1, (0.5, 0.5, 0.5)), (1, (0.25, 0.25, 0.25))),
        ),
        StructureType("D0_9", 221, (1, 3), 4, ((0, (0, 0, 0)), (1, (0.5, 0, 0)))),
        StructureType(
            "D0_18",
            194,
            (1, 3),
            8,
            ((0, (_T, _U, 0.25)), (1, (0, 0, 0.25)), (1, (_T, _U, 0.583))),
            c_over_a=1.77,
        ),
        StructureType(
            "D0_19", 194, (1, 3), 8, ((0, (_T, _U, 0.25)), (1, (0.833, 0.666, 0.25))), c_over_a=0.8
        ),
        StructureType(
            "D0_22",
            139,
            (1, 3),
            4,
            ((0, (0, 0, 0)), (1, (0, 0, 0.5)), (1, (0, 0.5, 0.25))),
            c_over_a=2.1,
        ),
        StructureType("A15", 223, (1, 3), 8, ((0, (0, 0, 0)), (1, (0.25, 0, 0.5)))),
        # ABX
        StructureType(
            "C1_b",
            216,
            (1, 1, 1),
            3,
            ((0, (0, 0, 0)), (1, (0.25, 0.25, 0.25)), (2, (0.5, 0.5, 0.5))),
        ),
        StructureType(
            "ZrBeSi",
            194,
            (1, 1, 1),
            6,
            ((0, (0, 0, 0)), (1, (_T, _U, 0.25)), (2, (_T, _U, 0.75))),
            c_over_a=1.6,
        ),
        StructureType(
            "E0_1",
            129,
            (1, 1, 1),
            6,
            ((0, (0, 0.5, 0.2)), (1, (0, 0, 0)), (2, (0, 0.5, 0.65))),
            c_over_a=1.65,
        ),
        # ABX2
        StructureType(
            "E1_1",
            122,
            (1, 1, 2),
            8,
            ((0, (0, 0, 0)), (1, (0, 0, 0.5)), (2, (0.25, 0.25, 0.125))),
            c_over_a=2.0,
        ),
        StructureType(
            "CuAu-like",
            115,
            (1, 1, 2),
            4,
            ((0, (0, 0, 0)), (1, (0.5, 0.5, 0.5)), (2, (0, 0.5, 0.25))),
            c_over_a=1.41,
        ),
        StructureType(
            "alpha-NaFeO2",
            166,
            (1, 1, 2),
            4,
            ((0, (0, 0, 0)), (1, (0, 0, 0.5)), (2, (0, 0, 0.255))),
            c_over_a=5.0,
        ),
        StructureType(
            "delafossite",
            166,
            (1, 1, 2),
            4,
            ((0, (0, 0, 0)), (1, (0, 0, 0.5)), (2, (0, 0, 0.11))),
            c_over_a=5.7,
        ),
        # A B X2 with the majority element first in the formula: A2BX written as (B, X, A)
        StructureType(
            "L2_1",
            225,
            (1, 1, 2),
            4,
            ((0, (0, 0, 0)), (1, (0.5, 0.5, 0.5)), (2, (0.25, 0.25, 0.25))),
        ),
        StructureType(
            "X_a",
            216,
            (1, 1, 2),
            4,
            (
                (1, (0, 0, 0)),
                (0, (0.25, 0.25, 0.25)),
                (2, (0.5, 0.5, 0.5)),
                (2, (0.75, 0.75, 0.75)),
            ),
        ),
        StructureType(
            "MAX",
            194,
            (1, 1, 2),
            8,
            ((0, (_T, _U, 0.75)), (1, (0, 0, 0)), (2, (_T, _U, 0.086))),
            c_over_a=4.5,
        ),
        # ABX3
        StructureType(
            "E2_1",
            221,
            (1, 1, 3),
            5,
            ((0, (0, 0, 0)), (1, (0.5, 0.5, 0.5)), (2, (0, 0.5, 0.5))),
        ),
        StructureType(
            "2H perovskite",
            194,
            (1, 1, 3),
            10,
            ((0, (_T, _U, 0.75)), (1, (0, 0, 0)), (2, (0.15, 0.30, 0.25))),
            c_over_a=0.85,
        ),
        StructureType(
            "E2_2",
            148,
            (1, 1, 3),
            10,
            ((0, (0, 0, 0.355)), (1, (0, 0, 0.146)), (2, (0.317, 0.023, 0.245))),
            c_over_a=2.76,
        ),
        # AB2X2, A2BX4, A2BX6
        StructureType(
            "ThCr2Si2",
            139,
            (1, 2, 2),
            5,
            ((0, (0, 0, 0)), (1, (0, 0.5, 0.25)), (2, (0, 0, 0.37))),
            c_over_a=2.6,
        ),
        StructureType(
            "CaAl2Si2",
            164,
            (1, 2, 2),
            5,
            ((0, (0, 0, 0)), (1, (_T, _U, 0.63)), (2, (_T, _U, 0.26))),
            c_over_a=1.7,
        ),
        StructureType(
            "K2NiF4",
            139,
            (2, 1, 4),
            7,
            ((0, (0, 0, 0.355)), (1, (0, 0, 0)), (2, (0, 0.5, 0)), (2, (0, 0, 0.155))),
            c_over_a=3.3,
        ),
        StructureType(
            "K2PtCl6",
            225,
            (2, 1, 6),
            9,
            ((0, (0.25, 0.25, 0.25)), (1, (0, 0, 0)), (2, (0.24, 0, 0))),
        ),
    )
}
