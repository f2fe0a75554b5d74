"""Files with one defect each: read as they declare, or skipped with a reason, never otherwise."""

import copy
import json
import pickle
import random
import re
import warnings
import zipfile

import numpy as np
import pandas as pd
import pytest
import torch
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Composition, Lattice, Structure
from pymatgen.io.cif import CifWriter

from irlkit import data
from irlkit.crystals import CrystalBatch
from irlkit.data import writers

N = 220
"""Files of each format."""

ELEMENTS = ["Na", "Cl", "O", "Ti", "Sr", "F", "Co", "N"]
JUNK = ("?", ".", "abc", "1,5", "nan", "1e999", "--1", "")
"""What may stand where a number should."""

SAME = StructureMatcher(ltol=0.01, stol=0.01, angle_tol=1, scale=False)


def crystal(draws):
    """A random crystal of 2 to 5 atoms, far from each other, half of them with symmetry."""
    n_atoms = draws.randint(2, 5)
    while True:
        if draws.random() < 0.5:
            lattice = Lattice.cubic(draws.uniform(3.5, 6))
            pos = [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
        else:
            angles = [draws.uniform(70, 110) for _ in range(3)]
            lattice = Lattice.from_parameters(*(draws.uniform(4, 8) for _ in range(3)), *angles)
            pos = [[round(draws.random(), 6) for _ in range(3)] for _ in range(n_atoms)]
        structure = Structure(lattice, draws.choices(ELEMENTS, k=n_atoms), pos[:n_atoms])
        if structure.is_valid(tol=1.2):
            return structure.get_sorted_structure()


def load(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return data.load(path, cache=False, niggli=False, progress=False, dtype=torch.float64)


def load_formulas(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return data.load(path)


def check(dataset, expected, least=0.1, most=0.9):
    """Each name was read as it is expected or skipped with a reason, and both happened."""
    names = dataset.table["material_id"]
    for name, structure in zip(names, dataset.structures, strict=True):
        wanted = expected[name.split("-")[0]]
        assert SAME.fit(structure, wanted), f"{name} is {structure}\nand not {wanted}"
    assert all(record.reason.strip() for record in dataset.skipped)
    seen = {name.split("-")[0] for name in [*names, *(r.record for r in dataset.skipped)]}
    assert seen == set(expected)
    assert least * len(expected) < len(dataset) < most * len(expected)


# --- one defect in a text ---


def drop_line(text, draws):
    lines = text.splitlines(keepends=True)
    del lines[draws.randrange(len(lines))]
    return "".join(lines)


def double_line(text, draws):
    lines = text.splitlines(keepends=True)
    i = draws.randrange(len(lines))
    return "".join([*lines[: i + 1], *lines[i:]])


def cut_short(text, draws):
    """Ends before the last line, at any character."""
    return text[: draws.randrange(1, text.rstrip().rindex("\n"))]


def spoil_number(text, draws):
    """Another thing instead of one of the numbers."""
    match = draws.choice(list(re.finditer(r"(?<=\s)-?\d+(\.\d+)?(?=\s)", text)))
    return text[: match.start()] + draws.choice(JUNK) + text[match.end() :]


def spoil_element(text, draws):
    symbols = rf"(?<=\s)({'|'.join(ELEMENTS)})(?=\s)"
    match = draws.choice(list(re.finditer(symbols, text)))
    other = draws.choice(["Xx", "D", "Q", "Wat", "Lv", "?", "Kr", "", match[0] + "x"])
    return text[: match.start()] + other + text[match.end() :]


def lose_character(text, draws):
    """Any but those of numbers, whose digits nothing declares twice."""
    i = draws.choice([m.start() for m in re.finditer(r"[^\d.\s-]", text)])
    return text[:i] + text[i + 1 :]


def replace(pattern, *texts):
    """A defect that puts one of some texts in the place of a pattern."""
    return lambda text, draws: re.sub(
        pattern, draws.choice(texts), text, count=1, flags=re.MULTILINE
    )


ANY_TEXT = (
    *(drop_line, double_line, cut_short, spoil_number, spoil_element, lose_character) * 2,
    lambda text, draws: "\ufeff" + text,
    lambda text, draws: text.replace("\n", "\r\n"),
    lambda text, draws: text.encode("utf-16"),
    lambda text, draws: b"\xe9".join(line.encode() for line in text.split("generated", 1)),
    lambda text, draws: "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
    lambda text, draws: "<html>\n" + text,
)


def write(path, content):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


CIF = (
    *ANY_TEXT,
    replace(r"_cell_length_a\s+\S+", "_cell_length_a 9.99", "_cell_length_a 0", "_CELL_LENGTH_A 5"),
    replace(r"_cell_angle_beta\s+\S+", "_cell_angle_beta 57", "_cell_angle_beta 180"),
    replace(r"_cell_length_b", "_CELL_Length_b"),
    replace(r"_cell_formula_units_Z\s+\S+", "_cell_formula_units_Z 7"),
    replace(r"_chemical_formula_sum\s+.*", "_chemical_formula_sum 'Na1 Cl7'"),
    replace(r"_Int_Tables_number\s+\S+", "_Int_Tables_number 194", "_Int_Tables_number 300"),
    replace(r"_name_H-M\s+.*", "_name_H-M 'F m -3 m'", "_name_H-M ?", "_name_H-M 'Q 1'"),
    replace(r"'x, y, z'", "'x, y'", "'x, y, z+1/3'", "'x, y, w'", "'-y, x, z'", "'x, x, z'"),
    replace(r"1\.0$", "0.5", "1.04", "0", ".", "?"),
    replace(r"_atom_site_fract_x", "_atom_site_Cartn_x", "_atom_site_fract_y"),
    replace(r"_atom_site_type_symbol", "_atom_site_kind"),
    lambda text, draws: text + text.replace("data_", "data_again_"),
    lambda text, draws: draws.choice([str.upper, str.lower])(text),
)


@pytest.mark.parametrize("symprec", [None, 0.01], ids=["P1", "symmetry"])
def test_cif(tmp_path, symprec):
    expected = {}
    for i in range(N):
        draws = random.Random(i)
        expected[f"{i}"] = crystal(draws)
        text = str(CifWriter(expected[f"{i}"], symprec=symprec))
        text = re.sub(r"  1$", "  1.0", text, flags=re.MULTILINE)  # occupancies
        write(tmp_path / "all" / f"{i}.cif", CIF[i % len(CIF)](text, draws))
    check(load(tmp_path / "all"), expected)


POSCAR = (
    *ANY_TEXT,
    replace(r"^1\.0", "0.0", "1", "1.0 1.0", "1.0 1.0 1.0", "", "x"),
    replace(r"^\d+( \d+)*$", "0", "9", "-1", "1000000000", "1.5", ""),
    replace(r"^direct", "Direct", "D", "", "fractional", "Selective dynamics\ndirect"),
    lambda text, draws: text + text.splitlines()[-1] + "\n",
    lambda text, draws: text.replace(text.splitlines()[5] + "\n", "", 1),
    lambda text, draws: text.replace(text.splitlines()[5], "Na Cl O Ti Sr F", 1),
    lambda text, draws: text.replace("\n", "\n\n", 1),
)


def test_poscar(tmp_path):
    expected = {}
    for i in range(N):
        draws = random.Random(i)
        expected[f"{i}"] = crystal(draws)
        text = POSCAR[i % len(POSCAR)](expected[f"{i}"].to(fmt="poscar"), draws)
        write(tmp_path / "all" / f"{i}.vasp", text)
    check(load(tmp_path / "all"), expected)


XYZ = (
    *ANY_TEXT,
    replace(r"^\d+$", "1", "9", "-1", "x", "2.0"),
    replace(r'Lattice="\S+ ', 'Lattice="'),
    replace(r"Lattice=", "lattice=", "Cell="),
    replace(r'pbc="T T T"', 'pbc="T T F"', "", "pbc=T"),
    replace(r"pos:R:3", "pos:R:2", "positions:R:3", "pos:S:3", "pos:R:3:forces:R:3"),
    replace(r"species:S:1", "kind:S:1", "species:S:2", "species:I:1"),
    lambda text, draws: text + text,
)


def test_extended_xyz(tmp_path):
    n_read = 0
    for i in range(N):
        draws = random.Random(i)
        structure = crystal(draws)
        path = tmp_path / f"{i}.xyz"
        table = pd.DataFrame({"formula": [structure.reduced_formula], "n_atoms": [len(structure)]})
        batch = CrystalBatch.from_structures([structure], torch.float64)
        writers.write(path, batch, table)
        write(path, XYZ[i % len(XYZ)](path.read_text(), draws))
        try:
            dataset = load(path)
        except ValueError as error:
            assert path.name in str(error)
        else:
            n_read += 1
            for found in dataset.structures:
                assert SAME.fit(found, structure), f"{i}: {found}"
            assert all(record.reason for record in dataset.skipped)
    assert N / 10 < n_read < 9 * N / 10


# --- one defect in data ---


def places(tree, path=()):
    """Paths to all entries of nested dictionaries and lists."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))


def spoil_entry(tree, draws):
    """Another entry, of another kind or none, in a place."""
    tree = copy.deepcopy(tree)
    *path, key = draws.choice(list(places(tree)))
    parent = tree
    for step in path:
        parent = parent[step]
    if draws.random() < 0.3:
        del parent[key]
    elif draws.random() < 0.3 and isinstance(parent, list):
        parent.append(parent[key])
    else:
        parent[key] = draws.choice([None, "x", float("nan"), 1e300, -1, 0.4, [], {}, "Kr", "D"])
    return tree


def test_dictionaries_of_pymatgen(tmp_path):
    expected, texts = {}, []
    for i in range(N):
        draws = random.Random(i)
        expected[f"{i}"] = crystal(draws)
        entry = spoil_entry(json.loads(expected[f"{i}"].to_json()), draws)
        texts.append(draws.choice([json.dumps, str])(entry)[: None if i % 5 else -1 - i])
    formulas = [structure.reduced_formula for structure in expected.values()]
    table = {"material_id": list(expected), "structure": texts, "pretty_formula": formulas}
    pd.DataFrame(table).to_csv(tmp_path / "all.csv", index=False)
    check(load(tmp_path / "all.csv"), expected)


def spoiled_arrays():
    """Files of two structures as arrays, one of them with a defect: structures, rows."""
    for i in range(N):
        draws = random.Random(i)
        structures = [crystal(draws) for _ in range(2)]
        rows = [
            {
                "species": [float(z) for z in structure.atomic_numbers],
                "pos": structure.frac_coords.ravel().tolist(),
                "cell": structure.lattice.matrix.ravel().tolist(),
            }
            for structure in structures
        ]
        values = rows[0][draws.choice(list(rows[0]))]
        k = draws.randrange(len(values))
        if i % 4 == 0:
            del values[k]
        elif i % 4 == 1:
            values.insert(k, values[k])
        elif i % 4 == 2:
            values[k] = draws.choice([float("nan"), float("inf"), 1e300, values[k]])
        else:
            entries = rows[0]["species"]
            entries[0] = draws.choice([0.0, -1.0, 11.5, 101.0, 1e20, entries[0]])
        yield structures, rows, draws


def check_file(path, structures, declared=("0", "1")):
    """What was read is what was declared, by name; the rest has a reason. Returns how many."""
    try:
        dataset = load(path)
    except ValueError as error:
        assert path.name in str(error)
        return 0
    assert all(record.reason.strip() for record in dataset.skipped)
    for name, found in zip(dataset.table["material_id"], dataset.structures, strict=True):
        number = next((i for i, ending in enumerate(declared) if name.endswith(ending)), None)
        wanted = structures if number is None else [structures[number]]
        assert any(SAME.fit(found, structure) for structure in wanted), f"{name}: {found}"
    assert len(dataset) + len(dataset.skipped) >= 1
    return len(dataset)


def spoil_bytes(content, draws):
    """One byte less, one other, or an end before the end."""
    k = draws.randrange(len(content))
    end = draws.choice([content[k + 1 :], b"?" + content[k + 1 :], b""])
    return content[:k] + end


def test_parquet(tmp_path):
    n_read = 0
    for i, (structures, rows, draws) in enumerate(spoiled_arrays()):
        table = pd.DataFrame(rows).assign(material_id=["0", "1"])
        formulas = [structure.reduced_formula for structure in structures]
        if i % 5 == 3:
            formulas[0] = draws.choice(["Xe", "InF", "NaN", "salt", None])
        table["formula"] = formulas
        if i % 5 == 4:
            name = draws.choice(list(table))
            table = table.rename(columns={name: draws.choice(["x", "CIF", name.upper()])})
        path = tmp_path / f"{i}.parquet"
        table.to_parquet(path)
        if i % 7 == 6:
            path.write_bytes(spoil_bytes(path.read_bytes(), draws))
        n_read += check_file(path, structures)
    assert 2 * N / 10 < n_read < 2 * 9 * N / 10


def test_lmdb(tmp_path):
    lmdb = pytest.importorskip("lmdb")
    n_read = 0
    for i, (structures, rows, draws) in enumerate(spoiled_arrays()):
        path = tmp_path / f"{i}.lmdb"
        with (
            lmdb.open(str(path), subdir=False, map_size=1 << 20, sync=False) as environment,
            environment.begin(write=True) as transaction,
        ):
            for name, row in enumerate(rows):
                record = {key: torch.tensor(value) for key, value in row.items()}
                record["atomic_numbers"] = record.pop("species")
                content = pickle.dumps({**record, "pos_is_fractional": True})
                if i % 7 == 6 and name == 0:
                    content = spoil_bytes(content, draws)
                transaction.put(f"{name}".encode(), content)
        n_read += check_file(path, structures)
    assert 2 * N / 10 < n_read < 2 * 9 * N / 10


def spoil_json(text, draws):
    """One character less, one other, or an end before the end; digits stay what they are."""
    k = draws.choice([m.start() for m in re.finditer(r"[^\d.\s-]", text)])
    return text[:k] + draws.choice([text[k + 1 :], "?" + text[k + 1 :], ""])


ONE_PER_LINE = (lambda entries: "\n".join(map(json.dumps, entries)), "jsonl")
JSON = (
    ONE_PER_LINE,
    (json.dumps, "json"),
    (lambda entries: json.dumps({e["material_id"]: e["structure"] for e in entries}), "json"),
    (lambda entries: pd.DataFrame(entries).to_json(orient="split"), "json"),
)


def test_json(tmp_path):
    n_read = 0
    for i in range(N):
        draws = random.Random(i)
        structures = [crystal(draws) for _ in range(2)]
        entries = [
            {"material_id": f"{k}", "formula": s.reduced_formula, "structure": s.as_dict()}
            for k, s in enumerate(structures)
        ]
        arrange, ending = JSON[i % len(JSON)]
        if i % 3:
            entries[0]["structure"] = spoil_entry(entries[0]["structure"], draws)
        text = arrange(entries)
        text = text if i % 3 else spoil_json(text, draws)
        encoding = draws.choice(["utf-8", "utf-8-sig", "utf-16"])
        path = tmp_path / f"{i}.{ending}"
        path.write_bytes(text.encode(encoding))
        n_read += check_file(path, structures)
    assert 2 * N / 10 < n_read < 2 * 9 * N / 10


def test_zip(tmp_path):
    n_read = 0
    for i in range(N):
        draws = random.Random(i)
        structures = [crystal(draws) for _ in range(2)]
        texts = [str(CifWriter(structures[0])), structures[1].to(fmt="poscar")]
        texts[0] = texts[0].replace("  1\n", "  1.0\n")
        members = dict(zip(["0.cif", "POSCAR_1"], texts, strict=True))
        spoiled = draws.choice(list(members))
        defects = CIF if spoiled == "0.cif" else POSCAR
        if i % 3:
            members[spoiled] = defects[i % len(defects)](members[spoiled], draws)
        path = tmp_path / f"{i}.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        if i % 3 == 0:
            path.write_bytes(spoil_bytes(path.read_bytes(), draws))
        declared = ("0.cif", "POSCAR_1") if i % 3 == 0 else ("0", "1")
        n_read += check_file(path, structures, declared)
    assert 2 * N / 10 < n_read < 2 * 9 * N / 10


FORMULAS = (
    *(lambda text, draws: "\ufeff" + text, lambda text, draws: text.encode("utf-16")),
    lambda text, draws: text.replace("2", "\u2082"),
    lambda text, draws: text.replace("\n", "\r\n"),
    lambda text, draws: text.replace("O", draws.choice(["D", "o", "O+", "O1.5", "(O", "Xx"]), 1),
    lambda text, draws: text + draws.choice(["?", "NaCl MgO\n", "mp-149\n", "12\n", "# end\n"]),
    lambda text, draws: text.upper(),
    lambda text, draws: draws.choice(["<html>", "version https://git-lfs"]) + text,
)


def test_formulas(tmp_path):
    n_read = 0
    for i in range(N):
        draws = random.Random(i)
        chosen = [f"{a}{draws.randint(1, 2)}O" for a in draws.sample(["Na", "Sr", "Ti"], 2)]
        path = tmp_path / f"{i}.txt"
        write(path, FORMULAS[i % len(FORMULAS)]("\n".join(chosen) + "\n", draws))
        try:
            dataset = load_formulas(path)
        except ValueError as error:
            assert path.name in str(error) or "none of" in str(error)
            continue
        n_read += len(dataset)
        declared = {Composition(formula).reduced_formula for formula in chosen}
        assert set(dataset.table["formula"]) <= declared
        assert len(dataset) + len(dataset.skipped) >= 2
    assert 2 * N / 10 < n_read < 2 * 9.5 * N / 10


CSV = (
    *(drop_line, cut_short, spoil_number, lose_character) * 2,
    *ANY_TEXT[12:],
    replace(r"material_id", "Material_ID", "", "cif"),
    replace(r"pretty_formula", "formula", "cif", ""),
    replace("Na", "K"),
    replace('"', ""),
    lambda text, draws: np.random.default_rng(0).bytes(2000),
)


def test_csv(tmp_path):
    n_read = 0
    for i in range(N):
        draws = random.Random(i)
        structures = [crystal(draws) for _ in range(2)]
        table = pd.DataFrame(
            {
                "material_id": ["0012", "7e3"],
                "cif": [str(CifWriter(s)).replace("  1\n", "  1.0\n") for s in structures],
                "pretty_formula": [s.reduced_formula for s in structures],
            }
        )
        path = tmp_path / f"{i}.csv"
        write(path, CSV[i % len(CSV)](table.to_csv(index=False), draws))
        try:
            dataset = load(path)
        except ValueError as error:
            assert path.name in str(error)
            continue
        n_read += 1
        names = dataset.table["material_id"].tolist()
        assert len(dataset) + len(dataset.skipped) >= 1
        for name, found in zip(names, dataset.structures, strict=True):
            row = {"0012": 0, "7e3": 1, f"{i}-0": 0, f"{i}-1": 1}.get(name)
            wanted = structures if row is None else [structures[row]]
            assert any(SAME.fit(found, structure) for structure in wanted), f"{i}: {found}"
    assert N / 10 < n_read < 9 * N / 10
