"""Readers of tables with one structure per row: CSV and parquet."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from irlkit.data import readers
from irlkit.data._text import BROKEN, check_head, open_text
from irlkit.data.readers import (
    TEXT_COLUMNS,
    Arrays,
    Malformed,
    RawRecords,
    _with_numbers,
    register_reader,
)

STRUCTURE_COLUMNS = ("cif", "structure")
"""Columns that may hold the structure, the preferred one first."""

MAX_COLUMNS = 5000

ARRAY_COLUMNS = {
    ("species", "pos", "cell"): False,
    ("atomic_numbers", "positions", "cell"): True,
}
"""Columns of arrays that make a structure, and whether the positions are Cartesian (Å)."""


class _Unsuitable(Exception):
    """A table has no column of structures, or too many others, in words."""


def read_csv(path: Path) -> Iterator[RawRecords]:
    """Read a CSV table with a column of structures, as CDVAE's data sets have them.

    The column is `cif` or `structure` and holds CIF or POSCAR text or a pymatgen dictionary as
    JSON. Whether the file is compressed is seen from its content.

    Raises:
        ValueError: the file is not a CSV table, or has no column of structures.
    """
    try:
        with open_text(path, newline="") as file:
            # pandas takes a millisecond per column.
            header = file.readline(1 << 20)
            if (n_columns := header.count(",") + 1) > MAX_COLUMNS:
                raise _Unsuitable(f"{path} has {n_columns} columns, more than {MAX_COLUMNS}")
            file.seek(0)
            # As spreadsheets write them where the comma stands in numbers.
            separator = next((s for s in ";\t" if s in header and "," not in header), ",")
            names = next(csv.reader([header], delimiter=separator), [])
            # pandas takes "NA" or "NaN" for missing, but the latter is also sodium nitride.
            chunks = pd.read_csv(
                file,
                dtype={name: str for name in names if name.lower() in TEXT_COLUMNS},
                sep=separator,
                low_memory=False,
                keep_default_na=False,
                na_values=["", "nan"],
                chunksize=readers.CHUNK_ROWS,
            )
            for table in chunks:
                column = _structure_column(list(table.columns), path)
                yield RawRecords(table.pop(column).tolist(), _with_numbers(table))
    except _Unsuitable as error:
        raise ValueError(str(error)) from error
    except (*BROKEN, ValueError) as error:
        raise ValueError(
            f"cannot read {path} as a CSV table, gzipped or not: {error}; "
            "check that the file is complete and of that kind"
        ) from error


def _structure_column(columns: list[str], path: Path, alternative: str = "") -> str:
    for name in STRUCTURE_COLUMNS:
        if found := [column for column in columns if str(column).lower() == name]:
            return found[0]
    raise _Unsuitable(
        f"{path} must have a column named {' or '.join(STRUCTURE_COLUMNS)}{alternative}, "
        f"found the columns {columns}"
    )


def read_parquet(path: Path) -> Iterator[RawRecords]:
    """Read a parquet table with a column or with arrays of structures.

    The structures are in a column `cif` or `structure` (CIF or POSCAR text, or a pymatgen
    dictionary as such or as JSON); or in the columns `atomic_numbers`, `positions` (Cartesian, Å)
    and `cell` (Å), as ColabFit has them; or in `species`, `pos` (fractional) and `cell` (Å). Arrays
    may be nested or flat. Other columns of lists and dictionaries are left out of the table.

    Raises:
        ValueError: the file is not a parquet table, or has no structures.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with path.open("rb") as head:
            check_head(head.read(64))
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            arrays = next((c for c in ARRAY_COLUMNS if set(c) <= set(names)), None)
            alternative = f", or the columns {' or '.join(str(list(c)) for c in ARRAY_COLUMNS)}"
            used = list(arrays or [_structure_column(names, path, alternative)])
            periodic = ["pbc"] if arrays and "pbc" in names else []
            others = [
                entry.name
                for entry in file.schema_arrow
                if entry.name not in (*used, *periodic)
                and not (pa.types.is_nested(entry.type) or pa.types.is_binary(entry.type))
            ]
            for batch in file.iter_batches(readers.CHUNK_ROWS, columns=[*used, *periodic, *others]):
                columns = [batch.column(name).to_pylist() for name in used]
                if arrays:
                    cartesian = [ARRAY_COLUMNS[arrays]] * len(columns[0])
                    payloads: list[Any] = list(map(Arrays, *columns, cartesian))
                    for row, pbc in enumerate(batch.column("pbc").to_pylist() if periodic else ()):
                        if pbc is not None and not np.all(pbc):
                            payloads[row] = Malformed("it is not periodic in three directions")
                else:
                    payloads = [_without_missing(entry) for entry in columns[0]]
                table = batch.select(others).to_pandas()
                table.index = range(len(payloads))
                for name in others:
                    if name.lower() not in TEXT_COLUMNS:
                        continue
                    # Numbers with gaps become floats.
                    table[name] = pd.Series(batch.column(name).to_pylist(), dtype=object)
                yield RawRecords(payloads, table)
    except _Unsuitable as error:
        raise ValueError(str(error)) from error
    # A damaged table can make its libraries raise nearly anything.
    except Exception as error:
        raise ValueError(
            f"cannot read {path} as a parquet table ({type(error).__name__}: {error})"
        ) from error


def _without_missing(entry: Any) -> Any:
    """A dictionary without the keys that only other rows of the column have."""
    if isinstance(entry, dict):
        return {key: _without_missing(value) for key, value in entry.items() if value is not None}
    if isinstance(entry, list):
        return [_without_missing(value) for value in entry]
    return entry


register_reader(".csv", read_csv)
register_reader(".parquet", read_parquet)
