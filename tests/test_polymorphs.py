"""Structures beside known ones, and what a model has seen of their compositions."""

import dataclasses

import numpy as np
import pytest
import torch
from pymatgen.core import Lattice, Structure

import irlkit
from irlkit import potentials
from irlkit.crystals import CrystalBatch
from irlkit.flows.dynamics import Dynamics
from irlkit.lab import polymorphs

TEXTBOOK = {
    "NaCl": Structure.from_spacegroup(
        "Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0] * 3, [0.5] * 3]
    ),
    "MgO": Structure.from_spacegroup(
        "Fm-3m", Lattice.cubic(4.21), ["Mg", "O"], [[0] * 3, [0.5] * 3]
    ),
    "SrTiO3": Structure.from_spacegroup(
        "Pm-3m", Lattice.cubic(3.905), ["Sr", "Ti", "O"], [[0] * 3, [0.5] * 3, [0.5, 0.5, 0]]
    ),
}


@pytest.fixture(scope="module")
def chgnet():
    return potentials.get("chgnet")


@pytest.fixture(scope="module")
def model():
    return irlkit.load_pretrained("linear-ode")


@pytest.fixture(scope="module")
def textbook(chgnet):
    """The textbook's structures, relaxed."""
    cells = [structure.get_primitive_structure() for structure in TEXTBOOK.values()]
    relaxed = potentials.relax(CrystalBatch.from_structures(cells), chgnet, force_tolerance=0.01)
    assert relaxed.converged.all()
    return relaxed


def test_what_notebook_00_finds_is_what_textbooks_have(chgnet, model, textbook):
    """Generated as there, from one seed, and relaxed: within 5 meV/atom, and the same crystals."""
    many = CrystalBatch.from_formulas(list(TEXTBOOK)).repeat(8)
    x_0 = model.sample_base(many, torch.Generator().manual_seed(0))
    relaxed = potentials.relax(Dynamics(model).generate(many, 10, x_0=x_0), chgnet)
    table = polymorphs.describe(relaxed.crystals, relaxed.energy_per_atom)
    known = polymorphs.known_structures(many, chgnet)
    expected = {"NaCl": "Fm-3m", "MgO": "Fm-3m", "SrTiO3": "Pm-3m"}
    for i, (formula, energy) in enumerate(zip(TEXTBOOK, textbook.energy_per_atom, strict=True)):
        rows = table[table["formula"] == formula]
        best = rows.iloc[polymorphs.ranked(rows)[0]]
        assert best["energy_per_atom"] == pytest.approx(energy, abs=0.005)
        assert best["space_group"] == expected[formula]
        assert best["a"] == pytest.approx(textbook_edge(textbook.crystals[i]), rel=0.01)
        assert polymorphs.find_known(relaxed.crystals[[best.name]], known).tolist() == [0]


def textbook_edge(crystal):
    return polymorphs.describe(crystal, np.zeros(1)).loc[0, "a"]


def test_known_structures_come_by_energy_and_beside_ours(chgnet, textbook):
    known = polymorphs.known_structures(textbook.crystals, chgnet)
    for _, rows in known.table.groupby("formula"):
        assert rows["energy_per_atom"].is_monotonic_increasing
    names = list(TEXTBOOK)
    table = polymorphs.compare(textbook.crystals, textbook.energy_per_atom, known, names)
    assert table.index.get_level_values(0).unique().tolist() == names
    for formula, structure in TEXTBOOK.items():
        ours, first = table.loc[(formula, formula)], table.loc[(formula, "known 1")]
        assert ours["what"] == "is known 1" and ours["space group"] == first["space group"]
        assert ours["g/cm³"] == pytest.approx(structure.density, rel=0.05)
        assert ours["eV/atom"] == pytest.approx(first["eV/atom"], abs=0.002)
    assert table.loc[("SrTiO3", "known 1"), "what"] == "E2_1 (train)"
    nothing = polymorphs.known_structures(CrystalBatch.from_formulas(["Xe17"]), chgnet)
    alone = polymorphs.compare(textbook.crystals, textbook.energy_per_atom, nothing, names)
    assert set(alone["what"]) == {"matches none"} and len(alone) == 3


