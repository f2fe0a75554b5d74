"""The embedded data set: what it promises, and the script that makes it."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

from irlkit import data
from irlkit.data.loading import split_of
from irlkit.lab.prototypes import generate
from irlkit.lab.prototypes.candidates import enumerate_candidates
from irlkit.lab.prototypes.structure_types import STRUCTURE_TYPES

FOLDER = Path(generate.__file__).parents[2] / "data" / "prototypes"


@pytest.fixture(scope="module")
def table():
    return pd.read_parquet(FOLDER / "prototypes.parquet")


@pytest.mark.parametrize("name", list(STRUCTURE_TYPES))
def test_structure_types_have_their_symmetry(name):
    entry = STRUCTURE_TYPES[name]
    elements = ["Na", "Cl", "Ti"][: len(entry.stoichiometry)]
    structure = entry.build(elements)
    assert len(structure) == entry.n_atoms <= 12
    assert SpacegroupAnalyzer(structure).get_space_group_number() == entry.space_group
    counts = structure.composition.reduced_composition
    ratios = [counts[element] / n for element, n in zip(elements, entry.stoichiometry, strict=True)]
    assert len(set(ratios)) == 1


def test_wrong_number_of_elements():
    with pytest.raises(ValueError, match="elements: B1 has 2 labels, got"):
        STRUCTURE_TYPES["B1"].build(["Na"])


def test_candidates_are_distinct_and_reproducible():
    candidates = enumerate_candidates()
    assert len(set(candidates)) == len(candidates) > 5000
    assert candidates == enumerate_candidates()


def test_size_and_variety(table):
    assert len(table) >= 4000
    assert (FOLDER / "prototypes.parquet").stat().st_size < 5_000_000
    assert len({z for species in table["species"] for z in species}) >= 60
    assert table["prototype"].nunique() >= 15
    assert table["species"].map(len).max() <= 12
    assert set(table["species"].map(lambda s: len(set(s)))) == {1, 2, 3}
    polymorphs = table.groupby("formula").size()
    assert (polymorphs >= 2).sum() >= 500


def test_energies(table):
    assert np.isfinite(table["energy_per_atom"]).all()
    best = table.groupby("formula")["energy_per_atom"].transform("min")
    assert (table["energy_per_atom"] - best).max() <= generate.ENERGY_WINDOW + 1e-6
    hull = table["e_above_hull"].dropna()
    assert len(hull) > 0.9 * len(table) and hull.min() > -1e-6


def test_splits_keep_polymorphs_together(table):
    assert (table.groupby("formula")["split"].nunique() == 1).all()
    assert (table["split"] == table["formula"].map(split_of)).all()
    shares = table["split"].value_counts(normalize=True)
    assert abs(shares["train"] - 0.8) < 0.03
    assert shares["val"] > 0.08 and shares["test"] > 0.08
    sizes = {s: len(data.load("prototypes", split=s)) for s in ("train", "val", "test")}
    assert sizes == table["split"].value_counts().to_dict()


def test_filters(tmp_path):
    """A duplicate, an unconverged, a failed, a broken and a high-energy candidate are dropped."""

    def record(prototype, energy, **changes):
        structure = STRUCTURE_TYPES[prototype].build(["Na", "Cl"])
        if "scale" in changes:
            structure.scale_lattice(structure.volume * changes.pop("scale"))
        return {
            "prototype": prototype,
            "elements": ["Na", "Cl"],
            "converged": True,
            "species": [site.specie.Z for site in structure],
            "pos": structure.frac_coords.tolist(),
            "cell": structure.lattice.matrix.tolist(),
            "energy_per_atom": energy,
        } | changes

    raw = tmp_path / "raw.jsonl"
    records = [
        record("B1", -3.4),
        record("B1", -3.39),
        record("B2", -3.2),
        record("B3", -3.0),
        record("B4", -3.3, converged=False),
        record("B8_1", -3.3, scale=10.0),
        {"prototype": "B10", "elements": ["Na", "Cl"], "converged": False, "error": "ValueError"},
    ]
    raw.write_text("\n".join(map(json.dumps, records)))
    kept, dropped = generate._build_table(raw)
    assert kept["prototype"].tolist() == ["B1", "B2"]
    assert kept["spacegroup"].tolist() == [225, 221]
    assert dropped == {
        "failed": 1,
        "not converged": 1,
        "broke apart": 1,
        "too high in energy": 1,
        "duplicate": 1,
        "candidates": 7,
        "kept": 2,
    }


@pytest.mark.slow
def test_relaxation_recovers_rock_salt():
    """CHGNet's MgO has the lattice constant it has in the Materials Project, 4.2 to 4.3 Å."""
    generate._start_worker()
    record = generate._relax_candidate(("B1", ("Mg", "O")))
    assert record["converged"]
    volume = abs(np.linalg.det(record["cell"]))
    assert 4.2 < (4 * volume) ** (1 / 3) < 4.3
    assert "error" in generate._relax_candidate(("B1", ("Mg", "Xx")))
