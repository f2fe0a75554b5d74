"""Writers: what is read back is what was written, here and in ASE."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

import irlkit
from irlkit import data
from irlkit.crystals import CrystalBatch
from irlkit.data import writers
from irlkit.evaluate.metrics import MatchPool, evaluate
from tests.toys import integrate

PROVENANCE = {"model": "linear-ode", "seed": 3, "by": 'it\'s "q" \\ é', "more": {"steps": [1, 2]}}
PATHS = ["set.extxyz", "set.xyz", "set.parquet", "folder"]


@pytest.fixture
def table():
    return pd.DataFrame(
        {
            "material_id": ["17", "b 2", "c/3", "mp-4"],
            "rmsd": [0.125, np.nan, 1e-7, 2.0],
            "valid": [True, False, True, True],
            "n_matches": [1, 2, 3, 400],
            "note": ['"quoted" text', "{1 2}", "x=1, y", "1 2 3"],
        }
    )


def read(path):
    return data.load(path, niggli=False, cache=False, dtype=torch.float64)


@pytest.mark.parametrize("name", PATHS)
def test_round_trip(tmp_path, small_batch, table, name):
    batch = small_batch.standard_orientation()
    path = writers.write(tmp_path / "new" / name, batch, table, PROVENANCE)
    dataset = read(path)
    assert torch.equal(dataset.batch.species, batch.species)
    torch.testing.assert_close(dataset.batch.cell, batch.cell, rtol=1e-8, atol=1e-8)
    difference = dataset.batch.pos - batch.pos
    assert float((difference - difference.round()).abs().max()) < 1e-8
    if name == "folder":  # the ids are names of files
        assert dataset.table["material_id"].tolist() == ["17", "b_2", "c_3", "mp-4"]
    else:
        assert dataset.table["material_id"].tolist() == table["material_id"].tolist()
    for column in ("rmsd", "valid", "n_matches", "note"):
        pd.testing.assert_series_equal(dataset.table[column], table[column], check_dtype=False)
    assert [json.loads(entry) for entry in dataset.table["provenance"]] == [PROVENANCE] * 4


@pytest.mark.parametrize("name", PATHS)
def test_structures_without_a_table_are_numbered(tmp_path, small_batch, name):
    batch = small_batch.repeat(3).to(dtype=torch.float32)
    dataset = read(writers.write(tmp_path / name, batch))
    assert dataset.table["material_id"].tolist()[:2] == ["structure-00", "structure-01"]
    assert torch.equal(dataset.batch.n_atoms, batch.n_atoms)
    assert "provenance" not in dataset.table


def test_metrics_go_with_generated_structures(tmp_path):
    reference = data.load("prototypes", split="test").subset(3)
    model = irlkit.load_pretrained("linear-ode")
    generated = integrate(model, reference.batch, 3, generator=torch.Generator().manual_seed(0))
    with MatchPool(n_workers=0) as pool:
        metrics = evaluate(generated, reference, pool)
    dataset = read(writers.write(tmp_path / "g.parquet", generated, metrics.table, {"seed": 0}))
    for column in ("material_id", "formula", "n_atoms", "valid", "rmsd", "best_rmsd"):
        pd.testing.assert_series_equal(
            dataset.table[column], metrics.table[column], check_dtype=False
        )


def test_ase_reads_extended_xyz(tmp_path, small_batch):
    from ase.io import read as ase_read

    frames = ase_read(writers.write(tmp_path / "set.xyz", small_batch, None, PROVENANCE), ":")
    for atoms, expected in zip(frames, small_batch.to_ase(), strict=True):
        assert atoms.pbc.all()
        assert atoms.numbers.tolist() == expected.numbers.tolist()
        np.testing.assert_allclose(atoms.cell.array, expected.cell.array, atol=1e-9)
        np.testing.assert_allclose(atoms.positions, expected.positions, atol=1e-9)
        assert json.loads(atoms.info["provenance"]) == PROVENANCE


def test_pymatgen_reads_the_cifs(tmp_path, small_batch):
    from pymatgen.core import Structure

    folder = writers.write(tmp_path / "cifs", small_batch)
    for i, expected in enumerate(small_batch.to_structures()):
        structure = Structure.from_file(folder / f"structure-{i}.cif")
        assert structure.lattice.parameters == pytest.approx(expected.lattice.parameters)
        assert structure.atomic_numbers == expected.atomic_numbers
        np.testing.assert_allclose(structure.frac_coords, expected.frac_coords, atol=1e-8)


@pytest.mark.parametrize("name", ["a.cif", "a.extxyz", "a.parquet"])
def test_left_handed_cells_keep_their_handedness(tmp_path, name):
    pos = torch.tensor([[0, 0, 0], [0.3, 0.1, 0.05], [0.1, 0.4, 0.2], [0.25, 0.2, 0.7]])
    cell = torch.tensor([[4.0, 0, 0], [0.3, 5, 0], [0.2, 0.4, -6]])
    crystal = CrystalBatch(
        torch.tensor([3, 9, 17, 35]), pos.double(), cell[None].double(), torch.tensor([4])
    )

    def handedness(batch):
        pos = batch.pos[batch.species.argsort()]
        away = pos[1:] - pos[:1]
        return float(torch.linalg.det((away - away.round()) @ batch.cell[0]))

    again = read(writers.write(tmp_path / name, crystal)).batch
    assert handedness(again) == pytest.approx(handedness(crystal)) and handedness(again) > 1


def test_trajectory(tmp_path, small_batch):
    from ase.io import read as ase_read

    model = irlkit.load_pretrained("linear-ode")
    _, states = integrate(
        model, small_batch, 4, generator=torch.Generator().manual_seed(0), record=True
    )
    times = [0.0, 0.25, 0.5, 0.75, 1.0]
    path = writers.write_trajectory(tmp_path / "t.extxyz", states, 2, times, {"seed": 0})
    frames = ase_read(path, ":")
    assert [atoms.info["time"] for atoms in frames] == times
    assert [atoms.info["step"] for atoms in frames] == list(range(5))
    for atoms, state in zip(frames, states, strict=True):
        expected = state[2].to_ase()[0]
        assert atoms.numbers.tolist() == expected.numbers.tolist()
        np.testing.assert_allclose(atoms.positions, expected.positions, atol=1e-6)
    assert read(path).table["material_id"].tolist() == [f"step-{i}" for i in range(5)]


def test_structures_that_diverged_are_written_and_named_when_read(tmp_path, small_batch):
    pos = small_batch.pos.clone()
    pos[0] = torch.nan
    for name in PATHS:
        path = writers.write(tmp_path / name, small_batch.replace(pos=pos))
        with pytest.warns(UserWarning, match="1 of 4 records .* structure-0"):
            assert len(read(path)) == 3


def test_errors(tmp_path, small_batch, table):
    with pytest.raises(ValueError, match="table must have a row per structure: it has 3 rows"):
        writers.write(tmp_path / "a.xyz", small_batch, table[:3])
    twice = table.assign(material_id=["a", "b", "a", "c"])
    with pytest.raises(ValueError, match="the material_id 'a' occurs more than once"):
        writers.write(tmp_path / "a.xyz", small_batch, twice)
    with pytest.raises(ValueError, match="provenance must be what JSON can hold"):
        writers.write(tmp_path / "a.xyz", small_batch, None, {"x": object()})
    with pytest.raises(ValueError, match="structures must hold at least one structure"):
        writers.write(tmp_path / "a.xyz", small_batch[[]])
    writers.write(tmp_path / "cifs", small_batch)
    with pytest.raises(FileExistsError, match="has CIF files already"):
        writers.write(tmp_path / "cifs", small_batch)
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="is a file, not a folder"):
        writers.write(tmp_path / "file", small_batch)
    with pytest.raises(ValueError, match="a trajectory is written as"):
        writers.write_trajectory(tmp_path / "t.cif", [small_batch])
    with pytest.raises(ValueError, match="expected at least one state and as many times"):
        writers.write_trajectory(tmp_path / "t.xyz", [small_batch], times=[0.0, 1.0])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cifs", "file"]


def test_the_file_that_was_asked_for(tmp_path, small_batch):
    path = writers.write(tmp_path / "all.cif", small_batch)
    assert path.is_file()
    read = data.load(path, cache=False, niggli=False, progress=False)
    assert read.batch.formulas() == small_batch.formulas()
    assert read.table["material_id"].tolist() == [f"all-structure-{i}" for i in range(4)]
    for name in ("a.vasp", "a.json", "a.cif.gz", "POSCAR", "CONTCAR", "poscar_1"):
        with pytest.raises(ValueError, match="ends with none of"):
            writers.write(tmp_path / name, small_batch)
