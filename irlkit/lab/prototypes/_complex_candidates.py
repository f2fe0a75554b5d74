"""Which ions are tried in which structure types of the set `complex`."""

from __future__ import annotations

import random
from itertools import product

from irlkit.data.loading import split_of
from irlkit.lab.prototypes._radii import shannon_radius
from irlkit.lab.prototypes.structure_types import COMPLEX_TYPES

_IONS = {
    1: "Li Na K Rb Cs Cu Ag Tl",
    2: "Be Mg Ca Sr Ba Mn Fe Co Ni Cu Zn Cd Sn Pb Hg Eu",
    3: "B Al Ga In Sc Y La Ce Pr Nd Sm Gd Tb Dy Ho Er Tm Lu Ti V Cr Mn Fe Co Rh Sb Bi",
    4: "C Si Ge Sn Ti Zr Hf V Mn Mo Ru Ir Pt Pb Ce Th Te",
    5: "N P As Sb V Nb Ta",
    6: "S Se Cr Mo W",
    7: "Cl Re",
    -1: "F Cl Br I",
    -2: "O S Se Te",
    -3: "N P As Sb",
    -4: "Si Ge Sn",
}
"""Elements by the charge that they commonly have."""

#: (types, sites, how many compositions at most). A site is a charge, then either the ions that may
#: be there or the least and the largest Shannon radius for six neighbours (Å).
_FAMILIES: tuple[tuple[str, str, int], ...] = (
    # A2X3, ABX2
    ("corundum", "3:0.5-0.95 -2:O", 14),
    ("alpha-NaFeO2, 2H-delafossite", "1:Li,Na,Cu,Ag 3:0.5-0.95 -2:O", 26),
    ("P2-NaCoO2, alpha-NaFeO2", "1:Li,Na,K 3:0.5-0.9 -2:O,S", 24),
    ("alpha-LiFeO2, alpha-NaFeO2", "1:Li,Na 3:0.5-1.1 -2:O,S,Se", 26),
    ("LiGaO2, gamma-LiAlO2, alpha-NaFeO2", "1:Li,Na,Ag,Cu 3:B,Al,Ga,Fe,In,Mn,Co,Sc -2:O", 20),
    ("LiGaO2, chalcopyrite", "2:Be,Mg,Zn,Mn,Cd,Ca 4:Si,Ge,Sn,Ti -3:N,P", 24),
    ("chalcopyrite, LiGaO2", "1:Cu,Ag,Li 3:Al,Ga,In,Fe,B,Sb -2:S,Se,Te", 24),
    ("Li2MnO3", "1:Li,Na,K,Ag 4:0.4-0.8 -2:O,S", 26),
    ("Li2SiO3, Li2MnO3", "1:Li,Na,K 4:Si,Ge,Ti,Sn,Mn -2:O,S", 12),
    # ABX3
    ("GdFeO3, LaAlO3, LiNbO3", "3:0.85-1.05 3:0.52-0.82 -2:O", 64),
    ("GdFeO3, SrTiO3 (tI), 4H perovskite", "2:0.95-1.4 4:0.5-0.9 -2:O", 40),
    ("GdFeO3, CsSnI3 (tP), SrTiO3 (tI)", "1:Na,K,Rb,Cs,Tl 2:Mg,Mn,Fe,Co,Ni,Zn,Cd,Sn,Pb,Ca,Sr -1:F,Cl,Br,I", 46),  # noqa: E501
    ("PbTiO3, LiNbO3, GdFeO3", "1:Li,Na,K,Ag,Rb 5:Nb,Ta,V,Sb -2:O", 14),
    ("PbTiO3, 9R perovskite", "2:Sr,Ba,Pb,Ca 4:Ti,Zr,Mn,Ru,Ir,Sn,V,Hf,Ge,Pt -2:O", 22),
    ("ilmenite, LiNbO3, CaIrO3", "2:0.65-1.1 4:0.4-0.75 -2:O", 36),
    ("ilmenite, LiNbO3", "1:Li,Na,K,Ag 5:Nb,Ta,Sb,V -2:O", 12),
    ("GdFeO3, 4H perovskite, CaIrO3", "2:Ca,Sr,Ba,Eu,Pb 4:Zr,Hf,Ti,Sn -2:S,Se", 16),
    ("clinopyroxene", "1:Li,Na,K,Ag 3:0.5-0.85 4:Si,Ge -2:O", 40),
    ("clinopyroxene", "2:Ca,Sr,Mn,Fe,Mg 2:Mg,Mn,Fe,Co,Ni,Zn,Cu 4:Si,Ge -2:O", 36),
    ("calcite, aragonite", "2:0.65-1.4 4:C -2:O", 14),
    ("calcite, aragonite", "1:Li,Na,K,Rb,Cs,Ag,Tl 5:N -2:O", 8),
    ("calcite, aragonite", "3:0.5-1.1 3:B -2:O", 20),
    ("dolomite", "2:Ca,Sr,Ba,Mg,Cd,Mn,Fe 2:Mg,Mn,Fe,Co,Ni,Zn,Cu,Cd,Ca 4:C -2:O", 40),
    # AB2X4
    ("spinel, inverse spinel, CaFe2O4", "2:0.57-1.1 3:0.5-0.85 -2:O", 44),
    ("spinel, inverse spinel, olivine", "4:Si,Ge,Ti,Sn,V,Mn 2:Mg,Mn,Fe,Co,Ni,Zn,Cd,Ca -2:O", 26),
    ("hausmannite", "2:Mg,Zn,Mn,Co,Ni,Cu,Cd,Fe 3:Mn,Cr,Rh,Al -2:O", 20),
    ("spinel", "2:Mg,Mn,Fe,Co,Ni,Cu,Zn,Cd,Ca 3:0.5-0.9 -2:S,Se", 46),
    ("thiogallate, spinel", "2:Zn,Cd,Hg,Mg,Mn,Fe,Ca,Pb 3:Al,Ga,In -2:S,Se,Te", 34),
    ("thiogallate", "2:Zn,Cd,Hg,Mg 1:Cu,Ag -1:Cl,Br,I", 12),
    ("inverse spinel, olivine", "2:Mg,Mn,Fe,Co,Cd,Zn 1:Li,Na -1:Cl,Br,F", 20),
    ("olivine, wadsleyite, spinel", "4:Si,Ge 2:Mg,Mn,Fe,Co,Ni,Ca,Zn -2:O", 13),
    ("olivine", "2:Be,Mg,Zn 3:Al,Cr,Ga,Fe,Sc,In -2:O", 12),
    ("CaFe2O4", "2:Ca,Sr,Ba,Eu,Pb 3:0.5-1.0 -2:O,S", 34),
    ("beta-K2SO4", "6:S,Se,Cr,Mo,W 1:Na,K,Rb,Cs,Tl,Ag -2:O", 26),
    ("beta-K2SO4", "2:Mg,Mn,Fe,Co,Zn,Cd,Hg 1:K,Rb,Cs -1:Cl,Br,I", 30),
    ("beta-K2SO4", "4:Si,Ge 2:Ca,Sr,Ba,Eu -2:O", 8),
    ("K2NiF4", "4:0.5-0.85 2:0.95-1.4 -2:O", 26),
    ("K2NiF4", "2:0.6-1.0 1:K,Rb,Cs,Tl -1:F,Cl,Br", 30),
    ("Nd2CuO4, La2CuO4, K2NiF4", "2:Cu,Ni,Co,Zn,Mg,Pd 3:La,Pr,Nd,Sm,Gd,Ce -2:O", 18),
    ("K2PtCl4", "2:Pt,Pd,Cu,Ni 1:Na,K,Rb,Cs,Tl,Ag -1:Cl,Br,F", 34),
    # further Ruddlesden-Popper phases and layers
    ("Sr3Ti2O7", "2:Ca,Sr,Ba,Eu,Pb 4:0.5-0.85 -2:O", 44),
    ("Sr3Ti2O7", "1:K,Rb,Cs 2:Mg,Mn,Fe,Co,Ni,Zn,Cd -1:F,Cl", 26),
    ("Sr4Ti3O10", "2:Ca,Sr,Ba,Eu,Pb 4:0.5-0.85 -2:O", 40),
    ("CsLaNb2O7", "1:Na,K,Rb,Cs,Li,Ag,Tl 3:La,Pr,Nd,Sm,Bi,Gd 5:Nb,Ta -2:O", 60),
    ("Sr2CuO2Cl2", "2:Mn,Fe,Co,Ni,Cu,Zn,Mg 2:Ca,Sr,Ba -2:O -1:F,Cl,Br", 50),
    ("ZrCuSiAs", "3:La,Ce,Pr,Nd,Sm,Gd,Y,Bi 1:Cu,Ag -2:O -2:S,Se,Te", 40),
    ("ZrCuSiAs", "3:La,Ce,Pr,Nd,Sm,Gd 2:Mn,Fe,Co,Ni,Zn,Cd -2:O -3:P,As,Sb", 70),
    # ABX4
    ("zircon, scheelite, BPO4", "4:0.7-1.1 4:Si,Ge -2:O", 12),
    ("zircon, scheelite", "3:0.74-1.1 5:P,As,V,Nb,Ta -2:O", 60),
    ("scheelite, wolframite", "2:0.6-1.4 6:Mo,W -2:O", 26),
    ("barite, zircon, scheelite", "2:Ca,Sr,Ba,Pb,Eu 6:S,Se,Cr -2:O", 14),
    ("anhydrite, CrVO4", "2:Mg,Ca,Mn,Fe,Co,Ni,Cu,Zn,Cd,Sr 6:S,Se,Cr -2:O", 24),
    ("CrVO4, berlinite, wolframite", "3:Al,Ga,In,Cr,Fe,V,Ti,Mn,Sc,Rh 5:P,V,As,Nb,Ta,Sb -2:O", 34),
    ("berlinite, BPO4", "3:B,Al,Ga,Fe,In 5:P,As,V -2:O", 14),
    ("scheelite, barite", "1:Na,K,Rb,Cs,Ag,Tl 7:Cl,Re -2:O", 12),
    ("scheelite, barite", "1:Li,Na,K,Rb,Cs 3:B,Al,Y,Er,Lu,Gd,Ho -1:F", 16),
    ("double scheelite", "1:Li,Na,K,Ag,Cu 3:0.85-1.1 6:Mo,W -2:O", 90),
    ("LiFePO4", "1:Li,Na,K,Ag 2:Mg,Mn,Fe,Co,Ni,Zn,Cd,Ca 5:P,As,V -2:O", 70),
    ("LiFePO4", "1:Li,Na,Ag 3:0.5-1.0 4:Si,Ge -2:O", 36),
    ("LiFePO4", "2:Ca,Sr,Mn,Cd 2:Mg,Mn,Fe,Co,Ni,Zn,Be 4:Si,Ge -2:O", 36),
    ("kalsilite", "1:Na,K,Rb,Cs,Tl 3:B,Al,Ga,Fe 4:Si,Ge,Ti -2:O", 44),
    ("kalsilite", "1:K,Rb,Cs,Na,Tl,Li 2:Be,Mg,Zn,Co,Mn,Fe,Ni,Cd 5:P,As,V -2:O", 50),
    ("kalsilite", "1:K,Rb,Cs 1:Li 6:S,Se,Cr,Mo,W -2:O", 14),
    # larger anions
    ("pyrochlore", "3:0.86-1.1 4:0.5-0.85 -2:O", 84),
    ("pyrochlore", "2:Ca,Sr,Cd,Pb,Ba,Mn,Hg 5:Nb,Ta,Sb,V -2:O", 24),
    ("thortveitite", "3:0.52-0.95 4:Si,Ge -2:O", 34),
    ("thortveitite", "2:Mg,Mn,Co,Ni,Cu,Zn,Cd,Ca,Fe,Hg 5:P,V,As -2:O", 28),
    ("melilite", "2:Ca,Sr,Ba,Pb,Eu 2:Mg,Mn,Fe,Co,Zn,Be,Cu,Ni,Cd 4:Si,Ge -2:O", 60),
    ("pseudobrookite", "4:Ti,Zr,Sn,Ge,Mn,V,Hf 3:Al,Ga,Fe,Ti,V,Cr,Sc,Mn,In -2:O", 40),
    ("pseudobrookite", "2:Mg,Mn,Fe,Co,Ni,Zn 4:Ti,V,Sn -2:O", 14),
    ("trirutile, rosiaite", "2:0.6-1.4 5:Sb,Ta,As,Nb,V -2:O", 54),
    ("trirutile, rosiaite", "6:W,Mo,Te 3:Al,Ga,Cr,Fe,V,Rh,In,Sc -2:O", 16),
    ("KFe(MoO4)2", "1:Na,K,Rb,Cs,Tl,Ag 3:0.5-1.0 6:S,Se,Cr,Mo,W -2:O", 96),
    ("KFe(MoO4)2", "2:Ca,Sr,Ba,Pb 4:Ti,Zr,Sn,Hf,Ge,Mo 5:P,As,V -2:O", 44),
    ("glaserite", "1:Li,Na,Ag 1:Na,K,Rb,Cs,Tl 6:S,Se,Cr,Mo,W -2:O", 44),
    ("glaserite", "3:0.5-1.1 1:Na,K,Rb,Cs 5:P,V,As -2:O", 60),
    # halides and double perovskites
    ("elpasolite", "1:K,Rb,Cs,Tl 1:Li,Na,K,Ag,Cu 3:0.5-1.1 -1:F,Cl,Br,I", 190),
    ("La2NiMnO6, elpasolite", "1:Na,K 1:Li,Na 3:Al,Ga,In,Sc,Fe,Cr,V,Y -1:F,Cl", 14),
    ("elpasolite, Sr2FeMoO6", "2:Sr,Ba,Ca,Pb 2:Mg,Ca,Mn,Fe,Co,Ni,Zn,Cu,Cd 6:Mo,W,Te -2:O", 60),
    ("elpasolite, Sr2FeMoO6", "2:Sr,Ba,Ca,Pb 3:0.5-1.0 5:Nb,Ta,Sb,V -2:O", 74),
    ("La2NiMnO6", "3:La,Pr,Nd,Sm,Gd,Y,Bi 2:Mg,Mn,Fe,Co,Ni,Zn,Cu 4:Ti,Mn,Ir,Ru,V,Ge,Sn,Zr,Pt -2:O", 80),  # noqa: E501
    ("La2NiMnO6", "2:Ca,Sr,Pb 3:Sc,In,Y,Fe,Cr,Al,Ga,La,Rh,Bi,Nd 5:Nb,Ta,Sb,V -2:O", 36),
    ("K2PtCl6, K2GeF6", "1:Na,K,Rb,Cs,Tl 4:Si,Ge,Sn,Ti,Zr,Hf,V,Mn,Mo,Ru,Ir,Pt,Pb,Te -1:F,Cl,Br,I", 70),  # noqa: E501
    ("LiCaAlF6", "1:Li,Na 2:Mg,Ca,Sr,Mn,Cd,Co,Zn,Ni,Fe 3:Al,Ga,Cr,V,Fe,Ti,Sc,In,Co,Rh -1:F", 70),
    ("rosiaite, trirutile", "4:Ge,Ti,Zr,Sn,Mn,Hf,Pt 1:Li,Na,Ag -1:F", 16),
    ("NaSbF6", "1:Li,Na,K,Ag,Rb 5:P,As,Sb,V,Nb,Ta -1:F,Cl", 34),
    ("NaSbF6, BaSiF6", "2:Mg,Ca,Sr,Ba,Mn,Fe,Zn,Cd,Pb 4:Si,Ge,Ti,Sn,Zr,Hf,Pt,Mn -1:F", 44),
    ("BaSiF6", "1:K,Rb,Cs,Tl 5:P,As,Sb,Nb,Ta,V -1:F", 20),
    ("Cs3Bi2I9, Cs3Bi2Br9", "1:K,Rb,Cs,Tl 3:Bi,Sb,In,Fe,Cr,V,Ti,Sc,Y,Er,Gd -1:F,Cl,Br,I", 60),
    # sulphides, nitrides, intermetallic compounds
    ("kesterite, stannite, wurtz-stannite", "1:Cu,Ag,Li 2:Zn,Cd,Hg,Mn,Fe,Co,Mg,Ni 4:Si,Ge,Sn,Ti -2:S,Se,Te", 80),  # noqa: E501
    ("wurtz-stannite, kesterite", "1:Li,Na,Ag 2:Be,Mg,Zn,Mn,Fe,Co,Cd,Ni 4:Si,Ge,Ti -2:O", 30),
    ("enargite, famatinite, sulvanite", "1:Cu,Ag,Li,Na 5:P,As,Sb,V,Nb,Ta -2:S,Se,Te", 50),
    ("enargite", "1:Li,Na 5:P,As,V -2:O", 6),
    ("argyrodite", "1:Li,Na,Cu,Ag 5:P,As,Sb,V,Nb,Ta -2:O,S,Se -1:Cl,Br,I", 90),
    ("TiNiSi", "2:Ca,Sr,Ba,Eu 2:Mg,Zn,Cd,Mn,Be -4:Si,Ge,Sn", 40),
    ("TiNiSi", "1:Na,K,Rb,Li 2:Mg,Zn,Cd,Mn,Be,Ca -3:P,As,Sb", 36),
    ("TiNiSi", "2:Ca,Sr,Ba,Eu 1:Li,Cu,Ag,Na -3:N,P,As,Sb", 36),
)  # fmt: skip

