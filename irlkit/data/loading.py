"""One call for every data set, embedded or from a file."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from irlkit.crystals import CrystalBatch
from irlkit.crystals.formulas import parse_formula
from irlkit.data import _cache
from irlkit.data._files import is_structure_file, read_folder, read_structure_file
from irlkit.data._parsing import SERIAL_LIMIT, parse_structures
from irlkit.data._tables import read_parquet
from irlkit.data._text import shorten, without_compression
from irlkit.data.dataset import CrystalDataset, Skipped
from irlkit.data.formulas import from_formulas, read_formulas, split_formulas
from irlkit.data.readers import (
    COUNT_COLUMNS,
    FORMULA_COLUMNS,
    READERS,
    RawRecords,
    Reader,
    read_chunks,
)
from irlkit.utils.checks import check_count, checked
from irlkit.utils.settings import torch_settings

EMBEDDED: dict[str, tuple[Path, Reader]] = {
    name: (Path(__file__).parent / name / f"{name}.parquet", read_parquet)
    for name in ("prototypes", "complex")
}
"""File and reader of each set that comes with the package."""

SPLITS = {"train": 0.8, "val": 0.9, "test": 1.0}
"""Upper end of each split's share of the unit interval."""

SPLIT_NAMES = {"valid": "val", "validation": "val", "training": "train", "testing": "test"}
"""Other names of the splits, in lower case."""

MIN_FORMULAS = 10
"""With fewer compositions than this, a file is split by record."""

FIRST_COLUMNS = ("material_id", "formula", "n_atoms", "spacegroup", "energy_per_atom")
"""Columns that every set has, or that mean the same in every set."""


@checked
@torch_settings(plain=True)
def load(
    source: str | os.PathLike[str] | Sequence[str],
    split: str | None = None,
    *,
    max_atoms: int | None = None,
    z: int | Sequence[int] | None = None,
    niggli: bool = True,
    cache: bool = True,
    progress: bool = True,
    dtype: torch.dtype = torch.float32,
) -> CrystalDataset:
    """Load an embedded data set, a data file, a folder of structure files, or formulas.

    | what | which |
    |---|---|
    | `prototypes`, `complex` | embedded: up to 3 elements and 12 atoms; up to 4 and 28 |
    | `prototypes+complex` | both |
    | `.csv` | table with a column `cif` or `structure`, as CDVAE has them |
    | `.lmdb` | OMatG's data sets; their pickles execute nothing |
    | `.parquet` | column `cif` or `structure`, or ColabFit's arrays |
    | `.extxyz`, `.xyz` | extended XYZ |
    | `.cif`, `.vasp`, `POSCAR`, or a folder of these | one structure per file or data block |
    | `.zip` | archive of these, of extended XYZ and of JSON; nothing is unpacked to the disk |
    | `.json`, `.jsonl` | pymatgen's structures as dictionaries: a list, by name, or one per line |
    | `.txt`, or a list of strings | formulas, to predict without a reference (`from_formulas`) |

    Text may be compressed (`.gz`, `.bz2`, `.xz`); a list may be one text, `"NaCl, MgO"` or as JSON.

    A file without a `split` column is split 80/10/10 by a hash of the reduced formula, so that
    polymorphs stay together, on every machine alike. Only where the file has fewer than 10
    formulas (carbon has one) are its records split by a hash of their `material_id` instead.

    Records that give no ordered structure of elements 1 to 100, or contradict themselves, are
    skipped: a warning names the first ones, `CrystalDataset.skipped` all of them.

    >>> load(["TiO2"], max_atoms=7).batch.formulas()
    ['O2 Ti1', 'O4 Ti2']

    Args:
        source: Name, path or formulas, see above.
        split: "train", "val" or "test" (or what the file's `split` column holds, whose "Valid" and
            "validation" are "val"); None for all.
        max_atoms: Leave out structures with more atoms per cell. For formulas without `z`: take
            every number of formula units per cell that fits.
        z: Formula units per cell, for formulas only: one number or one per formula.
        niggli: Reduce cells to their Niggli form; else they are only rotated to the standard
            orientation (first vector along x, second in the xy plane).
        cache: Keep the parsed set in `$IRLKIT_CACHE` (`~/.cache/irlkit`) and take it from there.
        progress: Show a progress bar while many structures are parsed.
        dtype: Of `pos` and `cell`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an unknown set, file or split; nothing that can be read, or nothing is left.
    """
    if max_atoms is not None:
        check_count("max_atoms", max_atoms)
    if formulas := _formulas(source, z):
        if split is not None:
            raise ValueError("formulas have no splits")
        return _load_formulas(*formulas, max_atoms, dtype)
    if z is not None:
        raise ValueError(f"z is for formulas only, got z={z!r} for {source!r}")
    split = split and _common_split(split)
    names = str(source).split("+")
    together = len(names) > 1 and set(names) <= set(EMBEDDED)
    parts = [
        _load_file(part, split, max_atoms, niggli, cache, progress, dtype)  # type: ignore[arg-type]
        for part in (names if together else [source])
    ]
    if not together:
        return parts[0]
    table = pd.concat([part.table for part in parts], ignore_index=True)
    batch = CrystalBatch.concatenate([part.batch for part in parts])
    return CrystalDataset(str(source), split, batch, table)


