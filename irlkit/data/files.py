"""Readers of structure files: extended XYZ, single CIF and POSCAR files, folders of these."""

from __future__ import annotations

import io
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from irlkit.data.parsing import TIME_LIMIT, Malformed, fractional
from irlkit.data.readers import RawRecords, chunked, register_reader, scalars
from irlkit.utils.system import TimeUp, time_limit

SUFFIXES = (".cif", ".vasp", ".poscar")
NAMES = ("poscar", "contcar")
_WIDE = re.compile(r"properties[^=]*=[^=]*:\s*\+?\d[\d_]{3,}", re.IGNORECASE)
"""A comment line of extended XYZ that names so many columns that ASE would fill the memory."""
TABLE = "table.csv"
"""File of a folder that holds what is known of each structure, by `material_id`."""


def is_structure_file(path: Path) -> bool:
    """Whether a file's name is that of a CIF or POSCAR file."""
    name = path.name.lower()
    return name.endswith(SUFFIXES) or name.startswith(NAMES)


def read_structure_file(path: Path) -> RawRecords:
    """Reads a CIF or POSCAR file; the record is called like the file without its extension."""
    payload, row = _read_text(path)
    return next(chunked([(payload, row)], path))


def _read_text(path: Path) -> tuple[Any, dict[str, Any]]:
    try:
        text: Any = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        text = Malformed(f"the file cannot be read: {error}")
    return text, {"material_id": _name(path)}


def _name(path: Path) -> str:
    return path.stem if path.suffix.lower() in SUFFIXES else path.name


def read_folder(path: Path) -> Iterator[RawRecords]:
    """Reads all CIF and POSCAR files of a folder, in the order of their names.

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
            rows = {
                str(row["material_id"]): {str(key): value for key, value in row.items()}
                for row in table.to_dict("records")
            }
        except (KeyError, ValueError) as error:
            raise ValueError(f"cannot read the table {path / TABLE}: {error}") from error

        order = {name: i for i, name in enumerate(rows)}
        files.sort(key=lambda file: (order.get(_name(file), len(order)), file.name))

    def records() -> Iterator[tuple[Any, dict[str, Any]]]:
        for file in files:
            payload, row = _read_text(file)
            yield payload, rows.get(row["material_id"], row)

    return chunked(records(), path)


def read_extxyz(path: Path) -> Iterator[RawRecords]:
    """Reads extended XYZ, frame by frame; what a comment line says beside the cell is the table.

    Raises:
        ValueError: the file is not text.
    """
    return chunked(_read_frames(path), path)


def _read_frames(path: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    try:
        with path.open(encoding="utf-8") as file:
            for header in file:
                if not header.strip():
                    continue
                if not header.strip().isdecimal() or len(header.strip()) > 9:
                    yield (
                        Malformed(
                            f"expected a number of atoms, found {header.strip()[:40]!r}; "
                            "the rest of the file was not read"
                        ),
                        {},
                    )
                    return
                n_atoms = int(header)
                lines = list(itertools.islice(file, n_atoms + 1))
                yield _read_frame(n_atoms, lines)
    except UnicodeDecodeError as error:
        raise ValueError(f"cannot read {path} as extended XYZ: {error}") from error


def _read_frame(n_atoms: int, lines: list[str]) -> tuple[Any, dict[str, Any]]:
    """Payload and entries of the table of one frame, given its comment and its atoms."""
    from ase.io.extxyz import read_extxyz as parse

    if len(lines) <= n_atoms:
        return Malformed(f"the file ends within its {n_atoms} atoms"), {}
    if _WIDE.search(lines[0]):
        return Malformed("a property of its atoms has more than 999 columns"), {}
    try:
        text = "".join([f"{n_atoms}\n", *lines])
        with time_limit(TIME_LIMIT):
            (atoms,) = parse(io.StringIO(text), slice(None))
    except TimeUp:
        return Malformed(f"it took more than {TIME_LIMIT:g} s to read"), {}
    # ASE raises anything on malformed input.
    except Exception as error:
        return Malformed(f"{type(error).__name__}: {error}"), {}
    results = atoms.calc.results if atoms.calc is not None else {}
    row = scalars([*results.items(), *atoms.info.items()])
    row |= {k: json.dumps(v) for k, v in atoms.info.items() if isinstance(v, dict)}
    if atoms.cell.rank < 3 or not atoms.pbc.all():
        return Malformed("it is not periodic in three directions"), row
    cell = np.array(atoms.cell.array)
    try:
        return (
            np.array(atoms.numbers, dtype=np.int64),
            fractional(atoms.positions, cell),
            cell,
        ), row
    except ValueError as error:
        return Malformed(str(error)), row


register_reader(".extxyz", read_extxyz)
register_reader(".xyz", read_extxyz)
for _suffix in SUFFIXES:
    register_reader(_suffix, read_structure_file)
