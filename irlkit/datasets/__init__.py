"""Data sets of crystal structures: the embedded one and those in files."""

from irlkit.datasets.dataset import CrystalDataset, Skipped
from irlkit.datasets.loading import load
from irlkit.datasets.readers import RawRecords, register_reader

__all__ = ["CrystalDataset", "RawRecords", "Skipped", "load", "register_reader"]
