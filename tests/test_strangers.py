"""Files as strangers have them: read right, or skipped with a reason that names the trouble."""

import bz2
import gzip
import json
import lzma
import math
import re
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure
from pymatgen.io.cif import CifWriter

from irlkit import data
from irlkit.crystals import CrystalBatch
from irlkit.crystals.compositions import from_formula
from irlkit.data import writers
from irlkit.lab.experiments import quickstart
from irlkit.lab.prototypes.structure_types import STRUCTURE_TYPES

SALT = Structure(Lattice.cubic(4.1), ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])


def cif(
    atoms=("Cs1 Cs 0 0 0", "Cl1 Cl 0.5 0.5 0.5"),
    columns="label type_symbol fract_x fract_y fract_z",
    cell=(4.1, 4.1, 4.1, 90, 90, 90),
    more="_symmetry_space_group_name_H-M 'P 1'",
    name="x",
):
    names = [f"_cell_length_{axis}" for axis in "abc"]
    names += [f"_cell_angle_{angle}" for angle in ("alpha", "beta", "gamma")]
    lines = [f"data_{name}", *(f"{n} {x}" for n, x in zip(names, cell, strict=True)), more]
    lines += ["loop_", *(f"_atom_site_{column}" for column in columns.split()), *atoms]
    return "\n".join(lines) + "\n"


def poscar(comment="", scale="1.0", symbols="Cs Cl\n", counts="1 1", edge="4.1", x="0.5"):
    return (
        f"{comment}\n{scale}\n{edge} 0 0\n0 {edge} 0\n0 0 {edge}\n{symbols}{counts}\nDirect\n"
        f"0 0 0\n{x} {x} {x}\n"
    )


def load(path, content=None, **more):
    """The data set of a file with some content, without its warnings."""
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return data.load(
            path, cache=False, progress=False, niggli=False, dtype=torch.float64, **more
        )


def formulas(path, content):
    """Formulas of the cells, or why there are none."""
    try:
        return load(path, content).batch.formulas()
    except ValueError as error:
        return str(error)


# --- CIF ---


ROCK_SALT = dict(cell=(5.64, 5.64, 5.64, 90, 90, 90), atoms=("Na1 Na 0 0 0", "Cl1 Cl 0.5 0.5 0.5"))


@pytest.mark.parametrize(
    "symmetry",
    [
        "_symmetry_space_group_name_H-M 'F m -3 m'",
        "_space_group_name_H-M_alt 'F m -3 m'",
        "_symmetry_space_group_name_H-M Fm-3m",
        "_symmetry_space_group_name_H-M 'F 4/m -3 2/m'",
        "_symmetry_space_group_name_H-M 'F m 3 m'",
        "_symmetry_space_group_name_H-M 'F m -3 m :1'",
        "_symmetry_space_group_name_H-M 'F 4/m -3 2/m'\n_space_group_IT_number 225",
        "_space_group_name_Hall '-F 4 2 3'",
        "_space_group_IT_number 225",
        "_space_group_IT_number 225\n_space_group_name_H-M_alt ?",
        "_space_group.IT_number 225",
        "_symmetry_space_group_name_H-M 'f M -3 M'",
        "_space_group_name_Schoenflies Oh^5",
        "_symmetry_space_group_name_H-M 'F m -3 m'\nloop_\n_symmetry_equiv_pos_as_xyz\n?",
    ],
)
def test_symmetry_by_any_name(tmp_path, symmetry):
    assert formulas(tmp_path / "a.cif", cif(**ROCK_SALT, more=symmetry)) == ["Cl4 Na4"]


