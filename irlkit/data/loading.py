"""One call for every data set, embedded or from a file."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, overload

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from irlkit.crystals import CrystalBatch
from irlkit.data import cache as _cache
from irlkit.data.dataset import CrystalDataset, Skipped, shorten
from irlkit.data.formulas import from_formulas, read_formulas
from irlkit.data.parsing import SERIAL_LIMIT, parse_structures
from irlkit.data.readers import RawRecords, Reader, find_reader, read_chunks
from irlkit.data.tables import read_parquet
from irlkit.utils.checks import checked

EMBEDDED: dict[str, tuple[Path, Reader]] = {
    "prototypes": (Path(__file__).parent / "prototypes" / "prototypes.parquet", read_parquet)
}
"""File and reader of each set that comes with the package."""

SPLITS = {"train": 0.8, "val": 0.9, "test": 1.0}
"""Upper end of each split's share of the unit interval."""

MIN_FORMULAS = 10
"""With fewer compositions than this, a file is split by record."""

Source = str | os.PathLike[str] | Sequence[str]


@overload
def load(
    source: Source,
    split: str | None = ...,
    *,
    max_atoms: int | None = ...,
    z: int | Sequence[int] | None = ...,
    niggli: bool = ...,
    lazy: Literal[False] = ...,
    cache: bool = ...,
    progress: bool = ...,
    dtype: torch.dtype = ...,
) -> CrystalDataset: ...


@overload
def load(
    source: Source,
    split: str | None = ...,
    *,
    max_atoms: int | None = ...,
    niggli: bool = ...,
    lazy: Literal[True],
    dtype: torch.dtype = ...,
) -> LazyDataset: ...


@checked
def load(
    source: Source,
    split: str | None = None,
    *,
    max_atoms: int | None = None,
    z: int | Sequence[int] | None = None,
    niggli: bool = True,
    lazy: bool = False,
    cache: bool = True,
    progress: bool = True,
    dtype: torch.dtype = torch.float32,
) -> CrystalDataset | LazyDataset:
    """Loads an embedded data set, a data file, a folder of structure files, or formulas.

    | what | which |
    |---|---|
    | `prototypes` | the embedded data set |
    | `.csv`, `.csv.gz` | table with a column `cif` or `structure`, as CDVAE has them |
    | `.lmdb` | OMatG's data sets; their pickles execute nothing |
    | `.parquet` | column `cif` or `structure`, or ColabFit's arrays |
    | `.extxyz`, `.xyz` | extended XYZ |
    | `.cif`, `.vasp`, `POSCAR`, or a folder of these | one structure per file |
    | `.txt`, or a list of strings | formulas, to predict without a reference (`from_formulas`) |

    A file without a `split` column is split 80/10/10 by a hash of the reduced formula, so that
    polymorphs stay together, on every machine alike. Only where the file has fewer than 10
    formulas (carbon has one) are its records split by a hash of their `material_id` instead.

    Records that give no ordered structure of elements 1 to 100 are skipped: a warning names the
    first ones, `CrystalDataset.skipped` all of them.

    Args:
        source: Name, path or formulas, see above.
        split: "train", "val" or "test" (or what the file's `split` column holds); None for all.
        max_atoms: Leave out structures with more atoms per cell. For formulas without `z`: take
            every number of formula units per cell that fits.
        z: Formula units per cell, for formulas only: one number or one per formula.
        niggli: Reduce cells to their Niggli form; else they are only rotated to the standard
            orientation (first vector along x, second in the xy plane).
        lazy: Give a `LazyDataset`, which holds a part of the file at a time.
        cache: Keep the parsed set in `$IRLKIT_CACHE` (`~/.cache/irlkit`) and take it from there.
        progress: Show a progress bar while many structures are parsed.
        dtype: Of `pos` and `cell`.

    Raises:
        FileNotFoundError: no such file.
        ImportError: the file needs a package that is not installed.
        ValueError: the name of no known set; a file that cannot be read, is empty or has no
            structures; an unknown or empty split; max_atoms < 1 or below every structure; z for
            something that is no list of formulas.
    """
    if max_atoms is not None and max_atoms < 1:
        raise ValueError(f"max_atoms must be at least 1, got {max_atoms}")
    formulas = _formulas(source, z)
    if formulas is not None:
        if split is not None or lazy:
            raise ValueError("formulas have no splits and are never lazy")
        name, texts, units = formulas
        dataset = from_formulas(texts, units, max_atoms, name=name, dtype=dtype)
        _warn_about(dataset.skipped, len(texts), name)
        return dataset
    if z is not None:
        raise ValueError(f"z is for formulas only, got z={z!r} for {source!r}")
    assert not isinstance(source, Sequence) or isinstance(source, str)
    name, path, reader = _find(source)
    if lazy:
        return LazyDataset(name, split, path, reader, max_atoms, niggli, dtype)
    batch, table, skipped = _parsed(name, path, reader, niggli, cache, progress)
    _warn_about(skipped, len(skipped) + len(batch), path)
    keep = np.ones(len(batch), dtype=bool)
    if split is not None:
        keep &= _in_split(table, split, split_by(table))
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


