"""Which compositions are tried in which structure types."""

from __future__ import annotations

import random
from itertools import product

from irlkit.lab.prototypes.structure_types import STRUCTURE_TYPES

METALS = (
    "Li Be Na Mg Al K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Rb Sr Y Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn "
    "Cs Ba La Ce Pr Nd Sm Gd Tb Dy Ho Er Tm Lu Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi Th U"
).split()
METALLOIDS = "B C Si Ge P As Sb S Se Te".split()
MOLECULAR = "H N O F Cl Br I".split()


def _combine(*groups: str) -> list[tuple[str, ...]]:
    """Cartesian product of space-separated element lists, without repeated elements."""
    return [
        combination
        for combination in product(*(group.split() for group in groups))
        if len(set(combination)) == len(combination)
    ]


#: CHGNet collapses close-packed hydrogen to a point, which no neighbour list survives.
EXCLUDED = {("A1 (fcc)", ("H",))}

#: (compositions, structure types, how many compositions at most); elements in the order A, B, X.
FAMILIES: tuple[tuple[list[tuple[str, ...]], tuple[str, ...], int], ...] = (
    # Elements
    (
        [(m,) for m in METALS],
        ("A1 (fcc)", "A2 (bcc)", "A3 (hcp)", "A3' (dhcp)", "A15 (element)", "omega"),
        999,
    ),
    (
        [(m,) for m in METALLOIDS],
        ("A1 (fcc)", "A2 (bcc)", "A3 (hcp)", "A4 (diamond)", "A5 (beta-Sn)", "dimer (tI4)"),
        999,
    ),
    ([(m,) for m in "Sn Ga Pb".split()], ("A4 (diamond)", "A5 (beta-Sn)"), 999),
    ([(m,) for m in MOLECULAR], ("dimer (tI4)", "A1 (fcc)"), 999),
    # AB
    (
        _combine("Li Na K Rb Cs Cu Ag Tl", "F Cl Br I H"),
        ("B1", "B2", "B3", "B4", "B8_1", "B33"),
        999,
    ),
    (
        _combine("Be Mg Ca Sr Ba Mn Fe Co Ni Zn Cd Hg Sn Pb Ge V Ti Cr Pt Pd", "O S Se Te"),
        ("B1", "B3", "B4", "B8_1", "B10", "B2"),
        999,
    ),
    (
        _combine("B Al Ga In Sc Y La Ce Nd Gd Er Lu U Th Ti V Cr Nb", "N P As Sb Bi"),
        ("B1", "B3", "B4", "B8_1", "B2", "B_h"),
        999,
    ),
    (_combine("Ti Zr Hf V Nb Ta Mo W Cr", "C B"), ("B1", "B_h", "B8_1", "B33"), 999),
    (
        _combine(
            "Fe Co Ni Ru Rh Pd Ir Pt Cu Ag Au Zn Cd Hg",
            "Ti Zr Hf Sc Y Al Ga In Mg Li Mn V La Ca Nd Er",
        ),
        ("B2", "L1_0", "B19", "B33", "B32"),
        170,
    ),
    (_combine("Cr Mn Fe Co Ni Ru Rh Pd Pt Ir", "Al Si Ge Ga Sn"), ("B20", "B2", "B8_1"), 40),
    (_combine("Li Na", "Al Ga In Zn Cd Tl Hg"), ("B32", "B2", "L1_0"), 999),
    # AB2
    (
        _combine("Mg Ca Sr Ba Mn Fe Co Ni Zn Cd Hg Pb Sn", "F Cl Br I H"),
        ("C1", "C4", "C6", "C19", "C3"),
        999,
    ),
    (
        _combine("Ti Zr Hf V Nb Ta Cr Mn Mo W Re Ru Ir Sn Ge Si Pb Ce Th U Te Rh Os", "O"),
        ("C1", "C4", "C6", "C2"),
        999,
    ),
    (
        _combine("Ti Zr Hf V Nb Ta Mo W Re Pt Pd Ni Co Fe Ru Sn Mn", "S Se Te"),
        ("C6", "C7", "C19", "C2", "C4"),
        999,
    ),
    (_combine("O S Se Te", "Li Na K Rb Cu Ag"), ("C1", "C3", "C6"), 999),
    (_combine("Mg Al Ti Zr Hf V Nb Ta Cr Sc Y U Mn Er Lu", "B"), ("C32", "C11_b", "C16"), 999),
    (
        _combine("Mo W Re Ti Zr Cr V Nb Ta Co Ni Fe Ca Sr", "Si Ge Al"),
        ("C11_b", "C1", "C32", "C16", "C15"),
        40,
    ),
    (
        _combine("Zr Hf Ti Sc Y La Ca Mg Nb Ta Gd Er U", "Fe Co Ni Cr Mn V Al Cu Zn Ru Rh Ir Be"),
        ("C15", "C14", "C11_b", "C32"),
        120,
    ),
    # AB3
    (
        _combine(
            "Al Ga In Sn Ti Zr Hf V Nb Ta Si Ge Pt Sc Y Mn Zn",
            "Ni Co Fe Cu Pd Pt Rh Ir Ti Nb V Cr Zr Mn Mo Ag Au",
        ),
        ("L1_2", "D0_3", "D0_19", "D0_22", "A15"),
        170,
    ),
    (
        _combine("Ce La Nd Er Y Sc U Th Ca Mg", "In Sn Pb Tl Pd Rh Ru Al"),
        ("L1_2", "D0_19", "D0_22", "D0_3"),
        50,
    ),
    (_combine("N P As Sb Bi", "Li Na K Rb Cs"), ("D0_18", "D0_3", "D0_9"), 999),
    (_combine("Al Sc W Re Mo Nb Ta Ti V Fe Cr Ga In", "F O H"), ("D0_9", "L1_2"), 999),
    # ABX
    (
        _combine("Ti Zr Hf V Nb Ta Sc Y Er", "Ni Co Fe Pd Pt Rh Ir Ru Cu", "Sn Sb Bi Ge As Si"),
        ("C1_b", "ZrBeSi"),
        190,
    ),
    (
        _combine("Li Mg Ca Na K Sr", "Mg Zn Cd Al Cu Ag Mn", "N P As Sb Bi Si Ge Sn"),
        ("C1_b", "ZrBeSi", "E0_1"),
        90,
    ),
    (
        _combine("Bi La Y Nd Gd", "O", "F Cl Br I") + _combine("Ca Sr Ba Pb", "F H", "Cl Br I"),
        ("E0_1", "C1_b"),
        999,
    ),
    # ABX2
    (
        _combine("Cu Ag Li Na", "Al Ga In", "S Se Te")
        + _combine("Zn Cd Mg Mn", "Si Ge Sn", "N P As Sb"),
        ("E1_1", "CuAu-like", "alpha-NaFeO2"),
        999,
    ),
    (
        _combine("Li Na K Cu Ag Rb", "Al Ga In Sc Y La Cr Fe Co Mn Ni V Ti Er Bi", "O S Se"),
        ("alpha-NaFeO2", "delafossite", "CuAu-like"),
        170,
    ),
    # Heusler and inverse Heusler, MAX phases
    (
        _combine(
            "Ti Zr Hf Mn Fe V Cr Sc Nb Ta Li Mg",
            "Al Ga Si Ge Sn In Sb Zn",
            "Co Ni Cu Pd Fe Mn Ru Rh Au",
        ),
        ("L2_1", "X_a"),
        260,
    ),
    (_combine("Al Ga In Sn Ge Si", "C N", "Ti V Cr Zr Nb Hf Ta Sc Mo"), ("MAX",), 90),
    # ABX3
    (
        _combine("Na K Rb Cs Tl", "Mg Ca Mn Fe Co Ni Zn Cd Pb Sn Ge Sr", "F Cl Br I"),
        ("E2_1", "2H perovskite"),
        130,
    ),
    (
        _combine("Ca Sr Ba Pb Eu", "Ti Zr Hf Sn Ge V Mn Fe Mo Ru Nb Si Ce", "O")
        + _combine("La Nd Y Gd Bi Er", "Al Sc Cr Mn Fe Co Ni Ga V In Ti Rh", "O")
        + _combine("Na K Rb Ag Li", "Nb Ta V U", "O")
        + _combine("Mg Ni Co Fe Mn Zn", "Ti Ge Mn Sn Si", "O"),
        ("E2_1", "2H perovskite", "E2_2"),
        150,
    ),
    (_combine("Al Ga In Sn Zn Tl Pb", "C N B", "Mg Ca Sr Ba Mn Fe Ni Ti Sc"), ("E2_1",), 110),
    (_combine("Li Na K Cs", "Mg Ca Sr Ba Ni Pd Eu", "H"), ("E2_1", "2H perovskite"), 999),
    # AB2X2, A2BX4, A2BX6
    (
        _combine("Ca Sr Ba La Y K Ce Nd Er U", "Fe Co Ni Cu Ru Rh Pd Mn Cr Ir", "P As Si Ge"),
        ("ThCr2Si2", "CaAl2Si2"),
        130,
    ),
    (
        _combine("Ca Sr Ba Mg Eu Yb", "Al Ga Zn Cd Mn Mg In", "P As Sb Bi Si Ge"),
        ("CaAl2Si2", "ThCr2Si2"),
        70,
    ),
    (
        _combine("Sr Ba La Ca Nd", "Ti Sn Zr Ru Mo Mn Ni Cu Co V Ir", "O")
        + _combine("K Rb Cs", "Mg Mn Co Ni Cu Zn Fe Cd", "F Cl"),
        ("K2NiF4",),
        80,
    ),
    (_combine("K Rb Cs", "Pt Sn Ti Zr Pb Te Re Si Hf Mn Ge", "Cl Br I F"), ("K2PtCl6",), 90),
)


