"""The splits of a data set, in one file, in a folder of three, or to be placed by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from irlkit import data
from irlkit.data import CrystalDataset
from irlkit.networks.omatg.download import local_folder

SPLITS = ("train", "val", "test")
SUFFIXES = (".csv", ".csv.gz", ".lmdb", ".parquet", ".extxyz", ".xyz")
PLACED = {
    "mp-20": "MP-20, as in https://github.com/txie-93/cdvae/tree/main/data/mp_20",
    "mp-20-polymorph-split": "MP-20 with polymorphs in one split, as in "
    "https://huggingface.co/datasets/colabfit/MP-20-polymorph-split",
}
"""Sets that are not in the package but have names: where they are from."""


def load_splits(dataset: str | Path, progress: bool = True) -> list[CrystalDataset]:
    """Training, validation and test split.

    `dataset` is what ``data.load`` splits; a folder with files `train`, `val` and `test` that it
    reads; or a name in ``PLACED``, whose files are such a folder in `$IRLKIT_CACHE`.

    Raises:
        FileNotFoundError: a file is missing; the message says what to place where.
    """
    folder = Path(dataset).expanduser()
    if str(dataset) in PLACED and not folder.exists():
        folder = local_folder(str(dataset))
    elif not folder.is_dir() or _file_of(folder, "train") is None:
        return [data.load(dataset, split=name, progress=progress) for name in SPLITS]
    files = {name: _file_of(folder, name) for name in SPLITS}
    if missing := [name for name, file in files.items() if file is None]:
        source = PLACED.get(str(dataset), "the same data set")
        raise FileNotFoundError(
            f"dataset {str(dataset)!r}: no {', '.join(missing)} in {folder}. Place the files "
            f"{', '.join(name + '.csv' for name in SPLITS)} there (or one of {SUFFIXES[1:]} each): "
            f"{source}"
        )
    splits = []
    for name, file in files.items():
        assert file is not None
        whole = data.load(file, progress=progress)
        splits.append(replace(whole, name=folder.name, split=name))
    return splits


def _file_of(folder: Path, split: str) -> Path | None:
    """The file of a split, if there is one."""
    paths = (folder / f"{split}{suffix}" for suffix in SUFFIXES)
    return next((path for path in paths if path.exists()), None)