def _load_file(
    source: str | os.PathLike[str],
    split: str | None,
    max_atoms: int | None,
    niggli: bool,
    cache: bool,
    progress: bool,
    dtype: torch.dtype,
) -> CrystalDataset:
    path, reader = _find(source)
    batch, table, skipped = _parsed(path, reader, niggli, cache, progress)
    _warn_about(skipped, len(skipped) + len(batch), path)
    dataset = _dataset(path, split, batch, table, skipped, dtype)
    by = _split_by(table) if split is not None else ""
    if by == "split":
        labels = table["split"].map(_common_split)
        _warn_about_gaps(int((labels == "").sum()), path)
    _check_split(split, sorted(set(labels) - {""}) if by == "split" else list(SPLITS))
    keep = _chosen(table, split, by, max_atoms)
    if not keep.any():
        raise ValueError(
            f"no structure of {path} is left with split={split!r} and max_atoms={max_atoms}; "
            f"it has {len(batch)} structures of {table['n_atoms'].min()} to "
            f"{table['n_atoms'].max()} atoms"
        )
    return dataset if keep.all() else dataset.select(keep)


@checked
def load_parts(
    source: str | os.PathLike[str],
    split: str | None = None,
    *,
    max_atoms: int | None = None,
    niggli: bool = True,
    dtype: torch.dtype = torch.float32,
) -> Iterator[CrystalDataset]:
    """Load a data set part by part: what does not fit into memory never has to.

    Args:
        source: Name or path, as for `load`, and the other arguments too.

    Yields:
        Data sets of up to some thousand structures each, in the order of the file. A warning at
        the end names skipped records.

    Raises:
        FileNotFoundError, ValueError: as `load`.
    """
    path, reader = _find(source)
    split = split and _common_split(split)
    with torch_settings(plain=True):
        by = _read_split_by(path, reader) if split is not None else ""
    if by != "split":  # That column is not known before the end.
        _check_split(split, list(SPLITS))
    skipped: list[Skipped] = []
    n_records = n_gaps = 0
    labels: set[str] = set()
    for records in read_chunks(reader, path):
        n_records += len(records.payloads)
        with torch_settings(plain=True):  # not while the caller has the turn
            batch, table, bad = _parse(records, niggli)
        if by == "split":
            found = table["split"].map(_common_split)
            n_gaps += int((found == "").sum())
            labels |= set(found) - {""}
        skipped += bad
        keep = _chosen(table, split, by, max_atoms)
        if keep.any():
            with torch_settings(plain=True):
                part = _dataset(path, split, batch, table, bad, dtype).select(keep)
            yield part
    if by == "split":
        _check_split(split, sorted(labels))
    _warn_about(skipped, n_records, path)
    _warn_about_gaps(n_gaps, path)


def _formulas(
    source: object, z: int | Sequence[int] | None
) -> tuple[str, list[str], int | Sequence[int | None] | None] | None:
    """Name, formulas and units per cell, if that is what the source holds."""
    if not isinstance(source, str | os.PathLike):
        if not len(source):  # type: ignore[arg-type]
            raise ValueError("source must hold at least one formula, got none")
        return "formulas", list(source), z  # type: ignore[call-overload]
    path = Path(source).expanduser()
    listed = isinstance(source, str) and source not in EMBEDDED and split_formulas(source)
    if listed and not path.exists():
        return "formulas", listed, z
    if path.suffix.lower() != ".txt" or not path.is_file():
        return None
    texts, units = read_formulas(path)
    if not texts:
        raise ValueError(f"the data file {path} is empty")
    if z is None and any(units):
        return path.stem, texts, [unit or 1 for unit in units]
    return path.stem, texts, z


