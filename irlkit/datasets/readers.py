"""Readers of data files: one function per kind of file, found by its extension.

A reader turns a file into `RawRecords`, a table and one unparsed structure per row. What the
structures are parsed from does not matter to the readers; `irlkit.datasets.parsing` sees to it.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

STRUCTURE_COLUMNS = ("cif", "structure")
"""Columns that may hold the structure, the preferred one first."""

ID_COLUMNS = ("material_id", "mp_id", "id")

RENAMED = {
    "spacegroup.number": "spacegroup",
    "spacegroup_number": "spacegroup",
    "space_group": "spacegroup",
}


@dataclass(frozen=True)
class RawRecords:
    """What a reader gives.

    Attributes:
        payloads: Per record, whatever `irlkit.datasets.parsing.parse_structure` takes: text, a
            pymatgen dictionary, or a tuple (species, fractional positions, cell).
        table: The other columns, one row per record; `material_id` (text) among them.
    """

    payloads: list[Any]
    table: pd.DataFrame


Reader = Callable[[Path], RawRecords]

READERS: dict[str, Reader] = {}
"""Readers by extension, in lower case and with the leading dot."""


def register_reader(extension: str, reader: Reader) -> None:
    """Makes `irlkit.datasets.load` read files of an extension, such as ".csv.gz".

    Raises:
        ValueError: the extension does not start with a dot.
    """
    if not extension.startswith("."):
        raise ValueError(f'extension must start with a dot, such as ".csv", got {extension!r}')
    READERS[extension.lower()] = reader


def find_reader(path: Path) -> Reader:
    """The reader with the longest extension that the file's name ends with.

    Raises:
        ValueError: no reader for the extension.
    """
    matches = [extension for extension in READERS if path.name.lower().endswith(extension)]
    if not matches:
        raise ValueError(f"no reader for {path}; known extensions: {', '.join(sorted(READERS))}")
    return READERS[max(matches, key=len)]


def tidy_table(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Numbers the rows, names the records and gives common columns their common names."""
    unnamed = [column for column in table.columns if str(column).startswith("Unnamed:")]
    table = table.drop(columns=unnamed).reset_index(drop=True)
    table = table.rename(
        columns={old: new for old, new in RENAMED.items() if new not in table.columns}
    )
    stem = path.name.split(".")[0]
    ids = [f"{stem}-{row}" for row in range(len(table))]
    for column in ID_COLUMNS:
        if column in table.columns:
            known = table.pop(column)
            ids = [
                default if pd.isna(value) else str(value)
                for value, default in zip(known, ids, strict=True)
            ]
            break
    table.insert(0, "material_id", np.array(ids, dtype=object))
    return table


def read_csv(path: Path) -> RawRecords:
    """Reads a CSV table with a column of structures, as CDVAE's data sets have them.

    The column is `cif` or `structure` and holds CIF or POSCAR text or a pymatgen dictionary as
    JSON. Whether the file is compressed is seen from its content.

    Raises:
        ValueError: the file is not a CSV table, or has no column of structures.
    """
    content = path.read_bytes()
    try:
        if content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)
        # pandas takes "NA" or "NaN" for missing, but the latter is also sodium nitride.
        table = pd.read_csv(
            io.BytesIO(content), low_memory=False, keep_default_na=False, na_values=["", "nan"]
        )
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise ValueError(
            f"cannot read {path} as a CSV table, gzipped or not: {error}; "
            "check that the file is complete and of that kind"
        ) from error
    column = next((name for name in STRUCTURE_COLUMNS if name in table.columns), None)
    if column is None:
        raise ValueError(
            f"{path} must have a column named {' or '.join(STRUCTURE_COLUMNS)}, "
            f"found the columns {list(table.columns)}"
        )
    return RawRecords(payloads=table.pop(column).tolist(), table=tidy_table(table, path))


def _read_prototypes(path: Path) -> RawRecords:
    """Reads the embedded set: parquet with lists `species`, `pos` (3 n), and `cell` (9, Å)."""
    try:
        table = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {path} as a parquet table: {error}") from error
    arrays = ["species", "pos", "cell"]
    missing = [name for name in arrays if name not in table.columns]
    if missing:
        raise ValueError(
            f"{path} must have the columns {arrays}, found the columns {list(table.columns)}"
        )
    payloads = [
        (
            np.asarray(species, dtype=np.int64),
            np.asarray(pos, dtype=np.float64).reshape(-1, 3),
            np.asarray(cell, dtype=np.float64).reshape(3, 3),
        )
        for species, pos, cell in zip(*(table.pop(name) for name in arrays), strict=True)
    ]
    return RawRecords(payloads=payloads, table=tidy_table(table, path))


register_reader(".csv", read_csv)
register_reader(".csv.gz", read_csv)
