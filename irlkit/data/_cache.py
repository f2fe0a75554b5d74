"""Parsed data sets on disk, found by the content of the file they came from.

One `.npz` per data file, without pickles: arrays, the table as parquet and the skipped records as
JSON. No trouble with the cache ends a run; it is told in a warning.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import warnings
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from irlkit.crystals import CrystalBatch
from irlkit.crystals.batch import FIELDS
from irlkit.data.dataset import Skipped
from irlkit.utils.system import write_atomically

FORMAT = 5
"""To be raised when what is stored, or how structures are parsed, changes."""

Entry = tuple[CrystalBatch, pd.DataFrame, list[Skipped]]


def folder() -> Path:
    """Return `$IRLKIT_CACHE`, or `~/.cache/irlkit`."""
    return Path(os.environ.get("IRLKIT_CACHE") or "~/.cache/irlkit").expanduser()


def key(path: Path, niggli: bool) -> str:
    """Return the name of the entry for what is now in a file, or in the files of a folder.

    Names count too: they name the records where a file does not.
    """
    digest = hashlib.sha256(f"{path.name} {niggli} {FORMAT}".encode())
    for entry in sorted(path.iterdir()) if path.is_dir() else [path]:
        digest.update(entry.name.encode() + b"\0")
        if entry.is_file():
            with entry.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:40]


def read(entry_key: str) -> Entry | None:
    """Read an entry: None if there is none or (with a warning) it cannot be read."""
    try:
        path = folder() / f"{entry_key}.npz"
        if not path.exists():
            return None
        with np.load(path, allow_pickle=False) as arrays:
            batch = CrystalBatch(*(torch.from_numpy(arrays[name]) for name in FIELDS))
            table = pd.read_parquet(io.BytesIO(arrays["table"].tobytes()))
            skipped = [Skipped(*pair) for pair in json.loads(arrays["skipped"].tobytes())]
    # A damaged archive can make its readers raise nearly anything.
    except Exception as error:
        _warn("read", error)
        return None
    return batch, table, skipped


def write(entry_key: str, entry: Entry) -> None:
    """Store an entry; a reader sees it whole or not at all."""
    batch, table, skipped = entry
    try:
        texts = {
            "table": table.to_parquet(),
            "skipped": json.dumps([astuple(record) for record in skipped]).encode(),
        }
        arrays = {name: getattr(batch, name).numpy() for name in FIELDS}
        arrays |= {name: np.frombuffer(text, dtype=np.uint8) for name, text in texts.items()}
        content = io.BytesIO()
        np.savez(content, **arrays)  # type: ignore[arg-type]
        write_atomically(folder() / f"{entry_key}.npz", content.getvalue())
    # The table may hold what parquet cannot.
    except Exception as error:
        _warn("write", error)


def _warn(verb: str, error: Exception) -> None:
    warnings.warn(
        f"cannot {verb} the cache of parsed data sets ({type(error).__name__}: {error}); "
        "going on without. The environment variable IRLKIT_CACHE names another folder",
        stacklevel=4,
    )