_HEUSLER = (
    "Sc Ti Zr Hf V Nb Mn Cr".split(),
    "Co Ru Rh Ir Pd Ni".split(),
    "Al Ga In Si Ge Sn".split(),
    "Mn Cr Fe Cu V Co".split(),
)
"""Elements of quaternary Heusler alloys by label; kept are those of 21 to 28 valence electrons."""

_MIXED = {"clinopyroxene", "La2NiMnO6"}
"""Types where an element may be on two sites of equal charge."""

TEXTBOOK: dict[str, str] = {
    "Al2O3": "corundum Al3+ O2-",
    "GdFeO3": "GdFeO3 Gd3+ Fe3+ O2-, LaAlO3 Gd3+ Fe3+ O2-",
    "MgAl2O4": "spinel Mg2+ Al3+ O2-, inverse spinel Mg2+ Al3+ O2-, CaFe2O4 Mg2+ Al3+ O2-",
    "LiFePO4": "LiFePO4 Li+ Fe2+ P5+ O2-",
    "Cs2AgBiBr6": "elpasolite Cs+ Ag+ Bi3+ Br-",
    "ZrSiO4": "zircon Zr4+ Si4+ O2-, scheelite Zr4+ Si4+ O2-",
    "CaWO4": "scheelite Ca2+ W6+ O2-, wolframite Ca2+ W6+ O2-",
    "FeTiO3": "ilmenite Fe2+ Ti4+ O2-, LiNbO3 Fe2+ Ti4+ O2-, GdFeO3 Fe2+ Ti4+ O2-",
    "Cu2ZnSnS4": "kesterite Cu+ Zn2+ Sn4+ S2-, stannite Cu+ Zn2+ Sn4+ S2-, "
    "wurtz-stannite Cu+ Zn2+ Sn4+ S2-",
    "Y2Ti2O7": "pyrochlore Y3+ Ti4+ O2-",
    "MgSiO3": "clinopyroxene Mg2+ Mg2+ Si4+ O2-, GdFeO3 Mg2+ Si4+ O2-, ilmenite Mg2+ Si4+ O2-, "
    "CaIrO3 Mg2+ Si4+ O2-",
    "CaCO3": "calcite Ca2+ C4+ O2-, aragonite Ca2+ C4+ O2-",
    "BaSO4": "barite Ba2+ S6+ O2-",
    "Mg2SiO4": "olivine Si4+ Mg2+ O2-, wadsleyite Si4+ Mg2+ O2-, spinel Si4+ Mg2+ O2-",
    "CaMgSi2O6": "clinopyroxene Ca2+ Mg2+ Si4+ O2-",
    "LiNbO3": "LiNbO3 Li+ Nb5+ O2-, ilmenite Li+ Nb5+ O2-",
    "LaAlO3": "LaAlO3 La3+ Al3+ O2-, GdFeO3 La3+ Al3+ O2-",
    "LiCoO2": "alpha-NaFeO2 Li+ Co3+ O2-, alpha-LiFeO2 Li+ Co3+ O2-",
    "CuInS2": "chalcopyrite Cu+ In3+ S2-",
    "K2PtCl6": "K2PtCl6 K+ Pt4+ Cl-",
    "La2CuO4": "La2CuO4 Cu2+ La3+ O2-, K2NiF4 Cu2+ La3+ O2-, Nd2CuO4 Cu2+ La3+ O2-",
    "SrTiO3": "SrTiO3 (tI) Sr2+ Ti4+ O2-",
    "Li6PS5Cl": "argyrodite Li+ P5+ S2- Cl-",
    "AlPO4": "berlinite Al3+ P5+ O2-",
    "K2SO4": "beta-K2SO4 S6+ K+ O2-",
}
"""What people ask for first: structure types and ions, by formula."""