@pytest.mark.parametrize(
    ("name", "cell", "n_atoms"),
    [
        ("P 21/c", (9, 11, 13, 90, 100, 90), 4),
        ("P 1 21/n 1", (9, 11, 13, 90, 100, 90), 4),
        ("p2(1)/C", (9, 11, 13, 90, 100, 90), 4),
        ("P 21/b", (9, 11, 13, 90, 90, 100), 4),
        ("C m c a", (9, 11, 13, 90, 90, 90), 16),
        ("Cmce", (9, 11, 13, 90, 90, 90), 16),
        ("A b a 2", (9, 11, 13, 90, 90, 90), 8),
        ("C m m a", (9, 11, 13, 90, 90, 90), 16),
        ("R -3 m h", (11, 11, 16, 90, 90, 120), 36),
    ],
)
def test_names_of_groups_are_those_of_their_settings(tmp_path, name, cell, n_atoms):
    site, symmetry = "Na1 Na 0.13 0.21 0.34", f"_symmetry_space_group_name_H-M '{name}'"
    dataset = load(tmp_path / "a.cif", cif([site], cell=cell, more=symmetry))
    assert dataset.batch.n_atoms.tolist() == [n_atoms]


@pytest.mark.parametrize(
    ("symmetry", "reason"),
    [
        ("_symmetry_cell_setting cubic", "not said in a way that is known (_symmetry_cell_setting"),
        ("loop_\n_symmetry_equiv_pos_as_xyz\n?", "its space group is not said"),
        ("_space_group_magn.name_BNS 'P n'", "magnetic"),
        ("_cell_formula_units_Z 4", "its 2 atoms are not 4 formulas"),
        ("_chemical_formula_structural KCl", "are not of its formula 'KCl'"),
        ("_symmetry_space_group_name_H-M ?", "its space group is not said"),
        ("_symmetry_space_group_name_H-M 'F q 3'", "its space group 'F q 3' is not known"),
        ("_space_group_IT_number 225\n_space_group_name_H-M_alt 'P 1'", "contradict each other"),
        ("_space_group_name_H-M_alt 'P 63/m m c'", "do not fit its cell"),
        ("_space_group_name_H-M_alt 'F d -3 m'", "meant in 2 ways"),
        ("loop_\n_symmetry_equiv_pos_as_xyz\nx,y,z\n-x,-y,z\n-x,y,-z", "are no group"),
        ("loop_\n_symmetry_equiv_pos_as_xyz\nx,y,q", "'x,y,q' is no symmetry operation"),
        (
            "_space_group_IT_number 225\n_symmetry_equiv_pos_as_xyz x,y,z",
            "are not those of its space group",
        ),
        ("_space_group_symop_magn_operation.xyz x,y,z,+1", "magnetic"),
        ("_cell_volume 99", "it says 99"),
        ("_chemical_formula_sum 'Na Cl'\n_cell_formula_units_Z 4", "are not 4 formulas 'Na Cl'"),
        ("_chemical_formula_sum 'Na2 Cl'", "are not of its formula 'Na2 Cl'"),
        ("_cell_length_a 5", "_cell_length_a stands twice"),
        ("_cell_volume", "0 values for 1 names"),
    ],
)
def test_what_a_cif_says_is_compared(tmp_path, symmetry, reason):
    assert reason in formulas(tmp_path / "a.cif", cif(**ROCK_SALT, more=symmetry))


@pytest.mark.parametrize("digits", [3, 8])
@pytest.mark.parametrize("name", list(STRUCTURE_TYPES))
def test_cifs_with_symmetry_are_what_they_were_made_of(tmp_path, name, digits):
    """With operations, with a name and with a number alone; positions cut off at three digits."""
    kind = STRUCTURE_TYPES[name]
    structure = kind.build(["Na", "Cl", "Ti"][: len(kind.stoichiometry)])
    text = str(CifWriter(structure, symprec=0.01, significant_figures=digits))
    named = re.sub(r"loop_\s*_symmetry_equiv_pos_site_id.*?(?=loop_)", "", text, flags=re.S)
    for content in (text, named, re.sub(r"_symmetry_space_group_name.*\n", "", named)):
        (found,) = load(tmp_path / "a.cif", content).structures
        assert StructureMatcher().fit(found, structure)


