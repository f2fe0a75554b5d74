"""Compositions to predict structures for, from formulas alone."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from irlkit.crystals import CrystalBatch
from irlkit.crystals.formulas import MAX_FORMULA_ATOMS, parse_formula
from irlkit.data._text import BROKEN, MAX_CHARACTERS, Unusable, open_text
from irlkit.data.dataset import CrystalDataset, Skipped
from irlkit.utils.checks import check_count, checked


@checked
def from_formulas(
    formulas: Sequence[str],
    z: int | Sequence[int | None] | None = None,
    max_atoms: int | None = None,
    *,
    name: str = "formulas",
    dtype: torch.dtype = torch.float32,
) -> CrystalDataset:
    """Make a data set of compositions without reference structures.

    >>> from_formulas(["LiMn3O4", "NaCl"], z=[2, 1]).batch.formulas()
    ['Li2 Mn6 O8', 'Cl1 Na1']

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
    units = list(z) if isinstance(z, Sequence) else [z] * len(formulas)
    if len(units) != len(formulas):
        raise ValueError(
            f"z must be one number or one per formula, got {len(units)} for "
            f"{len(formulas)} formulas"
        )
    if any(unit is not None and unit < 1 for unit in units):
        raise ValueError(f"z must be a positive number of formula units per cell, got {z!r}")
    if max_atoms is not None:
        check_count("max_atoms", max_atoms)
    limit = max_atoms or MAX_FORMULA_ATOMS
    ids, repeats, species, skipped = [], [], [], []
    for formula, unit in zip(formulas, units, strict=True):
        try:
            atoms = np.sort(parse_formula(formula))
        except ValueError as error:
            skipped.append(Skipped(formula, str(error)))
            continue
        if unit is None and max_atoms is not None:
            fitting = list(range(1, limit // len(atoms) + 1))
        else:
            fitting = [k for k in [unit or 1] if k * len(atoms) <= limit]
        if not fitting:
            reason = f"{unit or 1} x {len(atoms)} atoms are more than max_atoms={limit}"
            skipped.append(Skipped(formula, reason))
        ids += [f"{formula}-z{k}" for k in fitting]
        repeats += fitting
        species += [np.repeat(atoms, k) for k in fitting]
    if not species:
        reasons = "; ".join(f"{entry.record} ({entry.reason})" for entry in skipped[:3])
        raise ValueError(f"formulas: none of the {len(formulas)} gave a composition: {reasons}")
    batch = CrystalBatch.from_species(species, dtype)
    seen: Counter[str] = Counter()
    for i, name_of in enumerate(ids):
        seen[name_of] += 1
        if seen[name_of] > 1:
            ids[i] = f"{name_of}-{seen[name_of]}"
    table = pd.DataFrame(
        {
            "material_id": np.array(ids, dtype=object),
            "formula": np.array(batch.reduced_formulas(), dtype=object),
            "n_atoms": batch.n_atoms.numpy(),
            "z": repeats,
        }
    )
    return CrystalDataset(name, None, batch, table, skipped, has_structures=False)


def split_formulas(text: str) -> list[str]:
    """Return the formulas of a text that is a list of them, or nothing if none of it is a formula.

    >>> split_formulas('["LiFePO4", "NaCl"]'), split_formulas("MgO; NaCl"), split_formulas("mp_20")
    (['LiFePO4', 'NaCl'], ['MgO', 'NaCl'], [])
    """
    text = text.strip()
    try:
        entries = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        # Without quotes, as command lines leave it.
        entries = re.split(
            "[,;\n]", text[1:-1] if re.fullmatch(r"\[.*\]", text, re.DOTALL) else text
        )
    entries = [entries] if isinstance(entries, str) else entries
    if not isinstance(entries, list | tuple) or not all(isinstance(e, str) for e in entries):
        return []
    entries = [stripped for entry in entries if (stripped := entry.strip(" \t'\""))]
    return entries if any(map(_is_formula, entries)) else []


def _is_formula(text: str) -> bool:
    try:
        return bool(len(parse_formula(text)))
    except ValueError:
        return False


def read_formulas(path: Path) -> tuple[list[str], list[int | None]]:
    """Read the formulas of a text file, one per line, and the formula units at the ends of lines.

    Empty lines and what follows a # are left out.

    Raises:
        ValueError: the file cannot be read.
    """
    formulas: list[str] = []
    units: list[int | None] = []
    try:
        with open_text(path) as file:
            lines = file.read(MAX_CHARACTERS).splitlines()
    except (*BROKEN, Unusable) as error:
        raise ValueError(f"cannot read {path} as a list of formulas: {error}") from error
    for line in lines:
        if text := line.partition("#")[0].strip():
            # Units follow a formula of one word, or one whose last element has its number.
            match = re.fullmatch(r"(\S*[A-Za-z]|.*\S*\d)\s+(\d+)", text)
            formulas.append(match[1] if match else text)
            units.append(int(match[2]) if match else None)
    return formulas, units
