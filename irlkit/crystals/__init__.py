"""Crystal structures in batches, their formulas, and what makes them valid."""

from irlkit.crystals.batch import CrystalBatch

__all__ = ["CrystalBatch"]