@pytest.mark.parametrize("digits", [2, 3, 4, 7])
def test_sites_are_put_on_the_positions_that_their_digits_mean(tmp_path, digits):
    hexagonal = (3.2094, 3.2094, 5.2108, 90, 90, 120)
    site = f"Mg1 Mg {1 / 3:.{digits}f} {2 / 3:.{digits}f} 0.25"
    group = "_symmetry_space_group_name_H-M 'P 63/m m c'"
    dataset = load(tmp_path / "a.cif", cif([site], cell=hexagonal, more=group))
    assert dataset.batch.n_atoms.tolist() == [2]
    assert dataset.structures[0].distance_matrix[0, 1] == pytest.approx(3.1971, abs=1e-3)
    away = cif(["Mg1 Mg 0.3300000 0.6600000 0.25"], cell=hexagonal, more=group)
    assert "symmetry puts atoms less than 0.5 Å apart" in formulas(tmp_path / "a.cif", away)


@pytest.mark.parametrize(
    ("columns", "atoms", "reason"),
    [
        ("label fract_x fract_y fract_z", ("NA1 0 0 0", "O1 .3 0 0"), "'NA1' is no element"),
        ("label fract_x fract_y fract_z", ("Na1 0 0 0", "HO1 .3 0 0"), "'HO1' is no element"),
        ("label type_symbol fract_x fract_y fract_z", ("X Cx 0 0 0",), "'Cx' is no element"),
        ("label type_symbol fract_x fract_y fract_z", ("X D 0 0 0",), "isotopes"),
        ("label type_symbol fract_x fract_y fract_z", ("X Wat 0 0 0",), "'Wat' is no element"),
        ("label type_symbol fract_x fract_y fract_z", ("X Cl ? ? ?",), "a coordinate is '?'"),
        ("label type_symbol fract_x fract_y fract_z", ("X Cl . . .",), "a coordinate is '.'"),
        ("label type_symbol fract_x fract_y fract_z", ("X Cl 0 0",), "4 values for 5 names"),
        ("type_symbol fract_x fract_y fract_z", ("Na 0 0 0", "HO .5 0 0"), "'HO' may be no"),
        ("type_symbol fract_x fract_y fract_z calc_flag", ("Cl 0 0 0 dum",), "dummies"),
        ("label type_symbol Cartn_x Cartn_y Cartn_z", ("X Cl 0 0 0",), "no fractional"),
        ("type_symbol fract_x fract_y fract_z occupancy", ("Cl 0 0 0 1.04",), "occupancy 1.04"),
        ("type_symbol fract_x fract_y fract_z occupancy", ("Cl 0 0 0 0.5",), "disordered"),
        ("type_symbol fract_x fract_y fract_z occupancy", ("Cl 0 0 0 ?",), "occupancy is '?'"),
        ("type_symbol fract_x fract_y fract_z attached_hydrogens", ("C 0 0 0 2",), "hydrogens"),
        ("type_symbol fract_x fract_y fract_z", ("Cl 0 0 0", "Cl 1 0 0"), "at the same place"),
        (
            "type_symbol fract_x fract_y fract_z symmetry_multiplicity",
            ("Cl 0 0 0 4",),
            "stands for 1 atoms, it says 4",
        ),
    ],
)
def test_sites_are_taken_as_they_stand(tmp_path, columns, atoms, reason):
    assert reason in formulas(tmp_path / "a.cif", cif(atoms, columns))


@pytest.mark.parametrize(
    "text",
    [
        cif().replace("_cell_length", "_Cell_Length").replace("loop_", "LOOP_"),
        cif(columns="label fract_x fract_y fract_z", atoms=("Cs1 0 0 0", "Cl1 .5 .5 .5")),
        cif(columns="type_symbol fract_x fract_y fract_z", atoms=("Cs+ 0 0 0", "Cl1- .5 .5 .5")),
        cif(columns="type_symbol fract_x fract_y fract_z", atoms=("CS 0 0 0", "CL .5 .5 .5")),
        cif(
            columns="type_symbol fract_x fract_y fract_z occupancy",
            atoms=("Cs 0 0 0 .", "Cl 0.5(1) 5e-1 .5 1.000"),
        ),
        cif(more="_publ\n;\ndata_of\n_cell_length_a 3\n;\n_author 'O'Neill' # it's\n"),
        "\ufeff" + cif().replace("\n", "\r\n"),
        cif(more="").encode("utf-16"),
        cif(more="").encode("utf-32"),
        cif(more="_title 'a \x85 b'").encode("latin-1"),
        cif(more="_symmetry_cell_setting triclinic"),
        cif(more="_author 'L\xe9a \xc5'").encode("latin-1"),
        gzip.compress(cif().encode()),
        bz2.compress(cif().encode()),
        lzma.compress(cif().encode()),
    ],
)
def test_harmless_habits_of_cif(tmp_path, text):
    assert formulas(tmp_path / "a.cif", text) == ["Cl1 Cs1"]


