"""Readers of data files: one function per kind of file, found by its extension.

A reader turns a file into `RawRecords`, a table and one unparsed structure per row, all at once or
(so that the file need not fit into memory) in several chunks. What the structures are parsed from
does not matter to the readers; `irlkit.data.parsing` sees to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from irlkit.utils.checks import checked

CHUNK_ROWS = 2048
"""Records that readers give at a time."""

ID_COLUMNS = ("material_id", "mp_id", "identifier", "configuration_id", "ids", "id")

RENAMED = {
    "spacegroup.number": "spacegroup",
    "spacegroup_number": "spacegroup",
    "space_group": "spacegroup",
}


@dataclass(frozen=True)
class RawRecords:
    """What a reader gives.

    Attributes:
        payloads: Per record, whatever `irlkit.data.parsing.parse_structure` takes: text, a
            pymatgen dictionary, a tuple (species, fractional positions, cell), or `Malformed`.
        table: The other columns, one row per record; `material_id` (text) among them.
    """

    payloads: list[Any]
    table: pd.DataFrame


Reader = Callable[[Path], RawRecords | Iterable[RawRecords]]

READERS: dict[str, Reader] = {}
"""Readers by extension, in lower case and with the leading dot."""


@checked
def register_reader(extension: str, reader: Reader) -> None:
    """Makes `irlkit.data.load` read files of an extension, such as ".csv.gz".

    Raises:
        ValueError: the extension does not start with a dot.
    """
    if not extension.startswith("."):
        raise ValueError(f'extension must start with a dot, such as ".csv", got {extension!r}')
    READERS[extension.lower()] = reader


def find_reader(path: Path) -> Reader:
    """The reader with the longest extension that the file's name ends with.

    Folders without an extension that is known are read as folders of structure files.

    Raises:
        ValueError: no reader for the extension.
    """
    matches = [extension for extension in READERS if path.name.lower().endswith(extension)]
    if matches:
        return READERS[max(matches, key=len)]
    from irlkit.data import files

    if path.is_dir():
        return files.read_folder
    if files.is_structure_file(path):
        return files.read_structure_file
    raise ValueError(f"no reader for {path}; known extensions: {', '.join(sorted(READERS))}")


def read_chunks(reader: Reader, path: Path) -> Iterator[RawRecords]:
    """What a reader gives, as chunks.

    Raises:
        ValueError: it gives something else.
    """
    records = reader(path)
    for chunk in [records] if isinstance(records, RawRecords) else records:
        if not (isinstance(chunk, RawRecords) and isinstance(chunk.table, pd.DataFrame)):
            raise ValueError(
                f"the reader of {path} must give RawRecords with a table as pandas has it, got "
                f"{type(chunk).__name__}"
            )
        yield chunk


def tidy_table(table: pd.DataFrame, path: Path, start: int = 0) -> pd.DataFrame:
    """Numbers the rows, names the records and gives common columns their common names.

    Args:
        table: Columns of a chunk of records.
        path: File that they are from; records without a name are called after it.
        start: Records before these.
    """
    unnamed = [column for column in table.columns if str(column).startswith("Unnamed:")]
    table = table.drop(columns=unnamed).reset_index(drop=True)
    table = table.rename(
        columns={old: new for old, new in RENAMED.items() if new not in table.columns}
    )
    stem = path.name.split(".")[0]
    ids = [f"{stem}-{start + row}" for row in range(len(table))]
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


def chunked(
    records: Iterable[tuple[Any, dict[str, Any]]], path: Path, size: int = CHUNK_ROWS
) -> Iterator[RawRecords]:
    """Chunks of records that come one by one as (payload, entries of the table)."""
    payloads: list[Any] = []
    rows: list[dict[str, Any]] = []
    start = 0
    for payload, row in records:
        payloads.append(payload)
        rows.append(row)
        if len(payloads) == size:
            yield RawRecords(payloads, tidy_table(pd.DataFrame(rows), path, start))
            start += size
            payloads, rows = [], []
    if payloads:
        table = pd.DataFrame(rows, index=range(len(rows)))
        yield RawRecords(payloads, tidy_table(table, path, start))


def scalars(entries: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """The entries that a table can hold: numbers, text, and arrays of one number."""
    kept: dict[str, Any] = {}
    for key, value in entries:
        if hasattr(value, "item") and np.size(value) == 1:
            value = value.item()
        if isinstance(value, bool | int | float | str):
            kept[str(key)] = value
    return kept
