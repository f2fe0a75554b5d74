"""Files of many structures as other programs write them: zip archives and JSON."""

import gzip
import io
import json
import zipfile

import numpy as np
import pytest
from ase.io import write as write_ase

from irlkit.data import load


@pytest.fixture(scope="module")
def structures():
    return load("prototypes", progress=False).select([0, 900, 4000]).structures


def read(path, **options):
    return load(path, cache=False, niggli=False, progress=False, **options)


def same(dataset, structures):
    assert dataset.batch.reduced_formulas() == [s.reduced_formula for s in structures]
    np.testing.assert_allclose(
        dataset.batch.volume.numpy(), [s.volume for s in structures], rtol=1e-4
    )


def archive(path, members, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


@pytest.mark.parametrize(
    "arrange",
    [
        lambda entries: json.dumps(entries),
        lambda entries: json.dumps({f"s{i}": entry for i, entry in enumerate(entries)}),
        lambda entries: json.dumps([{"structure": e, "gap": 1.5, "f": [1]} for e in entries]),
        lambda entries: "\n".join(json.dumps(e) for e in entries),
        lambda entries: json.dumps(
            {
                "columns": ["structure", "gap"],
                "data": [[e, 1.5] for e in entries],
                "index": [7, 8, 9],
            }
        ),
    ],
    ids=["list", "by name", "entries", "lines", "table"],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_json(tmp_path, structures, arrange, zipped):
    text = arrange([s.as_dict() for s in structures])
    path = tmp_path / ("made.json.gz" if zipped else "made.json")
    path.write_bytes(gzip.compress(text.encode()) if zipped else text.encode())
    dataset = read(path)
    same(dataset, structures)
    if "gap" in text:
        assert dataset.table["gap"].tolist() == [1.5] * 3
    if '"s0"' in text:
        assert dataset.table["material_id"].tolist() == ["s0", "s1", "s2"]


def test_single_structure_and_cif_text(tmp_path, structures):
    path = tmp_path / "one.json"
    path.write_text(json.dumps(structures[1].as_dict()))
    same(read(path), structures[1:2])
    path.write_text(json.dumps([s.to(fmt="cif") for s in structures]))
    same(read(path), structures)


def test_lines_that_are_bad_are_named(tmp_path, structures):
    path = tmp_path / "made.jsonl"
    good = json.dumps(structures[0].as_dict())
    path.write_text(f'{good}\n{{"lattice": \n[3]\n{{"a": 1}}\n\n{good}\n')
    with pytest.warns(UserWarning, match="3 of 5 records"):
        dataset = read(path)
    same(dataset, [structures[0]] * 2)
    reasons = " ".join(s.reason for s in dataset.skipped)
    assert "no JSON" in reasons and "neither a dictionary" in reasons and "['a']" in reasons


@pytest.mark.parametrize(
    ("text", "words"),
    [("", "is empty"), ("{", "is no JSON"), ("<html>", "web page"), ("[" * 100_000, "is no JSON")],
)
def test_what_is_no_json(tmp_path, text, words):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=words):
        read(tmp_path / "a.json")


def test_archive(tmp_path, structures):
    frames = io.StringIO()
    write_ase(frames, [s.to_ase_atoms() for s in structures[1:]], format="extxyz")
    path = archive(
        tmp_path / "made.zip",
        {
            "out/gen_0.cif": structures[0].to(fmt="cif"),
            "__MACOSX/out/._gen_0.cif": "nothing",
            "out/.DS_Store": "nothing",
            "../../etc/gen_1.vasp": structures[1].to(fmt="poscar"),
            "gen_2.cif.gz": gzip.compress(structures[2].to(fmt="cif").encode()),
            "other/gen_2.cif": structures[2].to(fmt="cif"),
            "frames.extxyz": frames.getvalue(),
            "all.json": json.dumps([structures[0].as_dict()]),
        },
    )
    dataset = read(path)
    same(dataset, [*structures, structures[2], *structures[1:], structures[0]])
    names = dataset.table["material_id"].tolist()
    assert names == [
        "gen_0", "gen_1", "gen_2.cif.gz", "other/gen_2.cif", "frames.extxyz-0", "frames.extxyz-1",
        "all.json-0",
    ]  # fmt: skip
    assert [p.name for p in tmp_path.iterdir()] == ["made.zip"]


def test_bad_members_are_named(tmp_path, structures):
    good = structures[0].to(fmt="cif")
    path = archive(
        tmp_path / "made.zip",
        {"bomb.cif": " " * 5_000_000, "a.cif": good, "b.png": b"\x89PNG", "c.cif": "data_"},
    )
    with pytest.warns(UserWarning, match="3 of 4 records"):
        dataset = read(path)
    same(dataset, structures[:1])
    found = {s.record: s.reason for s in dataset.skipped}
    assert "compressed more than" in found["bomb"] and "none of CIF" in found["b.png"]
    raw = bytearray(archive(path, {"a.cif": good, "d.cif": good}, zipfile.ZIP_STORED).read_bytes())
    raw[raw.rindex(b"_cell_length_a")] = 0  # which the checksum sees
    path.write_bytes(raw)
    with pytest.warns(UserWarning, match="1 of 2 records.*CRC"):
        same(read(path), structures[:1])


def test_what_is_no_archive(tmp_path):
    path = tmp_path / "a.zip"
    path.write_bytes(b"PK nothing")
    with pytest.raises(ValueError, match="as a zip archive"):
        read(path)
    archive(path, {"a.txt": "x"})
    with pytest.raises(ValueError, match=r"neither CIF.*a\.txt"):
        read(path)


@pytest.mark.parametrize(
    "text",
    [
        '{"columns": 3, "data": 5}',
        '{"columns": ["structure"], "data": [1, null]}',
        '{"columns": [{}], "data": [[1]]}',
        '{"a": {"structure": "x"}, "b": [1]}',
        '{"structure": {"lattice": 1, "sites": 2}}',
        '[{"id": {}, "cif": "data_"}, {"structure": true}, null, [], 1e999]',
        "[]",
        "3",
    ],
)
def test_json_of_another_shape_is_refused(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=r"a\.json|skipped|no structure"):
        read(tmp_path / "a.json")
