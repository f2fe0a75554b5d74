"""Data sets of crystal structures: the embedded one, those in files, and formulas."""

from irlkit.datasets import files, omatg_lmdb, tables  # noqa: F401 (they register readers)
from irlkit.datasets.dataset import CrystalDataset, Skipped
from irlkit.datasets.formulas import from_formulas
from irlkit.datasets.loading import LazyDataset, load
from irlkit.datasets.readers import RawRecords, register_reader

__all__ = [
    "CrystalDataset",
    "LazyDataset",
    "RawRecords",
    "Skipped",
    "from_formulas",
    "load",
    "register_reader",
]