HELD_OUT = {
    **dict.fromkeys("GdFeO3 MgAl2O4 LiFePO4 Cs2AgBiBr6 ZrSiO4 CaWO4".split(), "test"),
    **dict.fromkeys("TiFeO3 ZnCu2SnS4 Y2Ti2O7 MgSiO3 CaCO3 BaSO4 Mg2SiO4".split(), "test"),
    **dict.fromkeys("Al2O3 CaMg(SiO3)2 Li6PS5Cl AlPO4 K2SO4".split(), "val"),
}
"""Splits of textbook compounds, by reduced formula. None of them is in `prototypes`, whose splits
stay those of `split_of`."""


def _combinations(sites: str) -> list[tuple[str, ...]]:
    """Ions for the labels, such as ("Mg2+", "Al3+", "O2-")."""
    choices = []
    for site in sites.split():
        charge, wanted = site.split(":")
        elements = wanted.split(",")
        if wanted[0].isdigit():
            least, most = map(float, wanted.split("-"))
            elements = [
                element
                for element in _IONS[int(charge)].split()
                if least <= shannon_radius(element, int(charge)) <= most
            ]
        sign = "+" if int(charge) > 0 else "-"
        choices.append([f"{element}{charge.strip('-')}{sign}" for element in elements])
    return list(product(*choices))


