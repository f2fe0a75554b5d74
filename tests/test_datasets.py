"""Data sets: readers, splits, cache, and what bad files lead to."""

import gzip
import json
import random
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from pymatgen.core import DummySpecies, Lattice, Structure

from irlkit import data
from irlkit.crystals import CrystalBatch
from irlkit.data import _cache, _parsing, _tables, loading, readers
from irlkit.utils import system


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    """A cache of its own for each test."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("IRLKIT_CACHE", str(folder))
    return folder


def rock_salt(cation, anion, a, length=1.0):
    """Rock salt in its primitive cell; `length` stretches the first vector."""
    matrix = np.array([[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]) * a
    matrix[0] *= length
    return Structure(Lattice(matrix), [cation, anion], [[0, 0, 0], [0.5, 0.5, 0.5]])


STRUCTURES = [
    rock_salt("Na", "Cl", 5.6),
    rock_salt("Mg", "O", 4.2),
    rock_salt("Na", "Cl", 5.8, length=1.1),
]


def write_csv(
    path, structures, column="cif", text=lambda structure: structure.to(fmt="cif"), **more
):
    """A table with the structures as text (or other strings as they are)."""
    cells = [entry if isinstance(entry, str) else text(entry) for entry in structures]
    table = pd.DataFrame({"material_id": [f"m-{i}" for i in range(len(cells))], column: cells})
    table.assign(**more).to_csv(path)
    return path


@pytest.mark.parametrize("name", ["set.csv", "set.csv.gz"])
def test_load_csv(tmp_path, name):
    path = write_csv(tmp_path / name, STRUCTURES, **{"spacegroup.number": [225, 225, 12]})
    dataset = data.load(path)
    assert dataset.name == "set"
    assert dataset.split is None
    assert len(dataset) == 3
    assert list(dataset.table.columns) == ["material_id", "formula", "n_atoms", "spacegroup"]
    assert dataset.table["material_id"].tolist() == ["m-0", "m-1", "m-2"]
    assert dataset.table["formula"].tolist() == ["NaCl", "MgO", "NaCl"]
    assert dataset.table["n_atoms"].tolist() == [2, 2, 2]
    assert dataset.table["spacegroup"].tolist() == [225, 225, 12]
    assert dataset.batch.dtype == torch.float32
    assert "3 structures, 2 compositions, 0 skipped" in repr(dataset)
    for structure, original in zip(dataset.structures, STRUCTURES, strict=True):
        assert structure.volume == pytest.approx(original.volume, rel=1e-5)
    assert dataset.structures is dataset.structures


def test_gzip_is_seen_from_the_content(tmp_path):
    path = write_csv(tmp_path / "set.csv", STRUCTURES)
    path.write_bytes(gzip.compress(path.read_bytes()))
    assert len(data.load(path)) == 3


@pytest.mark.parametrize(
    "text",
    [
        lambda structure: structure.to(fmt="cif"),
        lambda structure: structure.to(fmt="poscar"),
        lambda structure: json.dumps(structure.as_dict()),
        lambda structure: str(structure.as_dict()),
    ],
    ids=["cif", "poscar", "json", "python"],
)
def test_structure_column(tmp_path, text):
    path = write_csv(tmp_path / "set.csv", STRUCTURES, column="structure", text=text)
    dataset = data.load(path, dtype=torch.float64)
    assert dataset.batch.species.tolist() == [11, 17, 12, 8, 11, 17]
    expected = [structure.volume for structure in STRUCTURES]
    np.testing.assert_allclose(dataset.batch.volume, expected, rtol=1e-6)


def test_ids_and_missing_values(tmp_path):
    path = tmp_path / "set.csv"
    table = pd.DataFrame({"cif": [STRUCTURES[0].to(fmt="cif")] * 2, "name": ["NaN", "NaCl"]})
    table.assign(gap=[np.nan, 1.0]).to_csv(path, index=False, na_rep="nan")
    dataset = data.load(path)
    assert dataset.table["material_id"].tolist() == ["set-0", "set-1"]
    assert dataset.table["name"].tolist() == ["NaN", "NaCl"]
    assert dataset.table["gap"].isna().tolist() == [True, False]


@pytest.mark.parametrize("missing", ["NA", "NaN", "None", "null", "n/a", ""])
def test_what_is_missing_leaves_numbers_numbers(tmp_path, missing):
    columns = {"energy_per_atom": ["-1.5", missing, "-2"]}
    path = write_csv(tmp_path / "set.csv", STRUCTURES, **columns)
    found = data.load(path).table["energy_per_atom"]
    assert found.dtype == float and found.fillna(7).tolist() == [-1.5, 7, -2]


def test_niggli_reduction_and_orientation(tmp_path):
    conventional = Structure.from_spacegroup(
        "Fm-3m", Lattice.cubic(5.6), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]
    )
    skewed = conventional.copy()
    skewed.make_supercell([[1, 0, 0], [1, 1, 0], [0, 2, 1]])
    path = write_csv(tmp_path / "set.csv", [skewed])
    reduced = data.load(path, dtype=torch.float64)
    torch.testing.assert_close(reduced.batch.cell[0], 5.6 * torch.eye(3).double())
    assert reduced.structures[0].matches(conventional)
    given = data.load(path, niggli=False, dtype=torch.float64)
    assert given.structures[0].lattice.parameters == pytest.approx(skewed.lattice.parameters)
    for batch in (reduced.batch, given.batch):
        assert torch.equal(batch.cell, batch.cell.tril())
        assert ((batch.pos >= 0) & (batch.pos < 1)).all()


def test_max_atoms(tmp_path):
    double = STRUCTURES[1] * (2, 1, 1)
    path = write_csv(tmp_path / "set.csv", [STRUCTURES[0], double])
    assert len(data.load(path, max_atoms=4)) == 2
    small = data.load(path, max_atoms=3)
    assert small.table["material_id"].tolist() == ["m-0"]
    assert small.batch.n_atoms.tolist() == [2]
    with pytest.raises(ValueError, match="max_atoms must be at least 1, got 0"):
        data.load(path, max_atoms=0)
    with pytest.raises(ValueError, match="max_atoms=1; it has 2 structures of 2 to 4 atoms"):
        data.load(path, max_atoms=1)


def many_binaries():
    """Two polymorphs each of 100 compositions."""
    cations = ["Li", "Na", "K", "Rb", "Cs", "Be", "Mg", "Ca", "Sr", "Ba"]
    anions = ["H", "N", "O", "F", "S", "Cl", "Se", "Br", "Te", "I"]
    return [
        rock_salt(cation, anion, 5, length)
        for cation in cations
        for anion in anions
        for length in (1.0, 1.1)
    ]


def test_splits_keep_polymorphs_together(tmp_path):
    structures = many_binaries()
    path = write_csv(
        tmp_path / "set.csv",
        structures,
        column="structure",
        text=lambda structure: structure.to(fmt="poscar"),
    )
    parts = {split: data.load(path, split) for split in ("train", "val", "test")}
    assert sum(map(len, parts.values())) == len(structures)
    ids = pd.concat([part.table["material_id"] for part in parts.values()])
    assert ids.is_unique
    formulas = [set(part.table["formula"]) for part in parts.values()]
    assert sum(map(len, formulas)) == len(set.union(*formulas)) == 100
    assert 70 <= len(formulas[0]) <= 90
    assert min(map(len, formulas)) > 2
    assert parts["val"].split == "val"
    assert parts["val"].batch.reduced_formulas() == parts["val"].table["formula"].tolist()
    again = data.load(path, "test", cache=False)
    assert again.table["material_id"].tolist() == parts["test"].table["material_id"].tolist()


def test_one_composition_is_split_by_record(tmp_path):
    structures = [rock_salt("Na", "Cl", 5 + 0.01 * i) for i in range(60)]
    path = write_csv(tmp_path / "set.csv", structures)
    sizes = [len(data.load(path, split)) for split in ("train", "val", "test")]
    assert sum(sizes) == 60
    assert sizes[0] > 40


def test_split_column_is_used(tmp_path):
    path = write_csv(tmp_path / "set.csv", STRUCTURES, split=["a", "b", "a"])
    assert data.load(path, "a").table["material_id"].tolist() == ["m-0", "m-2"]
    with pytest.raises(ValueError, match=r"split must be one of \['a', 'b'\] or None, got 'c'"):
        data.load(path, "c")


def test_unknown_and_empty_split(tmp_path):
    path = write_csv(tmp_path / "set.csv", STRUCTURES[:1])
    with pytest.raises(ValueError, match=r"one of \['train', 'val', 'test'\] or None, got 'dev'"):
        data.load(path, "dev")
    empty = 0
    for split in ("train", "val", "test"):
        try:
            data.load(path, split)
        except ValueError as error:
            assert f"is left with split={split!r}" in str(error)
            empty += 1
    assert empty == 2


def test_select_and_references(tmp_path):
    dataset = data.load(write_csv(tmp_path / "set.csv", STRUCTURES))
    references = dataset.references()
    assert {key: rows.tolist() for key, rows in references.items()} == {"NaCl": [0, 2], "MgO": [1]}
    assert [rows.tolist() for rows in dataset.references_of(["MgO", "NaCl"])] == [[1], [0, 2]]
    chosen = dataset[[2, 1]]
    assert [len(part) for part in dataset] == [1] * len(dataset) and len(dataset[-1]) == 1
    alike = dataset[dataset.table["formula"] == dataset.table["formula"][0]]
    assert set(alike.table["formula"]) == {dataset.table["formula"][0]}
    with pytest.raises(IndexError):
        dataset[len(dataset)]
    assert chosen.table["material_id"].tolist() == ["m-2", "m-1"]
    assert chosen.batch.species.tolist() == [11, 17, 12, 8]
    assert chosen.references()["NaCl"].tolist() == [0]


def test_subsets_are_nested_and_keep_compositions_whole(tmp_path):
    lengths = (1.0, 1.05, 1.1)
    elements = [("Na", "Cl", 1), ("K", "Cl", 3), ("Mg", "O", 2), ("Li", "F", 1), ("Ca", "O", 3)]
    structures = [
        rock_salt(cation, anion, 5.0, length)
        for cation, anion, count in elements
        for length in lengths[:count]
    ]
    whole = data.load(write_csv(tmp_path / "set.csv", structures))
    counts = {formula: len(rows) for formula, rows in whole.references().items()}
    before = set()
    for size in range(1, len(whole)):
        part = whole.subset(size)
        assert size <= len(part) < size + 3
        assert all(len(rows) == counts[name] for name, rows in part.references().items())
        ids = set(part.table["material_id"])
        assert before <= ids
        before = ids
    assert whole.subset(None) is whole.subset(99) is whole
    with pytest.raises(ValueError, match="size must be a positive number of structures or None"):
        whole.subset(0)


def test_composition_without_reference(tmp_path):
    dataset = data.load(write_csv(tmp_path / "set.csv", STRUCTURES))
    batch = CrystalBatch.from_formulas(["Na Cl", "Na2 Cl", "K Cl"])
    with pytest.raises(ValueError, match=r"no reference structure in data set 'set' .* KCl, Na2Cl"):
        dataset.references_of(batch.reduced_formulas())


def test_dataset_checks_its_table(small_batch):
    table = pd.DataFrame({"material_id": ["a"], "formula": ["Fe"]})
    with pytest.raises(ValueError, match="it has 1 rows, batch has 4 structures"):
        data.CrystalDataset("set", None, small_batch, table)
    with pytest.raises(ValueError, match=r"\['n_atoms'\] missing"):
        data.CrystalDataset("set", None, small_batch[0], table)


# --- bad files ---


def test_missing_file_and_unknown_set(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no data file .*nothing\.csv \(looked in"):
        data.load(tmp_path / "nothing.csv")
    with pytest.raises(ValueError, match="'mp21'; known sets: complex, prototypes"):
        data.load("mp21")


def test_empty_file(tmp_path):
    path = tmp_path / "set.csv"
    path.touch()
    with pytest.raises(ValueError, match=r"the data file .*set.csv is empty"):
        data.load(path)
    path.write_text("material_id,cif\n")
    with pytest.raises(ValueError, match=r"the data file .*set.csv has no records"):
        data.load(path)


@pytest.mark.parametrize("start", [b"", b"\x1f\x8b\x08\x00"], ids=["plain", "gzip"])
def test_random_bytes(tmp_path, start):
    path = tmp_path / "set.csv.gz"
    path.write_bytes(start + random.Random(0).randbytes(5000))
    with pytest.raises(ValueError, match=r"cannot read .*set.csv.gz as a CSV table, gzipped or"):
        data.load(path)


def test_truncated_gzip(tmp_path):
    path = write_csv(tmp_path / "set.csv.gz", STRUCTURES)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"cannot read .* check that the file is complete"):
        data.load(path)


def test_no_structure_column(tmp_path):
    path = write_csv(tmp_path / "set.csv", STRUCTURES, column="geometry")
    message = r"column named cif or structure, found the columns .*'material_id', 'geometry'\]"
    with pytest.raises(ValueError, match=message):
        data.load(path)


def test_unknown_extension(tmp_path):
    path = tmp_path / "set.docx"
    path.write_text("text")
    with pytest.raises(
        ValueError, match=r"no reader for .*set.docx; known extensions: .cif, .csv, "
    ):
        data.load(path)


def test_bad_records_are_skipped_and_named(tmp_path):
    disordered = rock_salt({"Na": 0.5, "K": 0.5}, "Cl", 6)
    dummy = rock_salt(DummySpecies("Xx"), "O", 4)
    heavy = rock_salt("Md", "O", 4)
    flat = Structure(Lattice([[3, 0, 0], [0, 3, 0], [3, 3, 0]]), ["Fe"], [[0, 0, 0]])
    path = write_csv(
        tmp_path / "set.csv",
        [
            STRUCTURES[0],
            "data_\n_cell_length_a oops",
            disordered,
            dummy,
            heavy,
            flat,
            "",
            STRUCTURES[1],
        ],
        column="structure",
        text=lambda structure: json.dumps(structure.as_dict()),
    )
    with pytest.warns(UserWarning, match="6 of 8 records of .* were skipped: m-1 ") as caught:
        dataset = data.load(path)
    assert len(caught) == 1
    message = str(caught[0].message)
    assert "m-2 (it is disordered" in message
    assert message.endswith("; and 1 more")
    assert dataset.table["material_id"].tolist() == ["m-0", "m-7"]
    assert [entry.record for entry in dataset.skipped] == [f"m-{i}" for i in range(1, 7)]
    reasons = [entry.reason for entry in dataset.skipped]
    assert "disordered" in reasons[1]
    assert "unknown elements ['Xx']" in reasons[2]
    assert "unknown elements ['Md']" in reasons[3]
    assert "span no volume" in reasons[4]
    assert "the structure is missing" in reasons[5]
    with pytest.warns(UserWarning, match="6 of 8 records"):
        cached = data.load(path)
    assert cached.skipped == dataset.skipped


def test_one_malformed_cif(tmp_path):
    broken = STRUCTURES[0].to(fmt="cif").replace("_cell_length_b", "_cell_width_b")
    path = write_csv(tmp_path / "set.csv", [*STRUCTURES, broken])
    with pytest.warns(UserWarning, match=r"1 of 4 records of .*set.csv were skipped: m-3 \("):
        dataset = data.load(path)
    assert len(dataset) == 3
    assert len(dataset.skipped) == 1


def test_nothing_but_malformed(tmp_path):
    path = write_csv(tmp_path / "set.csv", ["oops", "no"])
    with pytest.raises(ValueError, match=r"none of the 2 records .* the first: m-0 \("):
        data.load(path)


# --- cache, workers, other readers ---


def test_second_load_comes_from_the_cache(tmp_path, cache_folder, monkeypatch):
    path = write_csv(tmp_path / "set.csv", STRUCTURES, energy_per_atom=[1.0, 2.0, np.nan])
    first = data.load(path)
    assert len(list(cache_folder.iterdir())) == 1

    def never(path):
        raise TypeError("read again")

    never.__module__ = _tables.__name__
    monkeypatch.setattr(loading, "READERS", {".csv": never})
    second = data.load(path)
    pd.testing.assert_frame_equal(first.table, second.table)
    for name in ("species", "pos", "cell", "n_atoms"):
        assert torch.equal(getattr(first.batch, name), getattr(second.batch, name))
    with pytest.raises(TypeError):
        data.load(path, niggli=False)


def test_cache_follows_the_content(tmp_path):
    path = write_csv(tmp_path / "set.csv", STRUCTURES)
    assert len(data.load(path)) == 3
    write_csv(path, STRUCTURES[:2])
    assert len(data.load(path)) == 2


def test_no_cache(tmp_path, cache_folder):
    data.load(write_csv(tmp_path / "set.csv", STRUCTURES), cache=False)
    assert not cache_folder.exists()


def test_cache_that_cannot_be_written(tmp_path, monkeypatch):
    path = write_csv(tmp_path / "set.csv", STRUCTURES)
    obstacle = tmp_path / "file"
    obstacle.write_text("")
    monkeypatch.setenv("IRLKIT_CACHE", str(obstacle / "cache"))
    with pytest.warns(UserWarning, match="cannot write the cache .* IRLKIT_CACHE"):
        assert len(data.load(path)) == 3


@pytest.mark.parametrize("content", [b"", b"junk", b"PK\x03\x04junk"])
def test_cache_that_cannot_be_read_is_replaced(tmp_path, cache_folder, content):
    path = write_csv(tmp_path / "set.csv", STRUCTURES)
    data.load(path)
    (entry,) = cache_folder.iterdir()
    entry.write_bytes(content)
    with pytest.warns(UserWarning, match="cannot read the cache"):
        assert len(data.load(path)) == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(data.load(path)) == 3
    assert list(cache_folder.iterdir()) == [entry]


def test_failed_write_leaves_nothing(tmp_path, cache_folder, monkeypatch):
    path = write_csv(tmp_path / "set.csv", STRUCTURES)

    def full(*arguments, **names):
        raise OSError("no space left")

    monkeypatch.setattr(system.os, "fsync", full)
    with pytest.warns(UserWarning, match="no space left"):
        data.load(path)
    assert list(cache_folder.iterdir()) == []


def test_default_cache_folder(monkeypatch):
    monkeypatch.delenv("IRLKIT_CACHE")
    monkeypatch.setenv("HOME", "/somewhere")
    assert str(_cache.folder()) == "/somewhere/.cache/irlkit"


def test_workers_agree_with_one_process(monkeypatch):
    payloads = [structure.to(fmt="cif") for structure in STRUCTURES] * 7
    payloads[4] = "oops"
    expected = [_parsing.parse_structure(payload, niggli=True) for payload in payloads]
    monkeypatch.setattr(_parsing, "SERIAL_LIMIT", 0)
    monkeypatch.setattr(_parsing, "CHUNK_SIZE", 2)
    for n_workers in (1, 2):
        monkeypatch.setattr(_parsing, "available_cores", lambda n=n_workers: n)
        parsed = _parsing.parse_structures(payloads, niggli=True)
        assert len(parsed) == len(expected)
        for one, other in zip(parsed, expected, strict=True):
            if isinstance(other, str):
                assert one == other
            else:
                assert all(map(np.array_equal, one, other))


def test_register_reader(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "READERS", dict(readers.READERS))
    monkeypatch.setattr(loading, "READERS", readers.READERS)
    data.register_reader(
        ".poscars",
        lambda path: readers.RawRecords(
            payloads=path.read_text().split("---\n"),
            table=pd.DataFrame({"material_id": ["a", "b", "c"]}),
        ),
    )
    path = tmp_path / "set.poscars"
    path.write_text("---\n".join(structure.to(fmt="poscar") for structure in STRUCTURES))
    assert data.load(path).table["formula"].tolist() == ["NaCl", "MgO", "NaCl"]
    # Not from the cache: the reader is another one now.
    only = readers.RawRecords([STRUCTURES[1].to(fmt="poscar")], pd.DataFrame(index=range(1)))
    data.register_reader(".poscars", lambda path: only)
    assert data.load(path).table["formula"].tolist() == ["MgO"]
    with pytest.raises(ValueError, match="extension must start with a dot"):
        data.register_reader("lmdb", _tables.read_csv)


def test_prototypes(tmp_path, monkeypatch):
    path = tmp_path / "prototypes.parquet"
    monkeypatch.setattr(loading, "EMBEDDED", {"prototypes": (path, _tables.read_parquet)})
    with pytest.raises(FileNotFoundError, match=r"no data file .*prototypes.parquet"):
        data.load("prototypes")
    table = pd.DataFrame(
        {
            "species": [np.array(s.atomic_numbers, dtype=np.uint8) for s in STRUCTURES],
            "pos": [s.frac_coords.astype(np.float32).ravel() for s in STRUCTURES],
            "cell": [s.lattice.matrix.astype(np.float32).ravel() for s in STRUCTURES],
            "energy_per_atom": [-1.0, -2.0, -0.9],
            "e_above_hull": [0.0, 0.0, 0.1],
            "prototype": ["B1"] * 3,
            "spacegroup": [225, 225, 12],
            "formula": ["NaCl", "MgO", "NaCl"],
            "split": ["train", "test", "train"],
        }
    )
    table.to_parquet(path)
    dataset = data.load("prototypes", split="train")
    assert dataset.name == "prototypes"
    assert dataset.table["material_id"].tolist() == ["prototypes-0", "prototypes-2"]
    assert dataset.table["energy_per_atom"].tolist() == [-1.0, -0.9]
    assert set(dataset.table.columns) >= {"spacegroup", "prototype", "e_above_hull"}
    expected = [STRUCTURES[0].volume, STRUCTURES[2].volume]
    np.testing.assert_allclose(dataset.batch.volume, expected, rtol=1e-5)
    with pytest.raises(ValueError, match=r"split must be one of \['test', 'train'\]"):
        data.load("prototypes", split="val")
    table.drop(columns="cell").to_parquet(path)
    with pytest.raises(ValueError, match=r"or the columns \['species', 'pos', 'cell'\]"):
        data.load("prototypes")
    path.write_bytes(b"junk")
    with pytest.raises(ValueError, match=r"cannot read .* as a parquet table"):
        data.load("prototypes")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "n", "n_formulas"), [("perov_5", 3787, 3425), ("carbon_24", 2032, 1)]
)
def test_public_data(shared_data, name, n, n_formulas):
    dataset = data.load(shared_data / f"{name}.csv.gz", progress=False)
    assert len(dataset) == n
    assert len(dataset.references()) == n_formulas
    assert not dataset.skipped