def _load_formulas(
    name: str,
    formulas: list[str],
    units: int | Sequence[int | None] | None,
    max_atoms: int | None,
    dtype: torch.dtype,
) -> CrystalDataset:
    dataset = from_formulas(formulas, units, max_atoms, name=name, dtype=dtype)
    _warn_about(dataset.skipped, len(formulas), name)
    return dataset


def _find(name_or_path: str | os.PathLike[str]) -> tuple[Path, Reader]:
    """File and reader of a data set."""
    embedded = EMBEDDED.get(str(name_or_path))
    path = embedded[0] if embedded else Path(name_or_path).expanduser()
    if not path.exists():
        if not embedded and not path.suffix and len(path.parts) == 1:
            raise ValueError(
                f"unknown data set {str(name_or_path)!r}; known sets: "
                f"{', '.join(sorted(EMBEDDED))}; for a file, give its path"
                f"{_why_no_formula(str(name_or_path))}"
            )
        raise FileNotFoundError(f"no data file {path} (looked in {path.absolute().parent})")
    if path.is_file() and path.stat().st_size == 0:
        raise ValueError(f"the data file {path} is empty")
    return path, embedded[1] if embedded else _find_reader(path)


def _why_no_formula(text: str) -> str:
    try:
        parse_formula(text)
    except ValueError as error:
        return f"; {error}"
    return ""


def _find_reader(path: Path) -> Reader:
    """The reader with the longest extension that the name ends with, or one of structure files."""
    name = path.name.lower()
    matches = [ending for ending in READERS if name.endswith(ending)]
    matches = matches or [e for e in READERS if without_compression(name).endswith(e)]
    if matches:
        return READERS[max(matches, key=len)]
    if path.is_dir():
        return read_folder
    if is_structure_file(path):
        return read_structure_file
    raise ValueError(f"no reader for {path}; known extensions: {', '.join(sorted(READERS))}")


def _warn_about(skipped: Sequence[Skipped], n_records: int, source: object) -> None:
    if skipped:
        listed = [f"{entry.record} ({entry.reason})" for entry in skipped]
        warnings.warn(
            f"{len(skipped)} of {n_records} records of {source} were skipped: "
            f"{shorten(listed, separator='; ')}",
            stacklevel=3,
        )


def _warn_about_gaps(n_gaps: int, path: Path) -> None:
    if n_gaps:
        warnings.warn(
            f"{n_gaps} structures of {path} have no split: they are in none", stacklevel=3
        )


def _parsed(path: Path, reader: Reader, niggli: bool, cache: bool, progress: bool) -> _cache.Entry:
    """All structures of a file, from the cache or from the file itself; float64."""
    # A reader of somebody's own may have changed since.
    cache = cache and getattr(reader, "__module__", "").startswith("irlkit.")
    key = _cache.key(path, niggli) if cache else ""
    entry = _cache.read(key) if cache else None
    if entry is not None:
        return entry
    parts = []
    with tqdm(desc=f"Parsing {_name(path)}", disable=not progress, unit="", delay=2) as bar:
        for records in read_chunks(reader, path):
            parts.append(_parse(records, niggli, bar))
    batches, tables, lists = zip(*parts, strict=True) if parts else ((), (), ())
    skipped = [record for part in lists for record in part]
    n_structures = sum(map(len, batches))
    if not n_structures + len(skipped):
        raise ValueError(f"the data file {path} has no records")
    if not n_structures:
        raise ValueError(
            f"none of the {len(skipped)} records of {path} gave a structure; "
            f"the first: {skipped[0].record} ({skipped[0].reason})"
        )
    table = pd.concat([table for table in tables if len(table)], ignore_index=True)
    entry = (CrystalBatch.concatenate(batches), table, skipped)
    if cache:
        _cache.write(key, entry)
    return entry


def _parse(
    records: RawRecords, niggli: bool, bar: tqdm | None = None
) -> tuple[CrystalBatch, pd.DataFrame, list[Skipped]]:
    """Structures (float64), table and skipped records of a chunk."""
    parsed = parse_structures(records.payloads, niggli, bar)
    good = [entry for entry in parsed if not isinstance(entry, str)]
    species, pos, cell = zip(*good, strict=True) if good else ((), (), ())
    batch = CrystalBatch.from_arrays(species, pos, cell, dtype=torch.float64)
    read = np.array([not isinstance(entry, str) for entry in parsed], dtype=bool)
    table = records.table[read].reset_index(drop=True)
    formulas, n_atoms = batch.reduced_formulas(), batch.n_atoms.numpy()
    wrong = _contradictions(table, formulas, n_atoms)
    reasons = {row: entry for row, entry in enumerate(parsed) if isinstance(entry, str)}
    reasons |= {int(np.flatnonzero(read)[row]): reason for row, reason in wrong.items()}
    ids = records.table["material_id"].tolist()
    skipped = [Skipped(ids[row], reasons[row]) for row in sorted(reasons)]
    table = table.assign(formula=formulas, n_atoms=n_atoms)
    if wrong:
        rows = [row for row in range(len(table)) if row not in wrong]
        batch, table = batch[rows], table.iloc[rows].reset_index(drop=True)
    return batch.standard_orientation(), table, skipped


