"""Readers of structure files: extended XYZ, single CIF and POSCAR files, folders of these."""

from __future__ import annotations

import io
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pandas as pd

from irlkit.data._cif import split_blocks
from irlkit.data._text import (
    BROKEN,
    MAX_CHARACTERS,
    Unusable,
    open_text,
    without_compression,
)
from irlkit.data.readers import (
    TEXT_COLUMNS,
    Arrays,
    Malformed,
    RawRecords,
    _with_numbers,
    chunked,
    register_reader,
    scalars,
)
from irlkit.utils.system import TimeUp, time_limit

SUFFIXES = (".cif", ".vasp", ".poscar")
NAMES = ("poscar", "contcar")
TABLE = "table.csv"
"""File of a folder that holds what is known of each structure, by `material_id`."""

_TEXT = re.compile(
    rf"(?<!\S)({'|'.join(TEXT_COLUMNS)})\s*=\s*"
    r"(?:\"((?:[^\"\\]|\\.)*)\"|'((?:[^'\\]|\\.)*)'|(\S+))",
    re.IGNORECASE,
)

FRAME_LIMIT = 5.0
"""Seconds of computing that a frame of extended XYZ may take."""

_WIDE = re.compile(r"properties[^=]*=[^=]*:\s*\+?\d[\d_]{3,}", re.IGNORECASE)
"""A comment line of extended XYZ that names so many columns that ASE would fill the memory."""


def is_structure_file(path: Path) -> bool:
    """Return whether a file's name is that of a CIF or POSCAR file, compressed or not.

    >>> is_structure_file(Path("CONTCAR_2")), is_structure_file(Path("a.png"))
    (True, False)
    """
    name = without_compression(path.name).lower()
    return name.endswith(SUFFIXES) or any(part in name for part in NAMES)


def read_structure_file(path: Path) -> Iterator[RawRecords]:
    """Read a CIF or POSCAR file; the record is called like the file without its extension.

    Data blocks of a CIF file are records of their own, called after file and block.
    """
    return chunked(_read_file(path, {"material_id": file_name(path)}))


def _read_file(path: Path, row: dict[str, Any]) -> Iterator[tuple[Any, dict[str, Any]]]:
    if path.is_dir() or not is_structure_file(path):
        yield Malformed("it is a folder" if path.is_dir() else "it is no CIF or POSCAR file"), row
        return
    try:
        with open_text(path) as file:
            yield from read_text(file, path, row)
    except (*BROKEN, Unusable) as error:
        yield Malformed(f"the file cannot be read: {error}"), row


