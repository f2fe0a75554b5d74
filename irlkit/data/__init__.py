"""Data sets of crystal structures: the embedded one, those in files, and formulas."""

from irlkit.data import _archives, _files, _omatg_lmdb, _tables  # noqa: F401 (register readers)
from irlkit.data.dataset import CrystalDataset, Skipped
from irlkit.data.formulas import from_formulas
from irlkit.data.loading import load, load_parts
from irlkit.data.readers import RawRecords, register_reader

__all__ = [
    "CrystalDataset",
    "RawRecords",
    "Skipped",
    "from_formulas",
    "load",
    "load_parts",
    "register_reader",
]