def _contradictions(
    table: pd.DataFrame, formulas: list[str], n_atoms: np.ndarray
) -> dict[int, str]:
    """Rows whose formula or number of atoms is not that of their structure, and why."""
    wrong: dict[int, str] = {}
    for column in FORMULA_COLUMNS:
        for row, said in enumerate(table.get(column, ())):
            if isinstance(said, str) and said != formulas[row] and not _agree(said, formulas[row]):
                wrong[row] = f"its {column} is {said}, its structure is {formulas[row]}"
    for column in COUNT_COLUMNS:
        for row, number in enumerate(table.get(column, ())):
            if not isinstance(number, int | float) or number != number:
                continue
            # Those of others may be the numbers of a primitive or conventional cell.
            few, many = sorted((number, int(n_atoms[row])))
            if few <= 0 or (many / few) % 1 or (column == "n_atoms" and few != many):
                wrong[row] = f"its {column} is {number}, its structure has {n_atoms[row]}"
    return wrong


@lru_cache(maxsize=4096)
def _agree(said: str, found: str) -> bool:
    """Whether a formula that somebody wrote is another one's; what cannot be read might be."""
    try:
        counts = [np.bincount(parse_formula(text), minlength=101) for text in (said, found)]
    except ValueError:
        return True
    return np.array_equal(*(count / count.sum() for count in counts))


def _dataset(
    path: Path,
    split: str | None,
    batch: CrystalBatch,
    table: pd.DataFrame,
    skipped: list[Skipped],
    dtype: torch.dtype,
) -> CrystalDataset:
    first = [column for column in FIRST_COLUMNS if column in table.columns]
    table = table[first + [column for column in table.columns if column not in first]]
    return CrystalDataset(_name(path), split, batch.to(dtype=dtype).wrap(), table, skipped)


def _name(path: Path) -> str:
    return path.name.split(".")[0]


def _split_by(table: pd.DataFrame) -> str:
    """Column that a file is split by."""
    if "split" in table.columns:
        return "split"
    return "formula" if table["formula"].nunique() >= MIN_FORMULAS else "material_id"


def _common_split(label: object) -> str:
    """A label without differences that mean nothing; empty where there is none."""
    text = "" if pd.isna(label) else str(label).strip()  # type: ignore[call-overload]
    common = SPLIT_NAMES.get(text.lower(), text.lower())
    return common if common in SPLITS else text


def _check_split(split: str | None, valid: list[str]) -> None:
    if split is not None and split not in valid:
        raise ValueError(f"split must be one of {valid} or None, got {split!r}")


def _read_split_by(path: Path, reader: Reader) -> str:
    """What a file is split by; reads until that is clear."""
    formulas: set[str] = set()
    for records in read_chunks(reader, path):
        if "split" in records.table.columns:
            return "split"
        for start in range(0, len(records.payloads), SERIAL_LIMIT):
            part = slice(start, start + SERIAL_LIMIT)
            few = RawRecords(records.payloads[part], records.table[part])
            formulas.update(_parse(few, niggli=False)[1]["formula"])
            if len(formulas) >= MIN_FORMULAS:
                return "formula"
    return "material_id"


def _chosen(table: pd.DataFrame, split: str | None, by: str, max_atoms: int | None) -> np.ndarray:
    """Which rows belong to a split and are not too large, shape (rows,)."""
    keep = table["n_atoms"].to_numpy() <= (max_atoms or np.inf)
    if split is not None:
        labels = table[by].map(_common_split if by == "split" else split_of)
        keep &= (labels == split).to_numpy(dtype=bool)
    return keep


def split_of(key: str) -> str:
    """Return the split by the hash of a text, the same in every process, unlike Python's own.

    >>> split_of("NaCl")
    'val'
    """
    position = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64
    return next(name for name, end in SPLITS.items() if position < end)
