"""Readers of structure files: extended XYZ, single CIF and POSCAR files, folders of these."""

from __future__ import annotations

import io
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from irlkit.data.readers import Arrays, Malformed, RawRecords, chunked, register_reader, scalars
from irlkit.utils.system import TimeUp, time_limit

SUFFIXES = (".cif", ".vasp", ".poscar")
NAMES = ("poscar", "contcar")
TABLE = "table.csv"
"""File of a folder that holds what is known of each structure, by `material_id`."""

FRAME_LIMIT = 5.0
"""Seconds that a frame of extended XYZ may take."""

_WIDE = re.compile(r"properties[^=]*=[^=]*:\s*\+?\d[\d_]{3,}", re.IGNORECASE)
"""A comment line of extended XYZ that names so many columns that ASE would fill the memory."""


def is_structure_file(path: Path) -> bool:
    """Return whether a file's name is that of a CIF or POSCAR file.

    >>> is_structure_file(Path("CONTCAR_2")), is_structure_file(Path("a.png"))
    (True, False)
    """
    name = path.name.lower()
    return name.endswith(SUFFIXES) or name.startswith(NAMES)


def read_structure_file(path: Path) -> Iterator[RawRecords]:
    """Read a CIF or POSCAR file; the record is called like the file without its extension."""
    return chunked([(_text(path), {"material_id": _name(path)})])


def _text(path: Path) -> str | Malformed:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        return Malformed(f"the file cannot be read: {error}")


def _name(path: Path) -> str:
    return path.stem if path.suffix.lower() in SUFFIXES else path.name


def read_folder(path: Path) -> Iterator[RawRecords]:
    """Read all CIF and POSCAR files of a folder, in the order of their names.

    A file `table.csv` with a column `material_id` (the file names without extension), as
    `irlkit.data.writers` writes it, gives the other columns, and the order of the files in it.

    Raises:
        ValueError: the folder has no such files, or its table cannot be read.
    """
    files = sorted(file for file in path.iterdir() if file.is_file() and is_structure_file(file))
    if not files:
        raise ValueError(
            f"{path} is a folder without CIF or POSCAR files ({', '.join(SUFFIXES)}, POSCAR*)"
        )
    rows: dict[str, dict[str, Any]] = {}
    if (path / TABLE).is_file():
        try:
            table = pd.read_csv(
                path / TABLE,
                dtype={"material_id": str},
                keep_default_na=False,
                na_values=["", "nan"],
            )
            rows = {str(row["material_id"]): row for row in table.to_dict("records")}  # type: ignore
        except (KeyError, ValueError) as error:
            raise ValueError(f"cannot read the table {path / TABLE}: {error}") from error
        order = {name: i for i, name in enumerate(rows)}
        files.sort(key=lambda file: (order.get(_name(file), len(order)), file.name))
    return chunked(
        (_text(file), rows.get(_name(file), {"material_id": _name(file)})) for file in files
    )


def read_extxyz(path: Path) -> Iterator[RawRecords]:
    """Read extended XYZ, frame by frame; what a comment line says beside the cell is the table.

    Raises:
        ValueError: the file is not text.
    """
    try:
        with path.open(encoding="utf-8") as file:
            yield from chunked(_read_frames(file))
    except UnicodeDecodeError as error:
        raise ValueError(f"cannot read {path} as extended XYZ: {error}") from error


def _read_frames(file: io.TextIOBase) -> Iterator[tuple[Any, dict[str, Any]]]:
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
    try:
        with time_limit(FRAME_LIMIT):
            (atoms,) = parse(io.StringIO("".join([f"{n_atoms}\n", *lines])), slice(None))
    except TimeUp:
        return Malformed(f"it took more than {FRAME_LIMIT:g} s to read"), {}
    # ASE raises anything on malformed input.
    except Exception as error:
        return Malformed(f"{type(error).__name__}: {error}"), {}
    results = atoms.calc.results if atoms.calc is not None else {}
    row = scalars([*results.items(), *atoms.info.items()])
    row |= {k: json.dumps(v) for k, v in atoms.info.items() if isinstance(v, dict)}
    if atoms.cell.rank < 3 or not atoms.pbc.all():
        return Malformed("it is not periodic in three directions"), row
    return Arrays(atoms.numbers, atoms.positions, atoms.cell.array, cartesian=True), row


register_reader(".extxyz", read_extxyz)
register_reader(".xyz", read_extxyz)
for _suffix in SUFFIXES:
    register_reader(_suffix, read_structure_file)