def test_every_data_block_is_read_or_named(tmp_path):
    bromide = cif(("Cs1 Cs 0 0 0", "Br1 Br 0.5 0.5 0.5"), name="two")
    dataset = load(tmp_path / "a.cif", cif(name="one") + bromide + "data_global\n_publ x\n")
    assert dataset.table["material_id"].tolist() == ["a-one", "a-two"]
    assert [(r.record, r.reason) for r in dataset.skipped] == [("a-global", "it has no atoms")]
    dataset = load(tmp_path / "a.cif", cif() + cif())
    assert dataset.table["material_id"].tolist() == ["a-x-0", "a-x-1"]
    pd.DataFrame({"cif": [cif() + bromide]}).to_csv(tmp_path / "a.csv")
    with pytest.raises(ValueError, match="it holds 2 structures in one text"):
        load(tmp_path / "a.csv")


# --- POSCAR ---


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (poscar(edge="4"), "Cl1 Cs1"),
        (poscar(edge="20", scale="1"), "Cl1 Cs1"),
        (poscar(edge="1", scale="-68.921"), "Cl1 Cs1"),
        (poscar(edge="1", scale="4 4 5"), "Cl1 Cs1"),
        (poscar("Cs Cl", symbols=""), "Cl1 Cs1"),
        (poscar("relaxed", symbols="").replace("0.5\n", "0.5 Cl\n").replace("0\n0.5", "0 Cs\n0.5"),
         "Cl1 Cs1"),
        (poscar(symbols="Cs_sv Cl/1a2b\n"), "Cl1 Cs1"),
        (poscar("relaxed \x85 \x0b").encode("latin-1"), "Cl1 Cs1"),
        (poscar() + "\n0 0 0\n0 0 0\n", "Cl1 Cs1"),
        (poscar() + poscar("Na Cl"), "another structure follows"),
        (poscar("x", symbols="").replace("0.5\n", "0.5 F F F\n").replace("0\n0.5", "0 F F F\n0.5"),
         "no line says Selective dynamics"),
        (poscar(symbols="Cs H.25\n"), "H.25 is a part of an atom"),
        (poscar("relaxed", symbols=""), "it names no elements"),
        (poscar("Na Cl O", symbols=""), "it names no elements"),
        (poscar(counts="1 2"), "for each of its 3 atoms"),
        (poscar(counts="1"), "its numbers of atoms are '1' for ['Cs', 'Cl']"),
        (poscar(counts="20 20"), "for each of its 40 atoms"),
        (poscar(x="1.0"), "two of its atoms are at the same place"),
        (poscar(x="?"), "with three coordinates"),
        (poscar(symbols="Cs D\n"), "isotopes"),
        (poscar() + "0.2 0.2 0.2\n", "more positions follow"),
        (poscar().replace("0.5\n", "0.5 Br\n").replace("0\n0.5", "0 Cs\n0.5"), "called Br"),
        (poscar().replace("Direct", "Fractional"), "neither Direct nor Cartesian"),
    ],
)  # fmt: skip
def test_poscar(tmp_path, text, found):
    result = formulas(tmp_path / "POSCAR", text)
    assert result == [found] or found in result


# --- folders, encodings, first bytes ---


