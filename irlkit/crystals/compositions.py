"""The compositions that structures are generated for."""

from __future__ import annotations

import numpy as np
import torch

from irlkit.crystals.batch import CrystalBatch
from irlkit.crystals.formulas import parse_formula
from irlkit.utils.checks import check_count, checked


@checked
def element_counts(batch: CrystalBatch) -> torch.Tensor:
    """Count each structure's atoms by element, int64, shape (B, 118): column Z - 1.

    >>> element_counts(from_formula("Li2O"))[0, [2, 7]]
    tensor([2, 1])
    """
    index = batch.batch * 118 + batch.species - 1
    return torch.bincount(index, minlength=118 * len(batch)).reshape(-1, 118)


@checked
def from_formula(
    formula: str, n_formula_units: int = 1, max_atoms: int = 28, dtype: torch.dtype = torch.float32
) -> CrystalBatch:
    """Return one composition to generate structures for, atoms sorted by atomic number.

    >>> from_formula("SrTiO3", n_formula_units=2)
    CrystalBatch(n_structures=1, n=10, dtype=torch.float32, device=cpu)

    Args:
        formula: such as "NaCl", "SrTiO3" or "Ca3(PO4)2", without charges; as written, so that
            "Na2Cl2" has four atoms.
        n_formula_units: how many of it a cell holds.
        max_atoms: most atoms in a cell: models know cells of the size that they were trained on.
        dtype: of the placeholder positions (0) and cell (1 Å).

    Raises:
        ValueError: in words: what `parse_formula` says, or too many atoms.
    """
    check_count("n_formula_units", n_formula_units)
    check_count("max_atoms", max_atoms)
    unit = parse_formula(formula)
    if len(unit) * n_formula_units > max_atoms:
        fits = max_atoms // len(unit)
        advice = (
            f"take at most {fits} formula units"
            if fits
            else "take a smaller formula, or raise max_atoms for a model trained on larger cells"
        )
        raise ValueError(
            f"{formula!r} with {n_formula_units} formula units has {len(unit) * n_formula_units} "
            f"atoms, more than the {max_atoms} that are allowed: {advice}"
        )
    return CrystalBatch.from_species([np.repeat(np.sort(unit), n_formula_units)], dtype)