def _check(name: str, ions: tuple[str, ...]) -> bool:
    """Whether charges cancel; elements may not repeat, except where a type allows it."""
    from pymatgen.core import Species

    species = [Species.from_str(ion) for ion in ions]
    counts = COMPLEX_TYPES[name].stoichiometry
    if len(counts) != len(ions) or sum(
        n * s.oxi_state for n, s in zip(counts, species, strict=True)
    ):
        raise AssertionError(f"{name}: {ions} are not neutral")
    repeated = len({s.symbol for s in species}) < len(species)
    return not repeated or (name in _MIXED and len(set(ions)) == len(ions) - 1)


def _heusler() -> list[tuple[str, ...]]:
    from pymatgen.core import Element

    def electrons(symbol: str) -> int:
        return Element(symbol).group % 10 if Element(symbol).group > 12 else Element(symbol).group

    return [
        elements
        for elements in product(*_HEUSLER)
        if len(set(elements)) == 4 and 21 <= sum(map(electrons, elements)) <= 28
    ]


def enumerate_complex(seed: int = 0) -> list[tuple[str, tuple[str, ...]]]:
    """List all (structure type, ions) pairs to relax, so that any beginning is of all kinds.

    The textbook compounds come first, then one composition of each family in turn, with all the
    types that it is tried in.

    Args:
        seed: Seeds the choice of compositions.

    Returns:
        Candidates without repetition.

    Raises:
        AssertionError: charges of a family do not cancel.
    """
    rng = random.Random(seed)
    entries = [entry for text in TEXTBOOK.values() for entry in text.split(", ")]
    listed = []
    for entry in entries:
        words = entry.split()
        n_ions = sum(word[-1] in "+-" for word in words)
        listed.append((" ".join(words[:-n_ions]), tuple(words[-n_ions:])))
    candidates = dict.fromkeys(listed)
    queues = []
    for names, sites, most in _FAMILIES:
        types = names.split(", ")
        chosen = [ions for ions in _combinations(sites) if all(_check(n, ions) for n in types)]
        chosen = rng.sample(chosen, min(most, len(chosen)))
        queues.append([[(name, ions) for name in types] for ions in chosen])
    queues.append([[("quaternary Heusler", e)] for e in rng.sample(_heusler(), 150)])
    longest = max(map(len, queues))
    for turn in range(longest):
        # Queues of different lengths end together, so that a part of the list is like the whole.
        for queue in queues:
            first, last = (len(queue) * t // longest for t in (turn, turn + 1))
            candidates |= dict.fromkeys(c for group in queue[first:last] for c in group)
    return list(candidates)


def split_of_complex(formula: str) -> str:
    """Return the split of a reduced formula: `split_of`, but for the textbook compounds held out.

    >>> split_of_complex("LiFePO4")
    'test'
    """
    return HELD_OUT.get(formula) or split_of(formula)
