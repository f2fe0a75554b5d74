"""The embedded set of larger cells: its structure types, its candidates, and what it promises."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from pymatgen.core import Composition, Species
from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

from irlkit.data import load
from irlkit.data.loading import split_of
from irlkit.lab.prototypes import _complex_candidates, generate
from irlkit.lab.prototypes._complex_candidates import HELD_OUT, TEXTBOOK, enumerate_complex
from irlkit.lab.prototypes._radii import shannon_radius
from irlkit.lab.prototypes.structure_types import COMPLEX_TYPES
from irlkit.potentials import CHGNetPotential

FILE = Path(generate.__file__).parents[2] / "data" / "complex" / "complex.parquet"


@pytest.fixture(scope="module")
def table():
    return pd.read_parquet(FILE)


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


def test_what_the_other_set_has_and_what_is_far_from_the_hull_is_dropped(tmp_path, candidates):
    def record(name, ions, energy):
        structure = COMPLEX_TYPES[name].build(ions.split())
        return {
            "prototype": name,
            "elements": ions.split(),
            "converged": True,
            "species": [site.specie.Z for site in structure],
            "pos": structure.frac_coords.tolist(),
            "cell": structure.lattice.matrix.tolist(),
            "energy_per_atom": energy,
        }

    raw = tmp_path / "raw.jsonl"
    records = [
        record("alpha-NaFeO2", "Li+ Co3+ O2-", -6.37),
        record("spinel", "Mg2+ Al3+ O2-", -7.49),
        record("LiFePO4", "Li+ Fe2+ P5+ O2-", -5.0),
    ]
    raw.write_text("\n".join(map(json.dumps, records)))
    table, dropped = generate._build_table(raw, "complex")
    assert table[["material_id", "formula", "prototype", "split"]].to_numpy().tolist() == [
        ["irc-00000", "MgAl2O4", "spinel", "test"]
    ]
    assert table["e_above_hull"].tolist() == [0.0]
    assert dropped == {
        "in the other set": 1, "too far above the hull": 1, "candidates": 3, "kept": 1
    }  # fmt: skip
    few = 1 + candidates.index(("spinel", ("Mg2+", "Al3+", "O2-")))
    assert generate._build_table(raw, "complex", few)[1] == {"candidates": 1, "kept": 1}


# --- the data ---


def test_size_and_variety(table):
    assert len(table) >= 3000 and FILE.stat().st_size < 3_000_000
    assert len(set(table["prototype"]) & set(COMPLEX_TYPES)) >= 70
    assert table["species"].map(len).max() == 28
    n_elements = table["species"].map(lambda s: len(set(s)))
    assert (n_elements == 4).sum() >= 1000 and n_elements.max() == 4
    assert (table["prototype"] == "other").mean() < 0.05
    assert table["formula"].nunique() >= 2000
    assert (table["material_id"] == [f"irc-{i:05d}" for i in range(len(table))]).all()


def test_energies(table):
    assert np.isfinite(table["energy_per_atom"]).all()
    best = table.groupby("formula")["energy_per_atom"].transform("min")
    assert (table["energy_per_atom"] - best).max() <= generate.ENERGY_WINDOW + 1e-6
    hull = table["e_above_hull"].dropna()
    assert len(hull) > 0.9 * len(table) and -1e-6 < hull.min() and hull.max() <= 0.3


def test_energies_and_forces_are_those_of_the_potential():
    data = load("complex", progress=False).select(range(0, 3000, 250))
    result = CHGNetPotential()(data.batch, forces=True)
    energy = data.table["energy_per_atom"].to_numpy()
    np.testing.assert_allclose(result.energy_per_atom, energy, atol=2e-4)
    assert np.linalg.norm(result.forces, axis=1).max() < 1.1 * generate.FMAX


def test_splits_keep_polymorphs_together_here_and_in_both_sets(table):
    assert (table.groupby("formula")["split"].nunique() == 1).all()
    other = load("prototypes", progress=False).table.set_index("formula")["split"]
    shared = table[table["formula"].isin(other.index)]
    assert len(shared) > 50
    assert (shared["split"] == shared["formula"].map(other.groupby(level=0).first())).all()
    parts = table["split"].value_counts(normalize=True)
    assert abs(parts["train"] - 0.8) < 0.04 and min(parts["val"], parts["test"]) > 0.08
    sizes = {s: len(load("complex", s, progress=False)) for s in ("train", "val", "test")}
    assert sizes == table["split"].value_counts().to_dict()


def test_both_sets_together(table):
    both = load("prototypes+complex", "val", progress=False)
    sizes = [len(load(name, "val", progress=False)) for name in ("prototypes", "complex")]
    assert len(both) == sum(sizes) and both.name == "prototypes+complex"
    assert both.table["material_id"].is_unique
    assert both.batch.n_atoms[: sizes[0]].max() == 12 and both.limits()["max_atoms"] == 28
    assert both.batch.reduced_formulas() == both.table["formula"].tolist()
    with pytest.raises(ValueError, match="unknown data set"):
        load("prototypes+nothing")


def test_textbook_compounds_are_there_as_the_types_that_name_them(table):
    for formula, split in HELD_OUT.items():
        assert set(table.loc[table["formula"] == formula, "split"]) == {split}
    lowest = table.sort_values("energy_per_atom").groupby("formula")["prototype"].first()
    types = {
        "MgAl2O4": "spinel", "LiFePO4": "LiFePO4", "Cs2AgBiBr6": "elpasolite", "ZrSiO4": "zircon",
        "TiFeO3": "ilmenite", "Y2Ti2O7": "pyrochlore", "GdFeO3": "GdFeO3", "Al2O3": "corundum",
        "ZnCu2SnS4": "kesterite", "CaCO3": "calcite", "Mg2SiO4": "olivine",
        "LiNbO3": "LiNbO3", "MgSiO3": "clinopyroxene",
    }  # fmt: skip
    assert lowest[list(types)].to_dict() == types


def test_structures_are_sound():
    data = load("complex", progress=False)
    assert not data.skipped
    assert data.batch.n_atoms.max() == 28
    per_atom = data.batch.volume / data.batch.n_atoms
    assert torch.all((per_atom > 4) & (per_atom < 70))