def test_every_entry_of_a_folder_is_read_or_named(tmp_path):
    folder = tmp_path / "mine"
    (folder / "more").mkdir(parents=True)
    for name in ("a.cif", "a.vasp", "B.CIF", "Si_POSCAR", "c.cif.gz", "notes.txt"):
        content = poscar() if "vasp" in name or "POSCAR" in name else cif()
        (folder / name).write_bytes(
            gzip.compress(content.encode()) if name.endswith("gz") else content.encode()
        )
    (folder / "gone.cif").symlink_to(folder / "nowhere.cif")
    (folder / "table.csv").write_text("material_id,gap\nc,1\nlost,2\n")
    dataset = load(folder)
    assert dataset.table["material_id"].tolist() == ["c", "B", "Si_POSCAR", "a.cif", "a.vasp"]
    reasons = {record.record: record.reason for record in dataset.skipped}
    assert sorted(reasons) == ["gone", "lost", "more", "notes.txt"]
    assert "cannot be read" in reasons["gone"] and "no file" in reasons["lost"]
    assert "folder" in reasons["more"] and "no CIF or POSCAR" in reasons["notes.txt"]


HEADS = {
    b"version https://git-lfs.github.com/spec/v1\noid sha256:x\nsize 12\n": "git lfs pull",
    b"<!DOCTYPE html><html>404</html>": "a web page",
    b"PK\x03\x04junk": "a zip archive",
    b"\x80\x04K\x01.": "a pickle",
}


@pytest.mark.parametrize("name", ["a.cif", "POSCAR", "a.csv", "a.parquet", "a.xyz", "a.lmdb"])
@pytest.mark.parametrize("head", HEADS)
def test_first_bytes_are_looked_at(tmp_path, name, head):
    with pytest.raises(ValueError, match=HEADS[head]):
        load(tmp_path / name, head)


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (str(SALT), "it begins 'Full Formula"),
        (repr(SALT), "it begins 'Structure Summary"),
        (str(SALT.as_dict()).replace("'label'", "nan: 1, 'label'"), "neither of JSON nor of plain"),
        (json.dumps(SALT.as_dict()).replace('"element": "Cs"', '"element": "D"'), "isotopes"),
        (str(cif().encode()), "neither CIF, POSCAR nor a dictionary"),
        ("ZGF0YQ==", "neither CIF, POSCAR nor a dictionary"),
        ("/data/a.cif", "neither CIF, POSCAR nor a dictionary"),
        ("mp-149", "neither CIF, POSCAR nor a dictionary"),
        ('2\nLattice="4 0 0 0 4 0 0 0 4"\nCs 0 0 0\nCl 2 2 2\n', "neither CIF, POSCAR nor"),
        (json.dumps({"lattice_mat": [], "coords": []}), "with the keys ['lattice_mat', 'coords']"),
        (json.dumps(SALT.as_dict() | {"lattice": {"matrix": np.eye(3).tolist(), "volume": 2}}),
         "it says 2"),
        (json.dumps(SALT.as_dict() | {"lattice": SALT.lattice.as_dict() | {"a": 9}}), "it says 9"),
        (json.dumps(SALT.as_dict() | {"lattice": SALT.lattice.as_dict() | {"pbc": [1, 1, 0]}}),
         "not periodic"),
        (json.dumps(SALT.as_dict()).replace('"sites"', '"sites": [], "sites"'), "stands twice"),
    ],
)  # fmt: skip
def test_text_that_is_no_structure(tmp_path, entry, reason):
    pd.DataFrame({"structure": [entry]}).to_csv(tmp_path / "a.csv")
    assert reason in formulas(tmp_path / "a.csv", None)


def test_other_forms_of_structures(tmp_path):
    entry = json.dumps({"energy": -7, "structure": SALT.as_dict()})
    pd.DataFrame({"structure": [entry, str(SALT.as_dict())]}).to_csv(tmp_path / "a.csv")
    assert formulas(tmp_path / "a.csv", None) == ["Cl1 Cs1"] * 2
    pd.DataFrame({"cif": [cif().encode()]}).to_parquet(tmp_path / "a.parquet")
    assert formulas(tmp_path / "a.parquet", None) == ["Cl1 Cs1"]