def _formulas(
    source: Source, z: int | Sequence[int] | None
) -> tuple[str, list[str], int | Sequence[int] | None] | None:
    """Name, formulas and units per cell, if that is what the source holds."""
    if not isinstance(source, str | os.PathLike):
        if not len(source):
            raise ValueError("source must hold at least one formula, got none")
        return "formulas", list(source), z
    path = Path(source).expanduser()
    if path.suffix.lower() != ".txt" or not path.is_file():
        return None
    texts, units = read_formulas(path)
    if not texts:
        raise ValueError(f"the data file {path} is empty")
    if z is None and any(units):
        return path.stem, texts, [unit or 1 for unit in units]
    return path.stem, texts, z


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
    if path.is_file() and path.stat().st_size == 0:
        raise ValueError(f"the data file {path} is empty")
    reader = embedded[1] if embedded else find_reader(path)
    return path.name.split(".")[0], path, reader


def _warn_about(skipped: Sequence[Skipped], n_records: int, source: object) -> None:
    if skipped:
        listed = [f"{entry.record} ({entry.reason})" for entry in skipped]
        warnings.warn(
            f"{len(skipped)} of {n_records} records of {source} were skipped: "
            f"{shorten(listed, separator='; ')}",
            stacklevel=3,
        )


def _parsed(
    name: str, path: Path, reader: Reader, niggli: bool, cache: bool, progress: bool
) -> _cache.Entry:
    """All structures of a file, from the cache or from the file itself; float64."""
    key = _cache.key(path, niggli) if cache else ""
    entry = _cache.read(key) if cache else None
    if entry is not None:
        return entry
    batches, tables, skipped, n_records = [], [], [], 0
    with tqdm(desc=f"Parsing {name}", disable=not progress, unit="", delay=2) as bar:
        for records in read_chunks(reader, path):
            n_records += len(records.payloads)
            batch, table, bad = _parse(records, niggli, bar)
            batches.append(batch)
            tables.append(table)
            skipped.extend(bad)
    if not n_records:
        raise ValueError(f"the data file {path} has no records")
    if len(skipped) == n_records:
        raise ValueError(
            f"none of the {n_records} records of {path} gave a structure; "
            f"the first: {skipped[0].record} ({skipped[0].reason})"
        )
    filled = [table for table in tables if len(table)]
    entry = (
        CrystalBatch.concatenate(batches),
        _common_columns_first(pd.concat(filled, ignore_index=True)),
        skipped,
    )
    if cache:
        _cache.write(key, entry)
    return entry


def _parse(
    records: RawRecords, niggli: bool, bar: tqdm | None = None
) -> tuple[CrystalBatch, pd.DataFrame, list[Skipped]]:
    """Structures (float64), table and skipped records of a chunk."""
    parsed = parse_structures(records.payloads, niggli, bar)
    good = [entry for entry in parsed if not isinstance(entry, str)]
    skipped = [
        Skipped(record, reason)
        for record, reason in zip(records.table["material_id"], parsed, strict=True)
        if isinstance(reason, str)
    ]
    species, pos, cell = zip(*good, strict=True) if good else ((), (), ())
    batch = CrystalBatch.from_arrays(species, pos, cell, dtype=torch.float64)
    table = records.table[[not isinstance(entry, str) for entry in parsed]].reset_index(drop=True)
    table = table.assign(formula=batch.reduced_formulas(), n_atoms=batch.n_atoms.numpy())
    return batch.standard_orientation(), table, skipped


