"""Energies above the hull, coverage, and the network of formation energies and band gaps."""

import json

import numpy as np
import pytest
import torch
from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
from pymatgen.core import Composition

from irlkit.crystals import CrystalBatch
from irlkit.data import load
from irlkit.evaluate.hull import Hull
from irlkit.networks import composition

ENERGIES = {"Na": -1.3, "Cl": -1.8, "K": -1.1, "NaCl": -3.4, "KCl": -3.4, "NaK": -1.0}


@pytest.fixture(scope="module")
def embedded():
    return Hull.prototypes(completed=False)


@pytest.mark.parametrize("system", [("Mg", "O"), ("Li", "Cl"), ("O", "Sr", "Ti"), ("Al", "Ni")])
def test_values_are_those_of_the_phase_diagram(embedded, system):
    data = load("prototypes", progress=False)
    inside = [
        i for i, f in enumerate(data.batch.reduced_formulas())
        if set(Composition(f).as_dict()) <= set(system)
    ]  # fmt: skip
    batch = data.batch.select(inside)
    energy = data.table["energy_per_atom"].to_numpy()[inside]
    entries = [
        PDEntry(Composition(f), e * n)
        for f, e, n in zip(batch.formulas(), energy, batch.n_atoms.tolist(), strict=True)
    ]
    diagram = PhaseDiagram(entries)
    result = embedded.energy_above_hull(batch, energy)
    assert result.covered.mean() > 0.5  # Sr and Ti alone are in no compound of the set.
    expected = [diagram.get_e_above_hull(entry, allow_negative=True) for entry in entries]
    covered = result.covered
    assert result.value[covered] == pytest.approx(np.array(expected)[covered], abs=1e-6)
    assert (result.value[covered] > -1e-9).all()
    for shares in np.array(result.decomposition)[covered]:
        assert sum(shares.values()) == pytest.approx(1)


def test_a_structure_below_the_hull_and_one_without_energy():
    batch = CrystalBatch.from_formulas(["Na1 Cl1", "Na1 Cl1", "Na3 Cl1"])
    result = Hull(ENERGIES, "toy").energy_above_hull(batch, [-3.5, np.nan, -2.0])
    assert result.value == pytest.approx([-0.1, np.nan, 0.35], nan_ok=True)
    assert result.covered.all()
    assert result.decomposition[2] == pytest.approx({"Na": 0.5, "NaCl": 0.5})


@pytest.mark.parametrize(
    ("formula", "covered"),
    [
        ("Na1", True),
        ("Na1 K3", True),
        ("Na1 K1 Cl2", False),
        ("Na1 Br1", False),
        ("He1 Na1", False),
    ],
)
def test_coverage_needs_an_entry_of_every_part(formula, covered):
    hull = Hull({**ENERGIES, "Br": -1.0}, "toy")
    result = hull.energy_above_hull(CrystalBatch.from_formulas([formula]), [0.0])
    assert bool(result.covered[0]) is covered
    assert np.isfinite(result.value[0]) == covered
    assert bool(result.decomposition[0]) is covered


def test_virtual_entries_survey_systems_of_up_to_three_elements():
    elements = ("Na", "Cl", "K", "Br")
    hull = Hull({**ENERGIES, "Br": -1.0}, "toy", {"NaBr": -1.5, "KNa2Cl": -2.0}, elements)
    batch = CrystalBatch.from_formulas(["Na1 Br1", "K1 Na2 Cl1", "K1 Br1", "Na1 K1 Br1 Cl1"])
    result = hull.energy_above_hull(batch, [0.0] * 4)
    assert result.covered.tolist() == [True, True, True, False]
    assert result.value[0] == pytest.approx(1.15 + 1.5)
    assert result.value[1] == pytest.approx(2.0 + (1.1 + 2.6 + 1.8) / 4)
    for name in ("Na2Cl2", "ClNa"):  # The real entry counts, however the virtual one is written.
        written = Hull(ENERGIES, "toy", {name: -9.0})
        assert len(written) == len(Hull(ENERGIES, "toy"))
        salt = CrystalBatch.from_formulas(["Na1 Cl1"])
        assert written.energy_above_hull(salt, [ENERGIES["NaCl"]]).value == pytest.approx(0.0)
    own = Hull({**ENERGIES, "Br": -1.0, "KNaBrCl": -9.0}, "toy", surveyed=elements)
    assert own.covers(("Na", "K", "Br", "Cl"))


