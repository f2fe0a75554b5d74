"""The command line that judges structures from anywhere."""

import json

import numpy as np
import pandas as pd
import pytest

from irlkit.__main__ import main
from irlkit.data import load
from irlkit.data.writers import write
from tests.toy_potentials import LennardJonesToy


@pytest.fixture(scope="module")
def structures(tmp_path_factory):
    """Three known structures, one of them twice, and a file with one that cannot be read."""
    folder = tmp_path_factory.mktemp("structures")
    data = load("prototypes", progress=False)
    write(folder / "made.extxyz", data.batch.select([0, 0, 900, 4000]))
    entries = [s.as_dict() for s in data.select([0, 900]).structures]
    (folder / "made.json").write_text(json.dumps([*entries, {"sites": 3}]))
    return folder


def test_summary_and_table(structures, capsys, tmp_path):
    out = tmp_path / "new" / "table.csv"
    main(["evaluate", str(structures / "made.extxyz"), "--workers", "0", "-o", str(out)])
    text = capsys.readouterr().out
    assert "4 structures" in text and "unique " in text and "75.0 %" in text
    table = pd.read_csv(out)
    assert table["unique"].tolist() == [True, False, True, True]
    assert not table["novel"].any()


def test_records_that_cannot_be_read_are_failures(structures, capsys, tmp_path):
    out = tmp_path / "table.parquet"
    main(["evaluate", str(structures / "made.json"), "--workers", "0", "-o", str(out)])
    captured = capsys.readouterr()
    assert "3 structures, 1 of them could not be read" in captured.out
    assert "1 of 3 records" in captured.err
    table = pd.read_parquet(out)
    assert table["valid"].tolist() == [True, True, False]
    assert "keys ['sites']" in table["reason"][2]


def test_energies_with_an_own_hull(structures, capsys, tmp_path):
    formulas = load("prototypes", progress=False).batch.select([0, 900, 4000]).reduced_formulas()
    rows = [{"formula_pretty": f, "energy_per_atom": -100.0} for f in formulas[:1]]
    (tmp_path / "hull.json").write_text(json.dumps(rows))
    arguments = ["--potential", "chgnet", "--hull", str(tmp_path / "hull.json"), "--workers", "0"]
    out = tmp_path / "table.csv"
    main(["evaluate", str(structures / "made.extxyz"), *arguments, "-o", str(out)])
    text = capsys.readouterr().out
    assert "energies: chgnet-0.3.0" in text and "2 structures are not covered by the hull" in text
    table = pd.read_csv(out)
    assert (table["e_above_hull"][:2] > 90).all() and table["e_above_hull"][2:].isna().all()
    assert not table["metastable"].any() and np.isfinite(table["energy_per_atom"]).all()


def test_energies_of_a_potential_without_a_hull(structures, capsys, monkeypatch):
    """They are said, and that nothing is said of stability."""
    monkeypatch.setattr("irlkit.potentials.get", lambda name: LennardJonesToy())
    path = str(structures / "made.extxyz")
    main(["evaluate", path, "--potential", "toy", "--judge", "toy", "--workers", "0"])
    text = capsys.readouterr().out
    name = LennardJonesToy().name
    for option in ("--hull", "--judge-hull"):
        assert f"no hull is known for {name}, so nothing is said of stability: {option}" in text
    assert f"energies: {name}" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["made.extxyz", "-o", "table.xlsx"],
            r"out must end with .csv or .parquet, got 'table.xlsx'",
        ),
        (["none.extxyz"], "no data file"),
        (["made.extxyz", "--training-set", "nothing"], "unknown data set 'nothing'"),
        (["made.extxyz", "--judge", "chgnet"], "judge needs a potential"),
        (["made.extxyz", "--hull", "a.json"], "needs the potential of its energies"),
    ],
)
def test_words(structures, capsys, monkeypatch, arguments, words):
    monkeypatch.chdir(structures)
    with pytest.raises(SystemExit):
        main(["evaluate", *arguments])
    assert words in capsys.readouterr().err
