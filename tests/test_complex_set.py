"""The embedded set of larger cells: its structure types, its candidates, and what it promises."""

import numpy as np
import pytest
from pymatgen.core import Composition, Species
from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

from irlkit.data import load
from irlkit.data.loading import split_of
from irlkit.lab.prototypes import _complex_candidates, generate
from irlkit.lab.prototypes._complex_candidates import HELD_OUT, TEXTBOOK, enumerate_complex
from irlkit.lab.prototypes._radii import shannon_radius
from irlkit.lab.prototypes.structure_types import COMPLEX_TYPES


@pytest.fixture(scope="module")
def candidates():
    return enumerate_complex()


@pytest.mark.parametrize("name", list(COMPLEX_TYPES))
def test_structure_types_have_their_symmetry(name):
    entry = COMPLEX_TYPES[name]
    elements = ["Na", "Cl", "Ti", "O"][: len(entry.stoichiometry)]
    structure = entry.build(elements)
    assert len(structure) == entry.n_atoms <= 28
    assert SpacegroupAnalyzer(structure).get_space_group_number() == entry.space_group
    counts = structure.composition.reduced_composition
    ratios = [counts[element] / n for element, n in zip(elements, entry.stoichiometry, strict=True)]
    assert len(set(ratios)) == 1


# Ångström: lattice constants of the conventional cells, from experiment.
@pytest.mark.parametrize(
    ("name", "ions", "volume"),
    [
        ("spinel", "Mg2+ Al3+ O2-", 8.083**3 / 4),
        ("LiFePO4", "Li+ Fe2+ P5+ O2-", 10.33 * 6.01 * 4.69),
        ("pyrochlore", "Y3+ Ti4+ O2-", 10.09**3 / 4),
        ("elpasolite", "Cs+ Ag+ Bi3+ Br-", 11.27**3 / 4),
        ("zircon", "Zr4+ Si4+ O2-", 6.607**2 * 5.982 / 2),
        ("scheelite", "Ca2+ W6+ O2-", 5.243**2 * 11.376 / 2),
        ("calcite", "Ca2+ C4+ O2-", 4.99**2 * 17.06 * 3**0.5 / 6),
        ("GdFeO3", "Gd3+ Fe3+ O2-", 5.61 * 7.67 * 5.35),
        ("kesterite", "Cu+ Zn2+ Sn4+ S2-", 5.43**2 * 10.87 / 2),
        ("argyrodite", "Li+ P5+ S2- Cl-", 9.86**3 / 4),
    ],
)
def test_cells_of_ions_have_about_the_size_of_nature(name, ions, volume):
    structure = COMPLEX_TYPES[name].build(ions.split())
    assert 0.8 < structure.volume / volume < 1.6
    assert all(isinstance(site.specie.Z, int) for site in structure)


@pytest.mark.parametrize(
    ("symbol", "charge", "radius"),
    [("Al", 3, 0.535), ("O", -2, 1.40), ("Fe", 2, 0.78), ("Cs", 1, 1.67), ("Sn", 2, 1.18)],
)
def test_shannon_radii(symbol, charge, radius):
    """Six neighbours, high spin."""
    assert shannon_radius(symbol, charge) == pytest.approx(radius)


def test_radius_that_is_not_known():
    with pytest.raises(ValueError, match="no radius of Al with charge 7"):
        shannon_radius("Al", 7)


def test_candidates_are_distinct_neutral_and_reproducible(candidates):
    assert len(set(candidates)) == len(candidates) > 4000
    assert candidates == enumerate_complex()
    for name, ions in candidates:
        counts = COMPLEX_TYPES[name].stoichiometry
        if name != "quaternary Heusler":
            charges = [Species.from_str(ion).oxi_state for ion in ions]
            assert sum(n * q for n, q in zip(counts, charges, strict=True)) == 0


def test_a_family_that_is_not_neutral_is_refused(monkeypatch):
    monkeypatch.setattr(_complex_candidates, "_FAMILIES", (("spinel", "2:Mg 4:Ti -2:O", 1),))
    with pytest.raises(AssertionError, match=r"spinel: .* are not neutral"):
        enumerate_complex()


def test_any_beginning_has_all_kinds(candidates):
    assert {name for name, _ in candidates[:600]} == set(COMPLEX_TYPES)
    n_textbook = sum(text.count(",") + 1 for text in TEXTBOOK.values())
    for name, ions in candidates[:n_textbook]:
        counts = COMPLEX_TYPES[name].stoichiometry
        symbols = (Species.from_str(ion).symbol for ion in ions)
        formula = Composition.from_dict({})
        for symbol, n in zip(symbols, counts, strict=True):
            formula += Composition({symbol: n})
        assert formula.reduced_formula in {Composition(f).reduced_formula for f in TEXTBOOK}


def test_textbook_compounds_that_are_held_out_are_not_in_the_other_set():
    known = set(load("prototypes", progress=False).table["formula"])
    formulas = {Composition(formula).reduced_formula for formula in TEXTBOOK}
    assert set(HELD_OUT) <= formulas - known and len(HELD_OUT) >= 8
    assert set(HELD_OUT.values()) == {"val", "test"}
    assert _complex_candidates.split_of_complex("NaCl") == split_of("NaCl")


def test_chunks_are_relaxed_and_a_bad_one_fails_alone(monkeypatch, tmp_path):
    class Dense:
        def build(self, ions):
            structure = COMPLEX_TYPES["alpha-NaFeO2"].build(ions)
            structure.scale_lattice(1.0)
            return structure

    monkeypatch.setitem(generate.COMPLEX_TYPES, "dense", Dense())
    ions = ("Li+", "Co3+", "O2-")
    chunk = [("alpha-NaFeO2", ions), ("dense", ions)]
    good, bad = generate._relax_chunk(chunk)
    assert good["converged"] and good["max_force"] < generate.FMAX
    assert np.shape(good["pos"]) == (4, 3) and sorted(good["species"]) == [3, 8, 8, 27]
    # Experiment: 96.4 Å^3 in the hexagonal cell, of three times the atoms.
    assert 31 < abs(np.linalg.det(good["cell"])) < 35
    assert not bad["converged"] and "too dense" in bad["error"]
