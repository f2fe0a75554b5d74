"""Reader of OMatG's LMDB files; writing them is left to OMatG."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from irlkit.data import unpickling
from irlkit.data.lmdb_pages import check_pages
from irlkit.data.parsing import Malformed, fractional
from irlkit.data.readers import RawRecords, chunked, register_reader, scalars

ARRAYS = ("atomic_numbers", "pos", "cell")


def read_lmdb(path: Path) -> Iterator[RawRecords]:
    """Reads OMatG's LMDB files (or folders with `data.mdb`), record by record.

    A record is a pickled dictionary of the tensors `pos` (Cartesian, Å), `cell` (Å) and
    `atomic_numbers`; with `pos_is_fractional`, `pos` is fractional. Other numbers and strings go to
    the table. Pickles are read by `irlkit.data.unpickling`: a record with anything else in it
    executes nothing and is skipped.

    Raises:
        ImportError: the package lmdb is not installed.
        ValueError: the file is not an LMDB file, is truncated or damaged.
    """
    try:
        import lmdb
    except ImportError as error:
        raise ImportError(
            f"reading {path} needs the package lmdb: pip install 'irlkit[lmdb]'"
        ) from error
    data = path / "data.mdb" if path.is_dir() else path
    if not data.is_file():
        raise ValueError(f"{path} is a folder without data.mdb")
    check_pages(data)
    try:
        with lmdb.open(
            str(path), subdir=path.is_dir(), readonly=True, lock=False, readahead=False
        ) as environment:
            with environment.begin() as transaction:
                keys = sorted(transaction.cursor().iternext(values=False), key=_order)
                records = (_read_record(key, transaction.get(key, b"")) for key in keys)
                yield from chunked(records, path)
    except lmdb.Error as error:
        raise ValueError(f"cannot read {path} as an LMDB file: {error}") from error


def _order(key: bytes) -> tuple[int, bytes]:
    """Numbers in order of size, before other keys."""
    return (len(key.lstrip(b"0")) if key.isdigit() else 1 << 30, key.lstrip(b"0") or key)


def _read_record(key: bytes, data: bytes) -> tuple[Any, dict[str, Any]]:
    """Payload and entries of the table."""
    row: dict[str, Any] = {}
    try:
        record = unpickling.loads(data)
        if not isinstance(record, dict) or not set(ARRAYS) <= set(record):
            found = sorted(map(str, record)) if isinstance(record, dict) else type(record).__name__
            raise ValueError(f"it must be a dictionary with {list(ARRAYS)}, found {found}")
        others = {name: value for name, value in record.items() if name not in ARRAYS}
        is_fractional = bool(others.pop("pos_is_fractional", False))
        row = scalars(
            (name, value.numpy() if isinstance(value, Tensor) else value)
            for name, value in others.items()
        )
        species, pos, cell = (np.asarray(record[name], dtype=np.float64) for name in ARRAYS)
        cell = cell.reshape(3, 3)
        pos = pos.reshape(-1, 3)
        payload: Any = (
            species.reshape(-1).astype(np.int64),
            pos if is_fractional else fractional(pos, cell),
            cell,
        )
    # What a strange record makes of this, such as a number beyond all types.
    except Exception as error:
        payload = Malformed(str(error))
    if not any(name in row for name in ("material_id", "mp_id", "identifier", "ids", "id")):
        row["identifier"] = key.decode(errors="replace")
    return payload, row


register_reader(".lmdb", read_lmdb)
