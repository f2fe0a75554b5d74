"""Readers of every kind of file: round trips, broken input, refusals, lazy passes."""

import json
import os
import pickle
import shutil
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from pymatgen.core import Lattice, Structure

from irlkit import data
from irlkit.crystals import CrystalBatch
from irlkit.data import _files, _unpickling, loading, readers


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    """A cache of its own for each test."""
    monkeypatch.setenv("IRLKIT_CACHE", str(tmp_path / "cache"))


def rock_salt(cation, anion, a):
    matrix = np.array([[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]) * a
    return Structure(Lattice(matrix), [cation, anion], [[0, 0, 0], [0.5, 0.5, 0.52]])


STRUCTURES = [rock_salt("Na", "Cl", 5.6), rock_salt("Mg", "O", 4.2), rock_salt("K", "Br", 6.6)]


def assert_same(dataset, structures=STRUCTURES):
    """Same species, lengths, angles and positions up to the orientation of the cell."""
    expected = CrystalBatch.from_structures(structures, torch.float64).standard_orientation()
    assert torch.equal(dataset.batch.species, expected.species)
    torch.testing.assert_close(dataset.batch.cell, expected.cell, rtol=1e-6, atol=1e-6)
    difference = dataset.batch.pos - expected.pos
    assert float((difference - difference.round()).abs().max()) < 1e-6


def load(path, **more):
    return data.load(path, niggli=False, dtype=torch.float64, progress=False, **more)


def load_parts(path, **more):
    return data.load_parts(path, niggli=False, dtype=torch.float64, **more)


# --- LMDB ---


def omatg_record(structure, **more):
    return {
        "pos": torch.tensor(structure.cart_coords),
        "cell": torch.tensor(structure.lattice.matrix),
        "atomic_numbers": torch.tensor(structure.atomic_numbers, dtype=torch.int32),
        "pbc": torch.ones(3, dtype=torch.int32),
        **more,
    }


def write_lmdb(path, records, subdir=False):
    lmdb = pytest.importorskip("lmdb")
    with (
        lmdb.open(str(path), subdir=subdir, map_size=1 << 24, lock=False) as environment,
        environment.begin(write=True) as transaction,
    ):
        for key, record in records.items():
            value = record if isinstance(record, bytes) else pickle.dumps(record)
            transaction.put(key.encode(), value)
    return path


def test_lmdb(tmp_path):
    path = write_lmdb(
        tmp_path / "set.lmdb",
        {str(i): omatg_record(s, band_gap=torch.tensor(0.5 * i)) for i, s in enumerate(STRUCTURES)},
    )
    dataset = load(path)
    assert_same(dataset)
    assert dataset.table["material_id"].tolist() == ["0", "1", "2"]
    assert dataset.table["band_gap"].tolist() == [0.0, 0.5, 1.0]
    assert load(path).table["band_gap"].tolist() == [0.0, 0.5, 1.0]  # from the cache


def test_lmdb_keys_are_numbers_and_names_are_kept(tmp_path):
    many = [rock_salt("Na", "Cl", 5 + 0.1 * i) for i in range(12)]
    records = {str(i): omatg_record(s, identifier=f"mp-{i}") for i, s in enumerate(many)}
    dataset = load(write_lmdb(tmp_path / "folder.lmdb", records, subdir=True))
    assert_same(dataset, many)
    assert dataset.table["material_id"].tolist() == [f"mp-{i}" for i in range(12)]


def test_lmdb_with_fractional_positions_and_other_precisions(tmp_path):
    record = omatg_record(STRUCTURES[0], pos_is_fractional=True)
    record["pos"] = torch.tensor(STRUCTURES[0].frac_coords, dtype=torch.float32)
    assert_same(load(write_lmdb(tmp_path / "set.lmdb", {"0": record})), STRUCTURES[:1])


def test_lmdb_of_omatg(shared_data, tmp_path):
    path = shutil.copy(shared_data / "omatg_carbon.lmdb", tmp_path)
    dataset = load(path)
    assert len(dataset) == 3 and set(dataset.table["formula"]) == {"C"}
    for structure in dataset.structures:  # no bond of carbon is shorter
        distances = structure.distance_matrix[np.triu_indices(len(structure), 1)]
        assert 1.2 < distances.min() < 1.7


@pytest.mark.parametrize("content", [b"junk" * 3000, b"\0" * 8192])
def test_broken_lmdb(tmp_path, content):
    pytest.importorskip("lmdb")
    path = tmp_path / "set.lmdb"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot read .*set.lmdb as an LMDB file"):
        load(path)


def test_truncated_lmdb(tmp_path):
    records = {str(i): omatg_record(STRUCTURES[i % 3]) for i in range(40)}
    path = write_lmdb(tmp_path / "set.lmdb", records)
    path.write_bytes(path.read_bytes()[:16384])
    with pytest.raises(ValueError, match=r"set.lmdb is truncated: it has 16384 bytes"):
        load(path)


def test_bad_lmdb_records_are_skipped_and_named(tmp_path):
    good = pickle.dumps(omatg_record(STRUCTURES[0]))
    records = {
        "0": good,
        "1": good[: len(good) // 2],
        "2": [1, 2],
        "3": {"pos": torch.zeros(1, 3)},
        "4": omatg_record(STRUCTURES[1]) | {"cell": torch.zeros(3, 3)},
        "5": omatg_record(STRUCTURES[1]) | {"pos": torch.zeros(5)},
    }
    with pytest.warns(UserWarning, match="5 of 6 records"):
        dataset = load(write_lmdb(tmp_path / "set.lmdb", records))
    assert dataset.table["material_id"].tolist() == ["0"]
    reasons = {entry.record: entry.reason for entry in dataset.skipped}
    assert sorted(reasons) == ["1", "2", "3", "4", "5"]
    assert "not a readable pickle" in reasons["1"]
    assert "it must be a dictionary with" in reasons["2"]
    assert "found ['pos']" in reasons["3"]
    assert "span no volume" in reasons["4"]


def test_lmdb_needs_no_package(tmp_path, monkeypatch):
    path = write_lmdb(tmp_path / "set.lmdb", {"0": omatg_record(STRUCTURES[0])})
    monkeypatch.setitem(__import__("sys").modules, "lmdb", None)
    assert_same(load(path), STRUCTURES[:1])


def test_lmdb_values_of_every_size(tmp_path):
    """Values within a page, on pages of their own, and a tree of several levels."""
    records = {str(i): omatg_record(STRUCTURES[i % 3], note="x" * 37 * i) for i in range(300)}
    lengths = load(write_lmdb(tmp_path / "set.lmdb", records)).table["note"].str.len()
    assert lengths.tolist() == [37 * i for i in range(300)]


# --- pickles ---


class Calls:
    """Unpickling it calls a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def attacks(trace):
    """Pickles that would create the file `trace`."""
    inner = pickle.dumps(Calls(os.system, f"touch {trace}"))
    storage = Calls(torch.storage._load_from_bytes, inner)
    yield pickle.dumps({"pos": Calls(os.system, f"touch {trace}")})
    yield pickle.dumps({"pos": Calls(eval, f"open({str(trace)!r}, 'w')")})
    yield pickle.dumps({"pos": Calls(Path.touch, trace)})
    yield pickle.dumps({"pos": storage})
    # In the pickle that torch keeps within a tensor, and as arguments of allowed functions.
    yield pickle.dumps(Calls(torch._utils._rebuild_tensor_v2, storage, 0, (1,), (1,), False, {}))
    yield b"cos\nsystem\n(S'touch " + str(trace).encode() + b"'\ntR."
    # Replaces the function behind an allowed name: the state of BUILD becomes its attributes.
    yield b"ctorch._utils\n_rebuild_tensor_v2\n(dS'_function'\ncos\nsystem\nsb."


def test_malicious_pickles_execute_nothing(tmp_path):
    trace = tmp_path / "trace"
    for k, attack in enumerate(attacks(trace)):
        with pytest.raises(ValueError, match="refused: it holds"):
            _unpickling.loads(attack)
        assert not trace.exists()
        records = {"0": omatg_record(STRUCTURES[0]), "1": attack}
        with pytest.warns(UserWarning, match=r"1 of 2 records .*: 1 \(refused: it holds"):
            assert len(load(write_lmdb(tmp_path / f"{k}.lmdb", records))) == 1
        assert not trace.exists()
    pickle.loads(next(attacks(trace)))  # what it would have done
    assert trace.exists()


def test_pickles_cannot_change_the_functions_they_call():
    for state in (b"(dS'a'\nI1\ns", b"(N(dS'_function'\nI1\nst"):
        with pytest.raises(ValueError, match="changes what it must only call"):
            _unpickling.loads(b"ctorch._utils\n_rebuild_tensor_v2\n" + state + b"b.")


def test_pickles_of_plain_data():
    record = {
        "a": [1, 2.5, "text", None, True, (1, 2)],
        "b": torch.arange(6.0).view(2, 3).T,
        "c": torch.zeros(0, dtype=torch.int64),
        "d": np.float64(1.5),
        "e": np.int32(-3),
        "f": torch.tensor([True, False]),
        "g": torch.ones(2, dtype=torch.bfloat16),
    }
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        read = _unpickling.loads(pickle.dumps(record, protocol))
        assert read["a"] == record["a"] and (read["d"], read["e"]) == (1.5, -3)
        for name in "bcfg":
            assert torch.equal(read[name], record[name]) and read[name].dtype == record[name].dtype


def test_tensors_reach_no_memory_but_their_own():
    content = pickle.dumps(torch.zeros(4))
    assert content.count(b"K\x04\x85") == 1  # the size (4,)
    with pytest.raises(ValueError, match="out of bounds"):
        _unpickling.loads(content.replace(b"K\x04\x85", b"K\x7f\x85"))


@pytest.mark.parametrize("value", [Path("x"), np.zeros(3), np.datetime64("2020"), 1j])
def test_other_objects_are_refused_by_name(value):
    with pytest.raises(ValueError, match="refused"):
        _unpickling.loads(pickle.dumps({"x": value}))


# --- parquet ---


def test_parquet_of_colabfit(tmp_path):
    table = pd.DataFrame(
        {
            "atomic_numbers": [list(s.atomic_numbers) for s in STRUCTURES],
            "positions": [s.cart_coords.tolist() for s in STRUCTURES],
            "cell": [s.lattice.matrix.tolist() for s in STRUCTURES],
            "pbc": [[True] * 3] * 3,
            "energy": [-1.0, -2.0, -3.0],
            "configuration_id": ["CO_1", "CO_2", "CO_3"],
        }
    )
    table.to_parquet(tmp_path / "set.parquet")
    dataset = load(tmp_path / "set.parquet")
    assert_same(dataset)
    assert dataset.table["material_id"].tolist() == ["CO_1", "CO_2", "CO_3"]
    assert dataset.table["energy"].tolist() == [-1.0, -2.0, -3.0]
    assert "pbc" not in dataset.table


@pytest.mark.parametrize(
    ("column", "convert"),
    [
        ("cif", lambda s: s.to(fmt="cif")),
        ("structure", lambda s: json.dumps(s.as_dict())),
        ("structure", lambda s: s.as_dict()),
    ],
    ids=["cif", "json", "dictionary"],
)
def test_parquet_with_a_structure_column(tmp_path, column, convert):
    entries = [convert(s) for s in STRUCTURES]
    if isinstance(entries[0], dict):  # parquet has no empty dictionaries
        entries = [json.loads(json.dumps(e).replace("{}", "null")) for e in entries]
    table = pd.DataFrame({"material_id": ["a", "b", "c"], column: entries, "gap": [1.0, 2.0, None]})
    table.to_parquet(tmp_path / "set.parquet")
    dataset = load(tmp_path / "set.parquet")
    assert_same(dataset)
    assert dataset.table["gap"].isna().tolist() == [False, False, True]


def test_broken_parquet(tmp_path):
    path = tmp_path / "set.parquet"
    path.write_bytes(b"PAR1 junk")
    with pytest.raises(ValueError, match=r"cannot read .* as a parquet table"):
        load(path)
    pd.DataFrame({"a": [1]}).to_parquet(path)
    with pytest.raises(ValueError, match=r"must have a column named cif or structure, or the col"):
        load(path)
    table = pd.DataFrame(
        {
            "species": [[11, 17], [8], None],
            "pos": [[0.0, 0, 0, 0.5, 0.5, 0.5], [0.0, 0.0], None],
            "cell": [np.eye(3).ravel() * 4] * 3,
        }
    )
    table.to_parquet(path)
    with pytest.warns(UserWarning, match=r"2 of 3 records .*: set-1 \(its arrays do not make"):
        assert len(load(path)) == 1


# --- extended XYZ ---


def write_xyz(path, structures=STRUCTURES, **info):
    from ase.io import write
    from pymatgen.io.ase import AseAtomsAdaptor

    atoms = [AseAtomsAdaptor.get_atoms(s, msonable=False) for s in structures]
    for i, entry in enumerate(atoms):
        entry.info = {key: values[i] for key, values in info.items()}
    write(path, atoms, format="extxyz")
    return path


@pytest.mark.parametrize("name", ["set.extxyz", "set.xyz"])
def test_extxyz(tmp_path, name):
    path = write_xyz(tmp_path / name, energy_per_atom=[-1.0, -2.5, 3.0], id=["a", "b", "c d"])
    dataset = load(path)
    assert_same(dataset)
    assert dataset.table["material_id"].tolist() == ["a", "b", "c d"]
    assert dataset.table["energy_per_atom"].tolist() == [-1.0, -2.5, 3.0]


def test_broken_extxyz(tmp_path):
    path = write_xyz(tmp_path / "set.xyz")
    frames = path.read_text().split("\n2\n")
    frames[1] = frames[1].replace("O ", "Qq ")
    whole = "\n2\n".join(frames)
    path.write_text(whole[: whole.rindex("\n", 0, -1) + 1])
    with pytest.warns(UserWarning, match="2 of 3 records") as caught:
        dataset = load(path)
    assert dataset.table["material_id"].tolist() == ["set-0"]
    assert "set-1" in str(caught[0].message)
    assert "set-2 (the file ends within its 2 atoms)" in str(caught[0].message)
    path.write_text("2\nno cell here\nNa 0 0 0\nCl 1 1 1\nrubbish\n")
    with pytest.raises(ValueError, match=r"none of the 2 records .*not periodic in three"):
        load(path)
    path.write_bytes(b"\x1f\x8b\x00binary")
    with pytest.raises(ValueError, match=r"cannot read .* as extended XYZ"):
        load(path)


# --- files and folders ---


def test_folder_of_structure_files(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "a.cif").write_text(STRUCTURES[0].to(fmt="cif"))
    (folder / "b.vasp").write_text(STRUCTURES[1].to(fmt="poscar"))
    (folder / "POSCAR_c").write_text(STRUCTURES[2].to(fmt="poscar"))
    (folder / "notes.md").write_text("not a structure")
    dataset = load(folder)
    assert dataset.name == "mine"
    assert dataset.table["material_id"].tolist() == ["POSCAR_c", "a", "b"]
    assert_same(dataset, [STRUCTURES[2], *STRUCTURES[:2]])
    (folder / _files.TABLE).write_text("material_id,gap\nb,2.0\na,1.0\n")
    dataset = load(folder)  # the cache follows the content
    assert dataset.table["material_id"].tolist() == ["b", "a", "POSCAR_c"]
    assert dataset.table["gap"].tolist()[:2] == [2.0, 1.0]
    assert_same(load(folder / "a.cif"), STRUCTURES[:1])
    assert_same(load(folder / "POSCAR_c"), STRUCTURES[2:])


def test_broken_structure_files(tmp_path):
    with pytest.raises(ValueError, match="is a folder without CIF or POSCAR files"):
        load(tmp_path)
    (tmp_path / "a.cif").write_text(STRUCTURES[0].to(fmt="cif"))
    (tmp_path / "b.cif").write_text("data_b\n_cell_length_a nonsense\n")
    (tmp_path / "c.cif").write_bytes(b"\xff\xfe\xfd")
    (tmp_path / "d.cif").touch()
    with pytest.warns(UserWarning, match=r"3 of 4 records of .* were skipped: b \(.*c \(it begins"):
        dataset = load(tmp_path)
    assert dataset.table["material_id"].tolist() == ["a"]
    assert [entry.record for entry in dataset.skipped] == ["b", "c", "d"]
    (tmp_path / _files.TABLE).write_text("gap\n1.0\n")
    with pytest.raises(ValueError, match="cannot read the table"):
        load(tmp_path)


# --- formulas ---


def test_formulas():
    dataset = data.load(["LiMn3O4", "NaCl"], z=[2, 1])
    assert dataset.batch.formulas() == ["Li2 Mn6 O8", "Cl1 Na1"]
    assert dataset.table["material_id"].tolist() == ["LiMn3O4-z2", "NaCl-z1"]
    assert dataset.table["formula"].tolist() == ["LiMn3O4", "NaCl"]
    assert data.load(["TiO2"]).batch.n_atoms.tolist() == [3]
    names = data.load(["TiO2", "MgO", "TiO2", "TiO2"]).table["material_id"].tolist()
    assert names == ["TiO2-z1", "MgO-z1", "TiO2-z1-2", "TiO2-z1-3"]
    assert data.load(["TiO2"], max_atoms=13).batch.n_atoms.tolist() == [3, 6, 9, 12]
    with pytest.warns(UserWarning, match=r"2 of 3 records .*: Xy2 \(.*LiMn3O4 \(1 x 8 atoms"):
        dataset = data.load(["Xy2", "LiMn3O4", "NaCl"], max_atoms=4)
    assert dataset.table["z"].tolist() == [1, 2]


def test_file_of_formulas(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("# to predict\nLiMn3O4 2\n\nNa4 Cl4  # eight atoms\n")
    dataset = data.load(path)
    assert dataset.name == "mine"
    assert dataset.batch.n_atoms.tolist() == [16, 8]
    path.write_text("TiO2\n")
    assert data.load(path, z=2).batch.n_atoms.tolist() == [6]
    path.write_bytes(b"PK\x03\x04")
    with pytest.raises(ValueError, match=r"cannot read .* as a list of formulas: it is a zip"):
        data.load(path)
    path.write_text("# nothing\n")
    with pytest.raises(ValueError, match=r"the data file .*mine.txt is empty"):
        data.load(path)


def test_formulas_are_no_references():
    from irlkit.evaluate.metrics import evaluate

    dataset = data.load(["NaCl"], z=1)
    assert "1 structures, 1 compositions" in repr(dataset)
    with pytest.raises(ValueError, match="holds compositions without structures"):
        dataset.select([0]).references()
    with pytest.raises(ValueError, match="holds compositions alone"):
        evaluate(dataset.batch, dataset)


def test_wrong_formulas(tmp_path):
    with pytest.raises(ValueError, match="none of the 1 gave a composition: Zz "):
        data.load(["Zz"])
    with pytest.raises(ValueError, match="z must be one number or one per formula, got 2 for 1"):
        data.load(["NaCl"], z=[1, 2])
    with pytest.raises(ValueError, match="z must be a positive number of formula units"):
        data.load(["NaCl"], z=0)
    with pytest.raises(ValueError, match="formulas have no splits"):
        data.load(["NaCl"], split="train")
    with pytest.raises(ValueError, match="z is for formulas only"):
        data.load("prototypes", z=2)


# --- parts ---


def binaries():
    cations = ["Li", "Na", "K", "Rb", "Cs", "Be", "Mg", "Ca"]
    anions = ["H", "N", "O", "F", "S", "Cl"]
    return [rock_salt(c, a, 5.0) for c in cations for a in anions]


def test_parts_make_the_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "CHUNK_ROWS", 7)
    structures = binaries()
    path = write_xyz(tmp_path / "set.xyz", structures)
    whole = load(path, cache=False)
    for _ in range(2):  # every pass is a new one
        parts = list(load_parts(path))
        assert [len(part) for part in parts] == [7] * 6 + [6]
        together = CrystalBatch.concatenate([part.batch for part in parts])
        assert torch.equal(together.pos, whole.batch.pos)
        ids = pd.concat([part.table["material_id"] for part in parts])
        assert ids.tolist() == whole.table["material_id"].tolist()
    for split in ("train", "val", "test"):
        expected = load(path, split=split, cache=False).table["material_id"].tolist()
        found = [i for part in load_parts(path, split=split) for i in part.table["material_id"]]
        assert found == expected
    assert list(load_parts(path, max_atoms=1)) == []


def test_passes_count_what_they_skip(tmp_path):
    records = {str(i): omatg_record(s) for i, s in enumerate(STRUCTURES)} | {"3": {"a": 1}}
    path = write_lmdb(tmp_path / "set.lmdb", records)
    with pytest.warns(UserWarning, match=r"1 of 4 records .* were skipped: 3 \("):
        (part,) = load_parts(path)
    assert len(part) == 3
    assert [entry.record for entry in part.skipped] == ["3"]


def test_parts_of_split_columns(tmp_path):
    table = pd.DataFrame({"cif": [s.to(fmt="cif") for s in STRUCTURES], "split": ["a", "b", "a"]})
    table.to_csv(tmp_path / "set.csv", index=False)
    (part,) = load_parts(tmp_path / "set.csv", split="a")
    assert part.table["formula"].tolist() == ["NaCl", "KBr"]
    with pytest.raises(ValueError, match=r"split must be one of \['a', 'b'\]"):
        list(load_parts(tmp_path / "set.csv", split="A1"))
    with pytest.raises(ValueError, match="split must be one of"):
        list(load_parts(write_xyz(tmp_path / "set.xyz"), split="dev"))


def test_only_a_part_of_a_table_is_in_memory(tmp_path, monkeypatch):
    """The reader is never asked for more than one chunk ahead."""
    monkeypatch.setattr(readers, "CHUNK_ROWS", 4)
    table = pd.DataFrame({"cif": [s.to(fmt="cif") for s in binaries()]})
    table.to_csv(tmp_path / "set.csv.gz", index=False)
    read = []
    original = readers.read_chunks

    def watched(reader, path):
        for records in original(reader, path):
            read.append(len(records.payloads))
            yield records

    monkeypatch.setattr(loading, "read_chunks", watched)
    for k, part in enumerate(load_parts(tmp_path / "set.csv.gz"), start=1):
        assert len(part) == 4 and len(read) == k
    assert read == [4] * 12


def test_no_warning_without_reason(tmp_path):
    path = write_xyz(tmp_path / "set.xyz")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        load(path)