def read_text(
    file: IO[str], path: Path, row: dict[str, Any]
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Read an open CIF or POSCAR file of that name: payloads and entries of the table."""
    text = file.read(MAX_CHARACTERS + 1)
    if "\0" in text:
        yield Malformed("the file cannot be read: it is no text"), row
        return
    is_cif = without_compression(path.name).lower().endswith(".cif")
    blocks = split_blocks(text) if is_cif else [("", text)]
    for i, (name, block) in enumerate(blocks):
        if len(blocks) == 1:
            yield block, row
        else:
            twice = [other for other, _ in blocks].count(name) > 1
            ending = f"{name}-{i}" if twice or not name else name
            yield block, row | {"material_id": f"{row['material_id']}-{ending}"}


def file_name(path: Path) -> str:
    """Return the name of a file without its ending, which its record is called after."""
    name = without_compression(path.name)
    return name.rpartition(".")[0] if name.lower().endswith(SUFFIXES) else name


def read_folder(path: Path) -> Iterator[RawRecords]:
    """Read all CIF and POSCAR files of a folder, in the order of their names.

    A file `table.csv` with a column `material_id` (the file names without extension), as
    `irlkit.data.writers` writes it, gives the other columns, and the order of the files in it.
    Whatever else is in the folder, or only in the table, is a record that cannot be read.

    Raises:
        ValueError: the folder has no such files, or its table cannot be read.
    """
    files = sorted(file for file in path.iterdir() if file.name != TABLE)
    if not any(map(is_structure_file, files)):
        raise ValueError(
            f"{path} is a folder without CIF or POSCAR files ({', '.join(SUFFIXES)}, POSCAR*)"
        )
    names = {file: file_name(file) if is_structure_file(file) else file.name for file in files}
    counts = Counter(names.values())
    # Two files with one name are told apart by their extensions.
    names = {file: file.name if counts[name] > 1 else name for file, name in names.items()}
    rows = _read_rows(path / TABLE)
    order = {name: i for i, name in enumerate(rows)}
    files.sort(key=lambda file: (order.get(names[file], len(order)), file.name))

    def records() -> Iterator[tuple[Any, dict[str, Any]]]:
        for file in files:
            yield from _read_file(file, rows.get(names[file], {"material_id": names[file]}))
        for name in rows.keys() - set(names.values()):
            yield Malformed(f"{TABLE} names it, but it has no file"), rows[name]

    return chunked(records())


def _read_rows(path: Path) -> dict[str, dict[str, Any]]:
    """Rows of a folder's table by `material_id`."""
    if not path.is_file():
        return {}
    try:
        with open_text(path, newline="") as file:
            table = pd.read_csv(
                file,
                dtype=dict.fromkeys(TEXT_COLUMNS, str),
                keep_default_na=False,
                na_values=["", "nan"],
            )
        rows = _with_numbers(table).to_dict("records")
        return {str(row["material_id"]): row for row in rows}  # type: ignore
    except (*BROKEN, KeyError, ValueError) as error:
        raise ValueError(f"cannot read the table {path}: {error}") from error


def read_extxyz(path: Path) -> Iterator[RawRecords]:
    """Read extended XYZ, frame by frame; what a comment line says beside the cell is the table.

    Raises:
        ValueError: the file cannot be read.
    """
    try:
        with open_text(path) as file:
            yield from chunked(read_frames(file))
    except (*BROKEN, Unusable) as error:
        raise ValueError(f"cannot read {path} as extended XYZ: {error}") from error


def read_frames(file: IO[str]) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Read frames of extended XYZ: payloads and entries of the table."""
    for header in file:
        if not header.strip():
            continue
        if not header.strip().isdecimal() or len(header.strip()) > 9:
            reason = f"expected a number of atoms, found {header.strip()[:40]!r}"
            yield Malformed(f"{reason}; the rest of the file was not read"), {}
            return
        n_atoms = int(header)
        yield _read_frame(n_atoms, list(itertools.islice(file, n_atoms + 1)))


def _read_frame(n_atoms: int, lines: list[str]) -> tuple[Any, dict[str, Any]]:
    """Payload and entries of the table of one frame, given its comment and its atoms."""
    from ase.io.extxyz import read_extxyz as parse

    if len(lines) <= n_atoms:
        return Malformed(f"the file ends within its {n_atoms} atoms"), {}
    if _WIDE.search(lines[0]):
        return Malformed("a property of its atoms has more than 999 columns"), {}
    # Names are text: ASE would take 0012 for a number, and nan and F for something else.
    ids = {name: "".join(texts) for name, *texts in _TEXT.findall(lines[0]) if any(texts)}
    properties = re.search(r"properties\s*=\s*\"?([^\s\"]+)", lines[0], re.IGNORECASE)
    columns = properties[1].split(":") if properties else "species:S:1:pos:R:3".split(":")
    widths = [int(width) for width in columns[2::3] if width.isdecimal()]
    if not {"species", "Z"} & set(columns[::3]) or "pos" not in columns[::3]:
        return Malformed(f"its atoms have the columns {columns[::3]}, no species and pos"), ids
    for line in lines[1:]:
        if len(line.split()) != sum(widths):
            return Malformed(f"{line.strip()[:40]!r} has not {sum(widths)} columns"), ids
    try:
        with time_limit(FRAME_LIMIT, busy=True):
            (atoms,) = parse(io.StringIO("".join([f"{n_atoms}\n", *lines])), slice(None))
    except TimeUp:
        return Malformed(f"it took more than {FRAME_LIMIT:g} s to read"), ids
    except KeyError as error:
        return Malformed(f"{error.args[0]!r} is no element"), ids
    # ASE raises anything on malformed input.
    except Exception as error:
        return Malformed(f"{type(error).__name__}: {error}"), ids
    results = atoms.calc.results if atoms.calc is not None else {}
    row = scalars([*results.items(), *atoms.info.items()])
    row |= {k: json.dumps(v) for k, v in atoms.info.items() if isinstance(v, dict)}
    row |= {name: text for name, text in ids.items() if not text.startswith("_JSON")}
    occupancy = atoms.info.get("occupancy")
    if isinstance(occupancy, dict) and any(
        list(kinds.values()) != [1] for kinds in occupancy.values()
    ):
        return Malformed("it is disordered: its occupancy has shared or partly occupied sites"), row
    if atoms.cell.rank < 3 or not atoms.pbc.all():
        return Malformed("it is not periodic in three directions"), row
    return Arrays(atoms.numbers, atoms.positions, atoms.cell.array, cartesian=True), row


register_reader(".extxyz", read_extxyz)
register_reader(".xyz", read_extxyz)
for _suffix in SUFFIXES:
    register_reader(_suffix, read_structure_file)