@pytest.mark.parametrize(
    ("column", "good", "bad"),
    [
        ("pretty_formula", ["CsCl", "Cl Cs", "salt"], ["NaCl", "InF", "NaN"]),
        ("Formula", ["CsCl", "Cs4Cl4"], ["CsCl3"]),
        ("n_atoms", [2], [1, 3, 4]),
        ("nsites", [1, 2, 8], [3, 0]),
    ],
)
@pytest.mark.parametrize("name", ["a.csv", "a.parquet", "a.extxyz"])
def test_what_a_table_says_is_compared(tmp_path, name, column, good, bad):
    frame = '2\nLattice="4 0 0 0 4 0 0 0 4" Properties=species:S:1:pos:R:3 {}={}\n'
    frame += "Cs 0 0 0\nCl 2 2 2\n"
    entries = [entry for entry in [*bad, *good] if " " not in str(entry)]
    table = pd.DataFrame({"cif": [cif()] * len(entries), column: entries})
    path = tmp_path / name
    if name == "a.extxyz":
        path.write_text("".join(frame.format(column, entry) for entry in entries))
    elif name == "a.csv":
        table.to_csv(path)
    else:
        table.to_parquet(path)
    dataset = load(path)
    assert len(dataset) == len(entries) - len(bad)
    assert [str(entry) in r.reason for entry, r in zip(bad, dataset.skipped, strict=True)]
    assert all("its structure" in record.reason for record in dataset.skipped)


def test_tables_as_spreadsheets_write_them(tmp_path):
    for separator in (";", "\t"):
        table = pd.DataFrame({"ID": ["007"], "CIF": [cif()], "Split": ["Valid"]})
        table.to_csv(tmp_path / "a.csv", index=False, sep=separator)
        assert load(tmp_path / "a.csv", split="val").table["material_id"].tolist() == ["007"]


def test_structures_that_are_shared_or_not_periodic(tmp_path):
    more = '2\nLattice="4 0 0 0 4 0 0 0 4" Properties=species:S:1:pos:R:3 {}\nCs 0 0 0\nCl 2 2 2\n'
    occupancy = 'occupancy="_JSON {\\"0\\": {\\"Cs\\": 0.5}}"'
    assert "disordered" in formulas(tmp_path / "a.xyz", more.format(occupancy))
    assert "'D' is no" in formulas(tmp_path / "a.xyz", more.format("").replace("Cs", "D"))
    arrays = {"atomic_numbers": [[55, 17]], "positions": [[0.0] * 3 + [2.0] * 3]}
    table = pd.DataFrame(arrays | {"cell": [np.eye(3).ravel() * 4], "pbc": [[True, True, False]]})
    table.to_parquet(tmp_path / "a.parquet")
    assert "not periodic" in formulas(tmp_path / "a.parquet", None)


# --- ids, splits, formulas ---


IDS = ["0012", "12e4", "NaN", "InF", "True", "a b"]


@pytest.mark.parametrize("name", ["a.csv", "a.parquet", "a.extxyz", "folder"])
def test_ids_are_text(tmp_path, name):
    path = tmp_path / name
    if name == "a.csv":
        pd.DataFrame({"Material_ID": IDS, "cif": [cif()] * len(IDS)}).to_csv(path, index=False)
    else:
        batch = CrystalBatch.from_structures([SALT] * len(IDS))
        writers.write(path, batch, pd.DataFrame({"material_id": IDS}))
    found = load(path).table["material_id"].tolist()
    assert found == ([i.replace(" ", "_") for i in IDS] if name == "folder" else IDS)


def test_ids_with_gaps(tmp_path):
    for suffix, ids in (
        (".csv", ["12", None, "7"]),
        (".parquet", pd.array([12, None, 7], "Int64")),
    ):
        table = pd.DataFrame({"material_id": ids, "cif": [cif()] * 3})
        path = tmp_path / f"a{suffix}"
        table.to_csv(path) if suffix == ".csv" else table.to_parquet(path)
        assert load(path).table["material_id"].tolist() == ["12", "a-1", "7"]
    frame = '2\nLattice="4 0 0 0 4 0 0 0 4" Properties=species:S:1:pos:R:3 id=0012\n'
    frame += "Cs 0 0 0\nCl 2 2 2\n"
    assert load(tmp_path / "b.xyz", "\ufeff" + frame).table["material_id"].tolist() == ["0012"]


