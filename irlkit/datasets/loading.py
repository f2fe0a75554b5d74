"""One call for every data set, embedded or from a file."""

from __future__ import annotations

import hashlib
import os
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from irlkit.crystals import CrystalBatch
from irlkit.datasets import cache as _cache
from irlkit.datasets.dataset import CrystalDataset, Skipped, shorten
from irlkit.datasets.parsing import parse_structures
from irlkit.datasets.readers import Reader, _read_prototypes, find_reader

EMBEDDED: dict[str, tuple[Path, Reader]] = {
    "prototypes": (Path(__file__).parent / "prototypes" / "prototypes.parquet", _read_prototypes)
}
"""File and reader of each set that comes with the package."""

SPLITS = {"train": 0.8, "val": 0.9, "test": 1.0}
"""Upper end of each split's share of the unit interval."""

MIN_FORMULAS = 10
"""With fewer compositions than this, a file is split by record."""


def load(
    name_or_path: str | os.PathLike[str],
    split: str | None = None,
    *,
    max_atoms: int | None = None,
    niggli: bool = True,
    cache: bool = True,
    progress: bool = True,
    dtype: torch.dtype = torch.float32,
) -> CrystalDataset:
    """Loads an embedded data set or a data file.

    A file without a `split` column is split 80/10/10 by a hash of the reduced formula, so that
    polymorphs stay together, on every machine alike. Only where the file has fewer than 10
    formulas (carbon has one) are its records split by a hash of their `material_id` instead.

    Records that give no ordered structure of elements 1 to 100 are skipped: a warning names the
    first ones, `CrystalDataset.skipped` all of them.

    Args:
        name_or_path: "prototypes", or a file that there is a reader for: CSV (gzipped or not)
            with a column `cif` or `structure`.
        split: "train", "val" or "test" (or what the file's `split` column holds); None for all.
        max_atoms: Leave out structures with more atoms per cell.
        niggli: Reduce cells to their Niggli form; else they are only rotated to the standard
            orientation (first vector along x, second in the xy plane).
        cache: Keep the parsed set in `$IRLKIT_CACHE` (`~/.cache/irlkit`) and take it from there.
        progress: Show a progress bar while many structures are parsed.
        dtype: Of `pos` and `cell`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the name of no known set; a file that cannot be read, is empty or has no
            structures; an unknown or empty split; max_atoms < 1 or below every structure.
    """
    if max_atoms is not None and max_atoms < 1:
        raise ValueError(f"max_atoms must be at least 1, got {max_atoms}")
    name, path, reader = _find(name_or_path)
    batch, table, skipped = _parsed(name, path, reader, niggli, cache, progress)
    if skipped:
        listed = [f"{entry.record} ({entry.reason})" for entry in skipped]
        warnings.warn(
            f"{len(skipped)} of {len(skipped) + len(batch)} records of {path} were skipped: "
            f"{shorten(listed, separator='; ')}",
            stacklevel=2,
        )
    keep = np.ones(len(batch), dtype=bool)
    if split is not None:
        labels = _splits(table)
        valid = list(SPLITS) if "split" not in table else sorted(set(labels))
        if split not in valid:
            raise ValueError(f"split must be one of {valid} or None, got {split!r}")
        keep &= labels == split
    if max_atoms is not None:
        keep &= table["n_atoms"].to_numpy() <= max_atoms
    if not keep.any():
        raise ValueError(
            f"no structure of {path} is left with split={split!r} and max_atoms={max_atoms}; "
            f"it has {len(batch)} structures of {table['n_atoms'].min()} to "
            f"{table['n_atoms'].max()} atoms"
        )
    dataset = CrystalDataset(
        name=name, split=split, batch=batch.to(dtype=dtype).wrap(), table=table, skipped=skipped
    )
    return dataset if keep.all() else dataset.select(keep)


def _find(name_or_path: str | os.PathLike[str]) -> tuple[str, Path, Reader]:
    """Name, file and reader of a data set."""
    embedded = EMBEDDED.get(str(name_or_path))
    path = embedded[0] if embedded else Path(name_or_path).expanduser()
    if not path.exists():
        if not embedded and not path.suffix and len(path.parts) == 1:
            raise ValueError(
                f"unknown data set {str(name_or_path)!r}; known sets: "
                f"{', '.join(sorted(EMBEDDED))}; for a file, give its path"
            )
        raise FileNotFoundError(f"no data file {path} (looked in {path.absolute().parent})")
    if path.stat().st_size == 0:
        raise ValueError(f"the data file {path} is empty")
    reader = embedded[1] if embedded else find_reader(path)
    return path.name.split(".")[0], path, reader


def _parsed(
    name: str, path: Path, reader: Reader, niggli: bool, cache: bool, progress: bool
) -> _cache.Entry:
    """All structures of a file, from the cache or from the file itself; float64."""
    key = _cache.key(path, niggli) if cache else ""
    entry = _cache.read(key) if cache else None
    if entry is not None:
        return entry
    records = reader(path)
    ids = records.table["material_id"]
    if not len(ids):
        raise ValueError(f"the data file {path} has no records")
    parsed = parse_structures(records.payloads, niggli, progress, description=f"Parsing {name}")
    skipped = [
        Skipped(record, reason)
        for record, reason in zip(ids, parsed, strict=True)
        if isinstance(reason, str)
    ]
    good = [entry for entry in parsed if not isinstance(entry, str)]
    if not good:
        raise ValueError(
            f"none of the {len(parsed)} records of {path} gave a structure; "
            f"the first: {skipped[0].record} ({skipped[0].reason})"
        )
    species, pos, cell = zip(*good, strict=True)
    batch = CrystalBatch.from_arrays(species, pos, cell, dtype=torch.float64)
    table = records.table[[not isinstance(entry, str) for entry in parsed]].reset_index(drop=True)
    entry = (batch.standard_orientation(), _with_common_columns(table, batch), skipped)
    if cache:
        _cache.write(key, entry)
    return entry


def _with_common_columns(table: pd.DataFrame, batch: CrystalBatch) -> pd.DataFrame:
    """Puts the columns that every set has, or that mean the same in every set, first."""
    table = table.assign(formula=batch.reduced_formulas(), n_atoms=batch.n_atoms.numpy())
    first = ["material_id", "formula", "n_atoms", "spacegroup", "energy_per_atom"]
    first = [column for column in first if column in table.columns]
    return table[first + [column for column in table.columns if column not in first]]


def _splits(table: pd.DataFrame) -> np.ndarray:
    """Name of each structure's split."""
    if "split" in table.columns:
        return table["split"].to_numpy(dtype=object)
    by_formula = table["formula"].nunique() >= MIN_FORMULAS
    keys = table["formula" if by_formula else "material_id"]
    return keys.map({key: split_of(key) for key in keys.unique()}).to_numpy(dtype=object)


def split_of(key: str) -> str:
    """Split by the hash of a text, which unlike Python's own is the same in every process."""
    position = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64
    return next(name for name, end in SPLITS.items() if position < end)