def _common_columns_first(table: pd.DataFrame) -> pd.DataFrame:
    """Puts the columns that every set has, or that mean the same in every set, first."""
    first = ["material_id", "formula", "n_atoms", "spacegroup", "energy_per_atom"]
    first = [column for column in first if column in table.columns]
    return table[first + [column for column in table.columns if column not in first]]


def split_by(table: pd.DataFrame) -> str:
    """Column that a file is split by."""
    if "split" in table.columns:
        return "split"
    return "formula" if table["formula"].nunique() >= MIN_FORMULAS else "material_id"


def _in_split(table: pd.DataFrame, split: str, by: str) -> np.ndarray:
    """Which rows belong to a split.

    Raises:
        ValueError: there is no such split.
    """
    if by == "split":
        labels, valid = table["split"], sorted(set(table["split"]))
    else:
        labels = table[by].map({key: split_of(key) for key in table[by].unique()})
        valid = list(SPLITS)
    if split not in valid:
        raise ValueError(f"split must be one of {valid} or None, got {split!r}")
    return (labels == split).to_numpy(dtype=bool)


def split_of(key: str) -> str:
    """Split by the hash of a text, which unlike Python's own is the same in every process."""
    position = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64
    return next(name for name, end in SPLITS.items() if position < end)


@dataclass
class LazyDataset:
    """A data set that is read anew, part by part, in every pass.

    Iteration gives `CrystalDataset`s of up to some thousand structures each, in the order of the
    file; what does not fit into memory never has to.

    Attributes:
        name: Name of the set.
        split: Name of the split, or None for the whole set.
        path: Its file.
        reader: Its reader.
        max_atoms: Structures with more atoms are left out; None keeps all.
        niggli: Whether cells are reduced.
        dtype: Of `pos` and `cell`.
        skipped: Records that gave no structure, of the pass under way or the last one.
    """

    name: str
    split: str | None
    path: Path
    reader: Reader
    max_atoms: int | None = None
    niggli: bool = True
    dtype: torch.dtype = torch.float32
    skipped: list[Skipped] = field(default_factory=list)

    def __iter__(self) -> Iterator[CrystalDataset]:
        """Yields the parts of one pass; a warning at its end names skipped records.

        Raises:
            ValueError: the file cannot be read, or there is no such split.
        """
        by = self._split_by() if self.split is not None else ""
        self.skipped = []
        n_records = 0
        for records in read_chunks(self.reader, self.path):
            n_records += len(records.payloads)
            batch, table, skipped = _parse(records, self.niggli)
            self.skipped.extend(skipped)
            keep = np.ones(len(batch), dtype=bool)
            if self.split is not None and by == "split":
                keep &= (table["split"] == self.split).to_numpy(dtype=bool)
            elif self.split is not None:
                keep &= _in_split(table, self.split, by)
            if self.max_atoms is not None:
                keep &= table["n_atoms"].to_numpy() <= self.max_atoms
            if keep.any():
                yield CrystalDataset(
                    name=self.name,
                    split=self.split,
                    batch=batch.to(dtype=self.dtype).wrap(),
                    table=_common_columns_first(table),
                    skipped=skipped,
                ).select(keep)
        _warn_about(self.skipped, n_records, self.path)

    def _split_by(self) -> str:
        """What the file is split by; reads until that is clear."""
        formulas: set[str] = set()
        for records in read_chunks(self.reader, self.path):
            if "split" in records.table.columns:
                return "split"
            for start in range(0, len(records.payloads), SERIAL_LIMIT):
                part = slice(start, start + SERIAL_LIMIT)
                few = RawRecords(records.payloads[part], records.table[part])
                formulas.update(_parse(few, niggli=False)[1]["formula"])
                if len(formulas) >= MIN_FORMULAS:
                    return "formula"
        return "material_id"
