"""Readers of data files: one function per kind of file, found by its extension.

A reader turns a file into `RawRecords`, a table and one unparsed structure per row, all at once or
(so that the file need not fit into memory) in several chunks.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from irlkit.utils.checks import checked

CHUNK_ROWS = 2048
"""Records that readers give at a time."""

ID_COLUMNS = ("material_id", "mp_id", "identifier", "configuration_id", "ids", "id")

FORMULA_COLUMNS = ("formula", "pretty_formula", "reduced_formula", "formula_pretty", "full_formula")
"""Columns in which a file may say what its structures are."""

COUNT_COLUMNS = ("n_atoms", "nsites", "num_sites", "natoms", "num_atoms")
"""Columns in which it may say how many atoms they have: the cell, or a larger or smaller one."""

TEXT_COLUMNS = (*ID_COLUMNS, *FORMULA_COLUMNS, "split")
"""Columns whose entries are text, such as 0012, NaN and InF, in lower case."""

RENAMED = {
    "spacegroup.number": "spacegroup",
    "spacegroup_number": "spacegroup",
    "space_group": "spacegroup",
} | {name: name for name in (*TEXT_COLUMNS, *COUNT_COLUMNS)}
"""Common names of columns, whatever their case."""


_MISSING = ("NaN", "NA", "N/A", "n/a", "#N/A", "<NA>", "NULL", "Null", "null", "None", "none", "-")
"""What stands for a number that is not known; as text it may be something else, NaN a formula."""


def _with_numbers(table: pd.DataFrame) -> pd.DataFrame:
    """A table of a text file, its columns numbers where all but missing entries are."""
    for name in table.columns:
        column = table[name]
        is_text = str(name).lower() in TEXT_COLUMNS
        if not is_text and column.dtype.kind == "O" and column.isin(_MISSING).any():
            numbers = pd.to_numeric(column.mask(column.isin(_MISSING)), errors="coerce")
            if numbers.isna().equals(column.isna() | column.isin(_MISSING)):
                table[name] = numbers
    return table


class Arrays(NamedTuple):
    """A structure as numbers.

    Attributes:
        species: Atomic numbers, (n,).
        pos: Positions, (n, 3) or flat: fractional, or in Å.
        cell: Lattice vectors as rows, Å, (3, 3) or flat.
        cartesian: Whether positions are in Å.
    """

    species: Any
    pos: Any
    cell: Any
    cartesian: bool = False


@dataclass(frozen=True)
class Malformed:
    """What a reader gives for a record that it could not read.

    Attributes:
        reason: Why, in words.
    """

    reason: str


@dataclass(frozen=True)
class RawRecords:
    """What a reader gives.

    Attributes:
        payloads: Per record: text (CIF, POSCAR, or a pymatgen dictionary as JSON), such a
            dictionary, `Arrays` (or a tuple of the same), or `Malformed`.
        table: The other columns, one row per record. Names of records are in `material_id` or
            another of `ID_COLUMNS`; those without are called after the file.
    """

    payloads: list[Any]
    table: pd.DataFrame


Reader = Callable[[Path], RawRecords | Iterable[RawRecords]]

READERS: dict[str, Reader] = {}
"""Readers by extension, in lower case and with the leading dot."""


@checked
def register_reader(extension: str, reader: Reader) -> None:
    """Make `irlkit.data.load` read files of an extension, such as ".csv.gz".

    What it reads is not cached: the reader may have changed by the next time.

    Raises:
        ValueError: the extension does not start with a dot.
    """
    if not extension.startswith("."):
        raise ValueError(f'extension must start with a dot, such as ".csv", got {extension!r}')
    READERS[extension.lower()] = reader


def read_chunks(reader: Reader, path: Path) -> Iterator[RawRecords]:
    """Yield what a reader gives, chunk by chunk, with `material_id` and the common columns' names.

    Raises:
        ValueError: it gives something else.
    """
    records = reader(path)
    start = 0
    for chunk in [records] if isinstance(records, RawRecords) else records:
        if not (isinstance(chunk, RawRecords) and isinstance(chunk.table, pd.DataFrame)):
            raise ValueError(
                f"the reader of {path} must give RawRecords with a table as pandas has it, got "
                f"{type(chunk).__name__}"
            )
        yield RawRecords(chunk.payloads, _tidy(chunk.table, path, start))
        start += len(chunk.payloads)


def _tidy(table: pd.DataFrame, path: Path, start: int) -> pd.DataFrame:
    """Numbers the rows, names the records and gives common columns their common names."""
    unnamed = [column for column in table.columns if str(column).startswith("Unnamed:")]
    table = table.drop(columns=unnamed).reset_index(drop=True)
    common = {name: RENAMED.get(str(name).lower(), name) for name in table.columns}
    table = table.rename(columns={a: b for a, b in common.items() if b not in table.columns})
    stem = path.name.split(".")[0]
    ids = [f"{stem}-{start + row}" for row in range(len(table))]
    if named := next((column for column in ID_COLUMNS if column in table.columns), None):
        known = zip(table.pop(named), ids, strict=True)
        ids = [default if pd.isna(value) else _name(value) for value, default in known]
    table.insert(0, "material_id", np.array(ids, dtype=object))
    return table


def _name(value: Any) -> str:
    """An id as text; numbers with gaps have become floats before they were written."""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def chunked(records: Iterable[tuple[Any, dict[str, Any]]]) -> Iterator[RawRecords]:
    """Yield chunks of records that come one by one as (payload, entries of the table)."""
    records = iter(records)
    while chunk := list(itertools.islice(records, CHUNK_ROWS)):
        payloads, rows = zip(*chunk, strict=True)
        yield RawRecords(list(payloads), pd.DataFrame(rows, index=range(len(rows))))


def scalars(entries: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Return the entries that a table can hold: numbers, text, and arrays of one number.

    >>> scalars([("gap", np.array([1.5])), ("forces", np.zeros(3)), ("id", "a")])
    {'gap': 1.5, 'id': 'a'}
    """
    kept: dict[str, Any] = {}
    for key, value in entries:
        if hasattr(value, "item") and np.size(value) == 1:
            value = value.item()
        if isinstance(value, bool | int | float | str):
            kept[str(key)] = value
    return kept
