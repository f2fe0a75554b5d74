"""Formulas in, relaxed and ranked structures out."""

import pandas as pd
import pytest

from irlkit.__main__ import main as irlkit
from irlkit.data import load
from irlkit.lab.generate import generate


def test_textbook_structures_are_found(tmp_path, capsys):
    """Rock salt and perovskite, from the command line, with files that are read again."""
    folder = tmp_path / "out {braces}"
    irlkit(["generate", "NaCl", "SrTiO3", "-n", "8", "--relax", "-o", str(folder)])
    table = pd.read_csv(folder / "structures.csv")
    best = table[table["rank"] == 1].set_index("formula")
    assert best["space_group"].to_dict() == {"NaCl": "Fm-3m", "SrTiO3": "Pm-3m"}
    assert (best["known"] == 0).all() and best["converged"].all()
    assert (table["above_lowest"] >= 0).all() and len(table) == 16
    for formula, rows in table.groupby("formula"):
        energy = rows["energy_per_atom"]  # those within 1 meV/atom by symmetry
        assert (energy.diff().dropna() > -1e-3).all(), formula
        assert energy.iloc[0] <= energy.min() + 1e-3
    again = load(folder / "structures.extxyz", progress=False).batch
    assert again.reduced_formulas() == ["NaCl"] * 8 + ["SrTiO3"] * 8
    assert len(list((folder / "cifs").glob("*.cif"))) == 16
    assert "16 structures" in capsys.readouterr().out


def test_several_formula_units_and_no_relaxation():
    found, table, _ = generate(["MgO"], 5, z=(1, 2), annealing="rule", n_steps=5, relax=False)
    assert sorted(found.n_atoms.tolist()) == [2, 2, 2, 4, 4]
    assert (table["z"] * 2).tolist() == found.n_atoms.tolist()
    assert not table["converged"].any()
    again, _, _ = generate(["MgO"], 5, z=(1, 2), annealing="rule", n_steps=5, relax=False)
    assert found.cell.equal(again.cell) and found.pos.equal(again.pos)


def test_formula_units_are_those_that_the_model_knows():
    """It was trained on cells of up to 12 atoms."""
    options = {"annealing": "rule", "n_steps": 2, "relax": False}
    _, table, _ = generate(["MgO", "SrTiO3", "LiFePO4"], 4, **options)
    units = table.groupby("formula")["z"].agg(lambda z: sorted(z)).to_dict()
    assert units == {"MgO": [1, 1, 2, 4], "SrTiO3": [1, 1, 2, 2], "LiFePO4": [1] * 4}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["Xx2"], "Xx2"),
        (["NaCl", "--model", "nothing"], "neither a file nor"),
        (["NaCl", "--annealing", "nothing"], "nothing"),
        (["FrCl"], "does not know the elements Fr"),
        (["NaCl", "-o", __file__], "cannot be written to"),
    ],
)
def test_mistakes_in_words(arguments, message, capsys):
    with pytest.raises(SystemExit):
        irlkit(["generate", *arguments])
    assert message in capsys.readouterr().err


def test_an_earlier_run_is_kept_and_unseen_elements_are_said(tmp_path, capsys):
    arguments = ["generate", "Dy", "-n", "2", "--annealing", "none", "-o", str(tmp_path)]
    irlkit(arguments)
    assert "Dy1 is beyond the training data of the model: none has Dy" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        irlkit(arguments)
    assert "has structures of an earlier run" in capsys.readouterr().err