def test_entries_of_a_user(tmp_path):
    batch = CrystalBatch.from_formulas(["Na3 Cl1"])
    entries = [PDEntry(f, e * Composition(f).num_atoms) for f, e in ENERGIES.items()]
    rows = [{"formula_pretty": f, "energy_per_atom": e} for f, e in ENERGIES.items()]
    (tmp_path / "mp.json").write_text(json.dumps({"data": rows}))
    dicts = [{"composition": e.composition.as_dict(), "energy": e.energy} for e in entries]
    (tmp_path / "own.json").write_text(json.dumps(dicts))
    expected = Hull(ENERGIES, "toy").energy_above_hull(batch, [-2.0]).value
    for given in (entries, tmp_path / "mp.json", str(tmp_path / "own.json")):
        found = Hull.from_entries(given, "toy").energy_above_hull(batch, [-2.0]).value
        assert found == pytest.approx(expected)


@pytest.mark.parametrize("text", ['{"entries": []}', "3", '{"data": 3}'])
def test_a_file_without_a_list_of_entries(tmp_path, text):
    (tmp_path / "hull.json").write_text(text)
    with pytest.raises(ValueError, match=r"hull\.json must hold a list of entries"):
        Hull.from_entries(tmp_path / "hull.json", "toy")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Hull({}, "toy"), "at least one entry"),
        (lambda: Hull({"Na": np.nan}, "toy"), r"energies\['Na'\] must be finite"),
        (
            lambda: Hull({"Na": -1.0}, "toy", {"NaCl": -1.0}),
            r"needs entries of the elements \['Cl'",
        ),
        (lambda: Hull({"Na": -1.0}, "toy", surveyed=["Cl"]), "surveyed must name elements"),
        (lambda: Hull.from_entries([{"Na": 1}], "toy"), r"entries\[0\] must be an entry"),
        (
            lambda: Hull(ENERGIES, "toy").check(CrystalBatch.from_formulas(["Na1 He1"])),
            "no entry of the elements He, but of",
        ),
        (lambda: Hull(ENERGIES, "toy", {"NaCl": np.nan}), r"virtual\['NaCl'\] must be finite"),
        (lambda: Hull(ENERGIES, "toy").without("NaCl"), "a chemical system such as 'Na-Cl'"),
        (lambda: Hull(ENERGIES, "toy").without("Na"), "two elements or more, got 'Na'"),
        (lambda: Hull.prototypes(without=["NaCl"]), "without must be a chemical system"),
        (
            lambda: Hull(ENERGIES, "toy").energy_above_hull(
                CrystalBatch.from_formulas(["Na1"]), [0.0, 1.0]
            ),
            "one number for each of 1 structures",
        ),
    ],
)
def test_bad_input_in_words(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_what_the_embedded_set_lacks_is_completed(embedded):
    """A system without entries is not covered; with virtual entries it is."""
    data = load("prototypes", progress=False)
    formulas, energies = data.batch.reduced_formulas(), data.table["energy_per_atom"]
    lowest = {f: energies[[g == f for g in formulas]].min() for f in ("NaCl", "SrTiO3")}
    batch = CrystalBatch.from_formulas(["Na1 Cl1", "Sr1 Ti1 O3"])
    left_out = ("Na-Cl", "O-Sr-Ti")
    without = Hull.prototypes(completed=False, without=left_out)
    assert not without.energy_above_hull(batch, [0.0, 0.0]).covered.any()
    completed = Hull.prototypes(without=left_out)
    result = completed.energy_above_hull(batch, list(lowest.values()))
    assert result.covered.all()
    assert (abs(result.value) < 0.25).all()  # Predicted energies are that good here.
    assert embedded.energy_above_hull(batch[:1], [lowest["NaCl"]]).value == pytest.approx([0.0])


# --- networks of compositions ---------------------------------------------------------------------


def test_band_gaps_do_not_depend_on_the_batch():
    network = composition.load("band-gap")
    formulas = ["Na1 Cl1", "Si2", "Ca1 F2", "Sr1 Ti1 O3", "Si4"]
    together = network(CrystalBatch.from_formulas(formulas))
    alone = torch.cat([network(CrystalBatch.from_formulas([f])) for f in formulas])
    assert torch.allclose(together, alone, atol=1e-4)
    assert torch.equal(together[1], together[4])
    # What the published network gives for them, eV.
    assert together.tolist()[:3] == pytest.approx([4.94, 0.04, 6.80], abs=0.01)


def test_elements_and_names_unknown_to_the_networks():
    with pytest.raises(ValueError, match="name must be one of"):
        composition.load("hardness")
    network = composition.load("band-gap")
    network.features[83] = torch.nan
    with pytest.raises(ValueError, match="Po, an element that the network has not seen"):
        network(CrystalBatch.from_formulas(["Po1"]))
