"""From a formula to the composition that a structure is generated for, with errors in words."""

from __future__ import annotations

import difflib
import re

import torch

from irlkit.crystals import CrystalBatch
from irlkit.crystals.batch import MAX_ATOMIC_NUMBER
from irlkit.utils.checks import check_count, checked

_PART = re.compile(r"([A-Z][a-z]?)(\d*\.?\d*)")


@checked
def from_formula(
    formula: str,
    n_formula_units: int = 1,
    max_atoms: int = 20,
    dtype: torch.dtype = torch.float32,
) -> CrystalBatch:
    """One composition to generate structures for.

    Args:
        formula: such as "NaCl", "SrTiO3" or "Ca3(PO4)2", without charges; as written, so that
            "Na2Cl2" has four atoms.
        n_formula_units: how many of it a cell holds.
        max_atoms: most atoms in a cell: models know cells of the size that they were trained on.
        dtype: of the placeholder positions (0) and cell (1 Å).

    Returns:
        A batch of one structure.

    Raises:
        ValueError: in words: no formula, unknown elements (with what may have been meant),
            fractions of atoms, or too many atoms.
    """
    if not isinstance(formula, str) or not formula.strip():
        raise ValueError(f'formula must be a text such as "NaCl", got {formula!r}')
    if isinstance(n_formula_units, bool) or not isinstance(n_formula_units, int):
        raise ValueError(f"n_formula_units must be a whole number, got {n_formula_units!r}")
    if n_formula_units < 1:
        raise ValueError(f"n_formula_units must be at least 1, got {n_formula_units}")
    check_count("max_atoms", max_atoms)
    text = formula.strip().translate(str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789"))
    _check_text(formula, text)
    try:
        one = CrystalBatch.from_formulas([text], dtype)
    except ValueError as error:
        raise ValueError(
            f"cannot read {formula!r} as a formula; write elements and whole numbers, such as "
            f'"NaCl", "SrTiO3" or "Ca3(PO4)2" ({error})'
        ) from error
    n_atoms = len(one.species) * n_formula_units
    if n_atoms > max_atoms:
        fits = max_atoms // len(one.species)
        advice = (
            f"take at most {fits} formula units"
            if fits
            else "take a smaller formula, or raise max_atoms for a model trained on larger cells"
        )
        raise ValueError(
            f"{formula!r} with {n_formula_units} formula units has {n_atoms} atoms, more than the "
            f"{max_atoms} that are allowed: {advice}"
        )
    species = one.species.sort().values.repeat_interleave(n_formula_units)
    return CrystalBatch(
        species,
        torch.zeros(n_atoms, 3, dtype=dtype),
        torch.eye(3, dtype=dtype)[None],
        torch.tensor([n_atoms]),
    )


def _check_text(formula: str, text: str) -> None:
    """Find what a chemist would see at a glance; the rest is for the parser."""
    from pymatgen.core import Element

    if re.search(r"[+\-]\d*$|\^", text):
        raise ValueError(f"{formula!r} carries a charge; give the neutral formula of the cell")
    if not re.fullmatch(r"[A-Za-z0-9.()\[\]\s]+", text):
        raise ValueError(
            f"{formula!r} holds signs that are not part of a formula; write elements, whole "
            'numbers and brackets, such as "Ca3(PO4)2"'
        )
    symbols = [symbol.symbol for symbol in Element if symbol.Z <= MAX_ATOMIC_NUMBER]
    parts = _PART.findall(text)
    for symbol in dict.fromkeys(symbol for symbol, _ in parts):
        if symbol not in symbols:
            close = difflib.get_close_matches(symbol, symbols, 3, 0.5)
            hint = f"; did you mean {' or '.join(close)}?" if close else ""
            if symbol in ("D", "T"):
                hint = "; isotopes are not told apart, write H"
            elif Element.is_valid_symbol(symbol):
                hint = f": its atomic number is above {MAX_ATOMIC_NUMBER}"
            raise ValueError(f"{formula!r}: {symbol!r} is no element that is known here{hint}")
    rest = _PART.sub("", text)
    if lower := re.search(r"[a-z]+", rest):
        raise ValueError(
            f"{formula!r}: {lower[0]!r} is no element; elements begin with a capital letter, "
            'such as "NaCl" and not "nacl"'
        )
    if any("." in amount and float(amount) != round(float(amount)) for _, amount in parts):
        raise ValueError(
            f"{formula!r} has fractions of atoms; a cell holds whole ones: multiply the formula"
        )
