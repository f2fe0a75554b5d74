"""Compositions to predict structures for, from formulas alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from irlkit.crystals import CrystalBatch
from irlkit.crystals.batch import MAX_FORMULA_ATOMS
from irlkit.data.dataset import CrystalDataset, Skipped
from irlkit.utils.checks import checked


@checked
def from_formulas(
    formulas: Sequence[str],
    z: int | Sequence[int] | None = None,
    max_atoms: int | None = None,
    *,
    name: str = "formulas",
    dtype: torch.dtype = torch.float32,
) -> CrystalDataset:
    """Compositions without reference structures.

    Args:
        formulas: Formula units, such as "LiMn3O4".
        z: Formula units per cell, for all or for each formula. None: one, or, with `max_atoms`,
            every number that fits.
        max_atoms: Most atoms per cell.
        name: Name of the data set.
        dtype: Of the placeholder positions (0) and cells (1 Å).

    Returns:
        Data set whose `has_structures` is false. Its table has a column `z`; formulas that cannot
        be read, or do not fit, are in `skipped`.

    Raises:
        ValueError: no formula is left, z < 1, or another number of them than of formulas.
    """
    if not len(formulas):
        raise ValueError("formulas must hold at least one formula, got none")
    units: list[int | None]
    if z is None:
        units = [None] * len(formulas)
    else:
        units = [int(z)] * len(formulas) if isinstance(z, int | np.integer) else list(z)
    if len(units) != len(formulas):
        raise ValueError(
            f"z must be one number or one per formula, got {len(units)} for "
            f"{len(formulas)} formulas"
        )
    if any(unit is not None and unit < 1 for unit in units):
        raise ValueError(f"z must be a positive number of formula units per cell, got {z!r}")
    if max_atoms is not None and max_atoms < 1:
        raise ValueError(f"max_atoms must be at least 1, got {max_atoms}")
    rows, parts, skipped = [], [], []
    for formula, unit in zip(formulas, units, strict=True):
        try:
            one = CrystalBatch.from_formulas([formula], dtype)
        except ValueError as error:
            skipped.append(Skipped(formula, str(error)))
            continue
        n_atoms = len(one.species)
        if unit is not None:
            chosen: Iterable[int] = [unit]
        else:
            chosen = [1] if max_atoms is None else range(1, max_atoms // n_atoms + 1)
        limit = MAX_FORMULA_ATOMS if max_atoms is None else max_atoms
        fitting = [k for k in chosen if k * n_atoms <= limit]
        if not fitting:
            units_of = "none" if unit is None else f"z = {unit} do not"
            reason = f"with {n_atoms} atoms per formula unit, {units_of} fit into max_atoms"
            if max_atoms is None:
                reason = f"it has more than {limit} atoms per cell"
            skipped.append(Skipped(formula, reason))
        for k in fitting:
            species = one.species.sort().values.repeat_interleave(k)
            n = len(species)
            parts.append(
                CrystalBatch(
                    species,
                    torch.zeros(n, 3, dtype=dtype),
                    torch.eye(3, dtype=dtype)[None],
                    torch.tensor([n]),
                )
            )
            rows.append({"material_id": f"{formula}-z{k}", "z": k})
    if not parts:
        reasons = "; ".join(f"{entry.record} ({entry.reason})" for entry in skipped[:3])
        raise ValueError(f"formulas: none of the {len(formulas)} gave a composition: {reasons}")
    batch = CrystalBatch.concatenate(parts)
    table = pd.DataFrame(rows)
    table.insert(1, "formula", np.array(batch.reduced_formulas(), dtype=object))
    table.insert(2, "n_atoms", batch.n_atoms.numpy())
    return CrystalDataset(name, None, batch, table, skipped, has_structures=False)


def read_formulas(path: Path) -> tuple[list[str], list[int | None]]:
    """Formulas of a text file, one per line, and the number of units where a line ends with one.

    Empty lines and what follows a # are left out.

    Raises:
        ValueError: the file is not text.
    """
    formulas: list[str] = []
    units: list[int | None] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"cannot read {path} as a list of formulas: {error}") from error
    for line in lines:
        words = line.partition("#")[0].split()
        if words:
            unit = int(words.pop()) if len(words) > 1 and words[-1].isdecimal() else None
            formulas.append(" ".join(words))
            units.append(unit)
    return formulas, units