def enumerate_candidates(seed: int = 0) -> list[tuple[str, tuple[str, ...]]]:
    """List all (structure type, elements) pairs to relax, compositions in a random order.

    Half-Heusler compounds appear three times, once with each element on the fourfold-coordinated
    inner site.

    Args:
        seed: Seeds the choice of compositions in capped families and the order.

    Returns:
        Candidates without repetition.
    """
    rng = random.Random(seed)
    candidates: dict[tuple[str, tuple[str, ...]], None] = {}
    for compositions, types, most in FAMILIES:
        chosen = compositions if len(compositions) <= most else rng.sample(compositions, most)
        for elements in chosen:
            for name in types:
                orders = [elements]
                if name == "C1_b":
                    a, b, x = elements
                    orders += [(b, a, x), (a, x, b)]
                for order in orders:
                    candidates[(name, order)] = None
    # Whole compositions in a random order, so that a part of the list holds all the polymorphs of
    # the compositions in it. Elements first: every hull needs them.
    groups: dict[frozenset[tuple[str, int]], list[tuple[str, tuple[str, ...]]]] = {}
    for name, elements in candidates:
        if (name, elements) not in EXCLUDED:
            counts = STRUCTURE_TYPES[name].stoichiometry
            key = frozenset(zip(elements, counts, strict=True))
            groups.setdefault(key, []).append((name, elements))
    shuffled = list(groups)
    rng.shuffle(shuffled)
    shuffled.sort(key=lambda composition: len(composition) > 1)
    return [candidate for composition in shuffled for candidate in groups[composition]]