def test_what_a_potential_does_not_know_stays_and_is_named(chgnet, textbook):
    salt = textbook.crystals[0]
    francium = CrystalBatch(torch.tensor([87, 17]), salt.pos, salt.cell, salt.n_atoms)
    batch = CrystalBatch.concatenate([francium, textbook.crystals[1], francium])
    with pytest.warns(UserWarning, match="Cl1 Fr1: not relaxed; .* does not know the elements Fr"):
        relaxed, energy = polymorphs.relax_known(batch, chgnet)
    assert relaxed.formulas() == batch.formulas() and np.isnan(energy[[0, 2]]).all()
    assert torch.equal(relaxed.cell[[0, 2]], batch.cell[[0, 2]])
    assert energy[1] == pytest.approx(textbook.energy_per_atom[1], abs=1e-4)
    with pytest.warns(UserWarning, match="not relaxed"):
        assert np.isnan(polymorphs.relax_known(francium, chgnet)[1]).all()


def test_structures_that_are_not_numbers_are_listed_without_symmetry():
    """spglib ends the process where it meets one."""
    cubic = CrystalBatch.from_structures([TEXTBOOK["SrTiO3"]] * 3)
    cell, pos = cubic.cell.clone(), cubic.pos.clone()
    cell[0], pos[7, 1] = np.nan, np.inf
    table = polymorphs.describe(cubic.replace(cell=cell, pos=pos), np.zeros(3))
    assert table["space_group"].tolist() == ["", "", "Pm-3m"]


def test_known_structures_without_energies_are_listed_without(textbook):
    known = polymorphs.known_structures(textbook.crystals)
    bare = dataclasses.replace(known, table=known.table.drop(columns="energy_per_atom"))
    names = list(TEXTBOOK)
    table = polymorphs.compare(textbook.crystals, textbook.energy_per_atom, bare, names)
    assert table.loc[(names[0], "known 1"), ["eV/atom"]].isna().all()
    assert table.loc[(names[0], names[0]), "eV/atom"] < 0


def test_equal_energies_are_ordered_by_symmetry_and_none_comes_last():
    cubic = CrystalBatch.from_structures([TEXTBOOK["SrTiO3"]])
    longer = cubic.replace(cell=cubic.cell * torch.tensor([1.0, 1.0, 1.06])[:, None])
    batch = CrystalBatch.concatenate([longer, cubic, longer, cubic])
    table = polymorphs.describe(batch, np.array([-8.0003, -8.0, -7.9, np.nan]))
    assert table["space_group"].tolist() == ["P4/mmm", "Pm-3m"] * 2
    assert polymorphs.ranked(table).tolist() == [1, 0, 2, 3]
    assert polymorphs.ranked(table.assign(energy_per_atom=np.nan)).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("formula", "said", "beyond"),
    [
        ("SrTiO3", "3 structures", ""),
        ("Ag2O", "not among them, but in test", ""),
        ("Mg2Al4O8", "not among them", "14 atoms: they have at most 12"),
        ("Dy2O3", "not among them", "none has Dy"),
        ("LiFePO4", "not among them", "4 elements: they have at most 3"),
    ],
)
def test_what_the_model_has_seen(model, formula, said, beyond):
    composition = CrystalBatch.from_formulas([formula])
    row = polymorphs.seen(model, composition).iloc[0]
    assert (row["training data"], row["beyond them"]) == (said, beyond)


@pytest.mark.parametrize(
    ("formulas", "units", "name"),
    [
        (["NaCl", "TiO2"], 4, "linear-ode"),
        (["SrTiO3"], 4, "linear-ode-28"),
        (["SrTiO3"], 2, "linear-ode"),
        (["NaCl", "LiFePO4"], 1, "linear-ode-28"),
        (["Dy2O3"], 2, "linear-ode-28"),
        (["K2PtCl6"], 4, "linear-ode-28"),  # 36 atoms, more than any has seen
    ],
)
def test_the_smallest_model_that_knows_such_cells_is_chosen(formulas, units, name):
    assert polymorphs.choose_model(CrystalBatch.from_formulas(formulas), units) == name


def test_models_of_others(model, monkeypatch):
    salt = CrystalBatch.from_formulas(["NaCl"])
    monkeypatch.setattr(model, "info", {})
    assert polymorphs.seen(model, salt).iloc[0].tolist() == ["not known here", ""]
    limits = {"elements": [11], "max_atoms": 1, "max_elements": 1}
    monkeypatch.setattr(model, "info", {"dataset": "mine", "seen": limits})
    said, beyond = polymorphs.seen(model, salt).iloc[0]
    assert said == "not recorded"
    assert beyond == "none has Cl; 2 atoms: they have at most 1; 2 elements: they have at most 1"