def test_names_and_gaps_of_splits(tmp_path):
    labels = ["Train", "train ", "VALID", "validation", None, "test"]
    pd.DataFrame({"cif": [cif()] * 6, "Split": labels}).to_csv(tmp_path / "a.csv")
    sizes = {
        split: len(load(tmp_path / "a.csv", split=split)) for split in ("train", "valid", "val")
    }
    assert sizes == {"train": 2, "valid": 2, "val": 2}
    for part in (data.load, lambda *a, **k: list(data.load_parts(*a, split=k["split"]))):
        with pytest.warns(UserWarning, match="1 structures of .* have no split: they are in none"):
            part(tmp_path / "a.csv", split="test", cache=False)
    with pytest.raises(ValueError, match=r"one of \['test', 'train', 'val'\] or None, got 'dev'"):
        load(tmp_path / "a.csv", split="dev")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('["LiFePO4", "SrTiO3"]', ["LiFePO4", "SrTiO3"]),
        ("['Li\u2082O']", ["Li2O"]),
        ("LiFePO4", ["LiFePO4"]),
        ("NaCl, MgO", ["NaCl", "MgO"]),
        ("[LiFePO4, SrTiO3]", ["LiFePO4", "SrTiO3"]),
        ("('NaCl', 'MgO')", ["NaCl", "MgO"]),
        ("NaCl;MgO\nInF", ["NaCl", "MgO", "InF"]),
        ("'InF'", ["InF"]),
        ("(NH4)2SO4", ["H8S(NO2)2"]),
        ("NaCl, SrTIO3", ["NaCl"]),
    ],
)
def test_lists_that_arrive_as_text(text, expected):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert data.load(text).table["formula"].tolist() == expected
    assert ["did you mean Ti?" in str(w.message) for w in caught] == [True] * ("TIO3" in text)
    with pytest.raises(ValueError, match=r"known sets: .*did you mean Ti\?"):
        data.load("SrTIO3")


@pytest.mark.parametrize(
    ("value", "meant"),
    [
        (math.inf, "InF"),
        (math.nan, "NaN"),
        (False, "NO"),
        (None, "NaCl"),
        (["MgO", math.inf], "InF"),
    ],
)
def test_formulas_that_a_command_line_made_numbers_of(value, meant):
    with pytest.raises(quickstart.WrongFormula, match=f"papermill -r formula {meant} instead"):
        quickstart.typed(value)
    with pytest.raises(quickstart.WrongFormula, match="formula must be text"):
        quickstart.composition_of(value[-1] if isinstance(value, list) else value)
    for quoted in (meant, f"'{meant}'", f'"{meant}"'):
        assert quickstart.composition_of(quoted).reduced_formulas() == [meant]


def test_one_parser_for_formulas(tmp_path):
    """What one way of giving a formula takes or refuses, the others do too."""
    for text, n_atoms in {
        "Li\u2082O": 3, "Na4 Cl4": 8, "K4[Fe(CN)6]": 17, "SrTIO3": 0, "TIO2": 0, "DY2O3": 0,
        "D2O": 0, "NaCl MgO": 0, "CuSO4·5H2O": 0, "nacl": 0, "Na Cl 4": 0, "Mg (OH) 2": 0,
    }.items():  # fmt: skip
        (tmp_path / "a.txt").write_text(f"\ufeff{text}\n")
        for read in (
            lambda text: from_formula(text),
            lambda text: CrystalBatch.from_formulas([text]),
            lambda text: data.load([text]).batch,
            lambda text: data.load(tmp_path / "a.txt").batch,
        ):
            if n_atoms:
                assert read(text).n_atoms.tolist() == [n_atoms], text
            else:
                with pytest.raises(ValueError, match=re.escape(text)):
                    read(text)


def test_units_follow_whole_formulas(tmp_path):
    (tmp_path / "a.txt").write_text("NaCl 4\nNa4 Cl4 2\nCa3(PO4)2 2\nFe 2 O 3\n")
    dataset = data.load(tmp_path / "a.txt")
    assert dataset.table["z"].tolist() == [4, 2, 2, 1]
    assert dataset.batch.n_atoms.tolist() == [8, 16, 26, 5]
