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
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from irlkit.crystals import CrystalBatch
from irlkit.data.dataset import Skipped
from irlkit.utils.system import write_atomically

FORMAT = 2
"""To be raised when what is stored, or how structures are parsed, changes."""

Entry = tuple[CrystalBatch, pd.DataFrame, list[Skipped]]


def folder() -> Path:
    """`$IRLKIT_CACHE`, or `~/.cache/irlkit`."""
    return Path(os.environ.get("IRLKIT_CACHE") or "~/.cache/irlkit").expanduser()


def key(path: Path, niggli: bool) -> str:
    """Name of the entry for the present content of a file, or of the files in a folder.

    The file's name counts too: it names the records where the file does not.
    """
    files = (
        sorted(entry for entry in path.iterdir() if entry.is_file()) if path.is_dir() else [path]
    )
    digest = hashlib.sha256()
    for entry in files:
        with entry.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").digest()
        digest.update(entry.name.encode() + b"\0" + content)
    digest.update(f"{path.name} {niggli} {FORMAT}".encode())
    return digest.hexdigest()[:40]


def read(entry_key: str) -> Entry | None:
    """The entry, or None if there is none or (with a warning) it cannot be read."""
    try:
        path = folder() / f"{entry_key}.npz"
        if not path.exists():
            return None
        with np.load(path, allow_pickle=False) as arrays:
            batch = CrystalBatch(
                **{
                    name: torch.from_numpy(arrays[name])
                    for name in ("species", "pos", "cell", "n_atoms")
                }
            )
            table = pd.read_parquet(io.BytesIO(arrays["table"].tobytes()))
            skipped = [Skipped(*pair) for pair in json.loads(arrays["skipped"].tobytes())]
    # A damaged archive can make its readers raise nearly anything.
    except Exception as error:
        _warn("read", error)
        return None
    return batch, table, skipped


def write(entry_key: str, entry: Entry) -> None:
    """Stores an entry; a reader sees it whole or not at all."""
    batch, table, skipped = entry
    try:
        pairs = [(record.record, record.reason) for record in skipped]
        content = io.BytesIO()
        np.savez(
            content,
            species=batch.species.numpy(),
            pos=batch.pos.numpy(),
            cell=batch.cell.numpy(),
            n_atoms=batch.n_atoms.numpy(),
            table=np.frombuffer(table.to_parquet(), dtype=np.uint8),
            skipped=np.frombuffer(json.dumps(pairs).encode(), dtype=np.uint8),
        )
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
