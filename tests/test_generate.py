"""Formulas in, relaxed and ranked structures out."""

import pandas as pd
import pytest

from irlkit.__main__ import main as irlkit
from irlkit.data import load
from irlkit.lab.generate import generate
from irlkit.networks.pretrained import load_pretrained


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


@pytest.mark.parametrize(
    ("model", "units"),
    [
        ("linear-ode", {"MgO": [1, 1, 2, 4], "SrTiO3": [1, 1, 2, 2], "K2PtCl6": [1] * 4}),
        ("auto", {"MgO": [1, 1, 2, 4], "SrTiO3": [1, 1, 2, 4], "K2PtCl6": [1, 1, 2, 2]}),
    ],
)
def test_formula_units_are_those_that_the_model_knows(model, units):
    """They were trained on cells of up to 12 and up to 28 atoms."""
    _, table, _ = generate([*units], 4, model=model, n_steps=2, relax=False)
    assert table.groupby("formula")["z"].agg(lambda z: sorted(z)).to_dict() == units
    by = table.drop_duplicates("formula").set_index("formula")["model"].to_dict()
    large = "linear-ode-28" if model == "auto" else "linear-ode"
    assert by == {"MgO": "linear-ode", "SrTiO3": large, "K2PtCl6": large}


def test_formulas_of_several_models_do_not_change_each_other():
    """The structures of the first model's formulas, whatever else is asked for."""
    options = {"n_steps": 3, "relax": False, "z": (1,)}
    alone, _, _ = generate(["MgO", "ZnS"], 3, **options)
    found, table, _ = generate(["LiFePO4", "MgO", "ZnS"], 3, **options)
    assert table["formula"].tolist() == ["LiFePO4"] * 3 + ["MgO"] * 3 + ["ZnS"] * 3
    assert table["model"].nunique() == 2
    kept = found[(table["model"] == "linear-ode").to_numpy()]
    assert kept.formulas() == alone.formulas()
    assert kept.pos.equal(alone.pos) and kept.cell.equal(alone.cell)
    assert table["z"].eq(1).all() and found[0].formulas() == ["Fe1 Li1 O4 P1"]


def test_a_model_of_the_callers_own():
    found, table, _ = generate(
        ["MgO"], 2, model=load_pretrained("trig-sde-gamma"), n_steps=2, relax=False
    )
    assert set(table["model"]) == {"given"} and sorted(found.n_atoms.tolist()) == [2, 4]


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
    arguments = ["generate", "Dy", "-n", "2", "--model", "linear-ode", "-o", str(tmp_path)]
    irlkit(arguments)
    printed = capsys.readouterr()
    assert "Dy1 is beyond the training data of the model linear-ode: none has Dy" in printed.err
    assert "Dy: by linear-ode" in printed.out
    with pytest.raises(SystemExit):
        irlkit(arguments)
    assert "has structures of an earlier run" in capsys.readouterr().err
