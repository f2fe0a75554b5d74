"""A set of crystal structures with a table of what is known of each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from irlkit.crystals import CrystalBatch
from irlkit.crystals.batch import Index
from irlkit.crystals.compositions import element_counts
from irlkit.data._text import shorten
from irlkit.utils.checks import check_count, checked

if TYPE_CHECKING:
    from pymatgen.core import Structure


@dataclass(frozen=True)
class Skipped:
    """A record of a data file that gave no structure.

    Attributes:
        record: Its `material_id`.
        reason: Why, in words.
    """

    record: str
    reason: str


@checked
@dataclass(frozen=True, eq=False)
class CrystalDataset:
    """Structures of a data set, or of one of its splits.

    Attributes:
        name: Name of the set.
        split: Name of the split, or None for the whole set.
        batch: The structures, on the CPU; cells in standard orientation.
        table: One row per structure, numbered from 0. Always has `material_id`, `formula`
            (reduced) and `n_atoms`; `spacegroup` (number) and `energy_per_atom` (eV) where the
            file has them, and all its other columns.
        skipped: Records of the whole file that gave no structure.
        has_structures: False if it holds compositions alone, with placeholders for positions and
            cells: then nothing can be compared with it.
    """

    name: str
    split: str | None
    batch: CrystalBatch
    table: pd.DataFrame
    skipped: Sequence[Skipped] = ()
    has_structures: bool = True

    def __post_init__(self) -> None:
        if len(self.table) != len(self.batch):
            raise ValueError(
                f"table must have a row per structure: it has {len(self.table)} rows, "
                f"batch has {len(self.batch)} structures"
            )
        missing = {"material_id", "formula", "n_atoms"} - set(self.table.columns)
        if missing:
            raise ValueError(
                f"table must have the columns material_id, formula and n_atoms; "
                f"{sorted(missing)} missing, found {list(self.table.columns)}"
            )

    def __len__(self) -> int:
        return len(self.batch)

    def __repr__(self) -> str:
        split = "" if self.split is None else f", split={self.split!r}"
        return (
            f"CrystalDataset({self.name!r}{split}, {len(self)} structures, "
            f"{self.table['formula'].nunique()} compositions, {len(self.skipped)} skipped)"
        )

    def __getitem__(self, index: Index | pd.Series) -> CrystalDataset:
        """Return `select(index)`, also for a single number: a data set of one structure."""
        return self.select(index)

    def __iter__(self) -> Iterator[CrystalDataset]:
        """Yield data sets of one structure each."""
        return (self.select(i) for i in range(len(self)))

    @checked
    def select(self, index: Index | pd.Series) -> CrystalDataset:
        """Return a data set of the structures that `CrystalBatch.select` would choose, in order.

        >>> from irlkit import data
        >>> salts = data.load(["NaCl", "MgO"])
        >>> salts[salts.table["formula"] == "MgO"].batch.formulas()
        ['Mg1 O1']

        Raises:
            ValueError, IndexError: as there.
        """
        index = index.to_numpy() if isinstance(index, pd.Series) else index
        rows = self.batch.structure_indices(index)
        table = self.table.iloc[rows.numpy()].reset_index(drop=True)
        return replace(self, batch=self.batch.select(rows), table=table)

    @checked
    def subset(self, size: int | None, seed: int = 0) -> CrystalDataset:
        """Take about so many structures: whole compositions, all polymorphs of each.

        Smaller subsets are part of larger ones.

        Args:
            size: Number of structures, positive; the last composition may exceed it. None: all.
            seed: Of the order in which compositions are taken.

        Raises:
            ValueError: size < 1.
        """
        if size is not None and size < 1:
            raise ValueError(f"size must be a positive number of structures or None, got {size!r}")
        check_count("seed", seed, least=0)
        if size is None or size >= len(self):
            return self
        groups = list(self._references.values())
        order = np.random.default_rng(seed).permutation(len(groups))
        enough = int(np.searchsorted(np.cumsum([len(groups[i]) for i in order]), size)) + 1
        return self.select(np.sort(np.concatenate([groups[i] for i in order[:enough]])))

    def limits(self) -> dict[str, Any]:
        """Return the "elements" (atomic numbers) of the set, its "max_atoms" and "max_elements".

        The latter are the most that a structure has.
        """
        return {
            "elements": self.batch.species.unique().tolist(),
            "max_atoms": int(self.batch.n_atoms.max()),
            "max_elements": int((element_counts(self.batch) > 0).sum(1).max()),
        }

    @cached_property
    def structures(self) -> list[Structure]:
        """pymatgen structures in the order of `batch`, made once."""
        return self.batch.to_structures()

    @cached_property
    def _references(self) -> dict[str, np.ndarray]:
        groups = self.table.groupby("formula").indices
        return {str(formula): np.asarray(rows) for formula, rows in groups.items()}

    def references(self) -> dict[str, np.ndarray]:
        """Return reduced formula -> numbers of its structures, int64, shape (n_polymorphs,).

        Raises:
            ValueError: the set holds compositions alone.
        """
        if not self.has_structures:
            raise ValueError(
                f"data set {self.name!r} holds compositions without structures, so there are no "
                "references; load structures to compare with"
            )
        return self._references

    @checked
    def references_of(self, formulas: Iterable[str]) -> list[np.ndarray]:
        """Return the numbers of the reference structures of each formula, int64, shape (m,) each.

        Args:
            formulas: Reduced formulas, such as `CrystalBatch.reduced_formulas` gives.

        Raises:
            ValueError: no structure in the set has one of the formulas (all such are named).
        """
        formulas = list(formulas)
        unknown = sorted(set(formulas) - set(self._references))
        if unknown:
            raise ValueError(
                f"no reference structure in data set {self.name!r} (split {self.split!r}) for "
                f"{shorten(unknown)}; choose compositions of the set or add structures to it"
            )
        return [self._references[formula] for formula in formulas]
