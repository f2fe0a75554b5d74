"""What notebook 00 needs: a typed formula, known structures, and energies as tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from irlkit.crystals import CrystalBatch, compositions
from irlkit.lab.experiments.claims import Claim, _paired_change

NEAR = 0.05
"""Structures that lie less above the lowest energy, in eV/atom, count as near it."""


@dataclass(frozen=True)
class Size:
    """How much notebooks 00 and 06 do.

    Attributes:
        n_structures: per composition before and after, and in each group of GRPO.
        iterations: of GRPO.
        max_groups: compositions per iteration, at most.
    """

    n_structures: int
    iterations: int
    max_groups: int = 1

    def __post_init__(self) -> None:
        if self.n_structures < 2 or self.iterations < 1 or self.max_groups < 1:
            raise ValueError(
                f"at least 2 structures, 1 iteration and 1 group are needed, got {vars(self)}"
            )


SIZES = {"quick": Size(8, 2), "laptop": Size(24, 15), "paper": Size(128, 60)}


class WrongFormula(ValueError):
    """A formula that no structure can be generated for; a notebook shows the words alone."""

    def _render_traceback_(self) -> list[str]:
        """Return what IPython prints: where in the package it was found helps nobody here."""
        return [f"\x1b[0;31m{self}\x1b[0m"]


def typed(formulas: Any, name: str = "formula") -> Any:
    """Return what was typed for a formula or several, or say what a command line made of it.

    >>> typed("'InF'"), typed(["NaCl"])
    ('InF', ['NaCl'])

    Args:
        formulas: text, or texts.
        name: of the notebook's parameter.

    Raises:
        WrongFormula: it is no text: papermill and YAML take some formulas for numbers and the like.
    """
    if isinstance(formulas, list | tuple):
        return [typed(formula, name) for formula in formulas]
    if isinstance(formulas, str):
        return formulas.strip(" '\"") or formulas
    meant = {"inf": "InF", "nan": "NaN", "False": "NO", "True": "ON"}.get(str(formulas), "NaCl")
    raise WrongFormula(
        f"{name} must be text, got {formulas!r}, which is what papermill's -p and YAML make of "
        f"some formulas (InF and NaN are numbers to them, NO is False). If you mean {meant}: give "
        f"papermill -r {name} {meant} instead of -p; in YAML, put it in quotes; in the notebook, "
        f'{name} = "{meant}"; irlkit notebooks run takes it as it is'
    )


def composition_of(formula: str, n_formula_units: int = 1) -> CrystalBatch:
    """Read a formula as ``compositions.from_formula`` does, for people who type it in a notebook.

    Raises:
        WrongFormula: in words, why no structure can be generated for it.

    >>> composition_of("TiO2", n_formula_units=2).formulas()
    ['O4 Ti2']
    """
    try:
        return compositions.from_formula(typed(formula), n_formula_units)
    except ValueError as error:
        raise WrongFormula(str(error)) from None


def energy_table(energies: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Count per set of structures: how many have an energy, and how many are near the lowest.

    Args:
        energies: name -> eV/atom, nan where there is none, shape (n,). The lowest of all sets is
            what "near" is measured from.

    >>> table = energy_table({"a": np.array([-1.0, np.nan]), "b": np.array([-1.02])})
    >>> table["with an energy"].to_dict(), table["near the lowest"].to_dict()
    ({'a': 1, 'b': 1}, {'a': 1, 'b': 1})
    """
    together = np.concatenate(list(energies.values()))
    lowest = np.nanmin(together) if np.isfinite(together).any() else np.nan
    rows: dict[str, dict[str, Any]] = {}
    for name, values in energies.items():
        finite = values[np.isfinite(values)]
        rows[name] = {
            "structures": len(values),
            "with an energy": len(finite),
            "lowest, eV/atom": finite.min() if len(finite) else np.nan,
            "mean, eV/atom": finite.mean() if len(finite) else np.nan,
            "near the lowest": int((finite < lowest + NEAR).sum()),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def verdict(
    before: np.ndarray,
    after: np.ndarray,
    what: str = "energy",
    unit: str = " eV/atom",
    sign: int = -1,
) -> str:
    """Say in Markdown whether learning has helped, or made things worse.

    Args:
        before: a number of each structure, such as its energy; nan where there is none, shape (n,).
        after: the same for structures that begin with the same noise.
        what: the number.
        unit: of it.
        sign: 1 if more is better, -1 if less.
    """
    lost = int(np.isfinite(before).sum() - np.isfinite(after).sum())
    fewer = f" {lost} structures fewer have one at all." if lost > 0 else ""
    n = int((np.isfinite(before) & np.isfinite(after)).sum())
    change = _paired_change(before, after)
    if n < 2:
        return f"**Learning cannot be judged**: {n} structures have both {what} values.{fewer}"
    words = {"holds": "has helped", "fails": "has made it worse"}
    said = words.get(change.verdict("> 0" if sign > 0 else "< 0"), "has no clear effect")
    return (
        f"**Learning {said}**: the {what} changes by {change.value:+.3f}{unit} in the mean of the "
        f"{n} structures that have one before and after (95 % interval {change.low:+.3f} to "
        f"{change.high:+.3f}).{fewer}"
    ).replace("-", "−")


def energy_claims(
    before: np.ndarray, after: np.ndarray, above_known: float = np.nan
) -> list[Claim]:
    """Check what the improvement should have done; one formula and one seed, so these are aims.

    Args:
        before: energies, eV/atom, nan where there is none, shape (n,).
        after: the same for the structures after it.
        above_known: energy of the best structure above that of the best known one, both relaxed,
            eV/atom; nan where none is known.
    """
    lowest = np.nanmin([*before, *after, np.inf])
    near = [np.less(values, lowest + NEAR).astype(float) for values in (before, after)]
    share = f"share of structures within {NEAR} eV/atom of the lowest, after minus before"
    found, check = float(np.isfinite(before).mean()), Claim.check
    lower = _paired_change(before, after)
    claims = [
        check("mean change of the energy per atom, eV", lower, "< 0", "aim", 0.0),
        check(share, _paired_change(*near), "> 0", "aim", 0.0),
        check("share of generated structures with an energy", found, ">= 0.5", "guard"),
    ]
    if np.isfinite(above_known):
        best = "best structure above the best known one, both relaxed, eV/atom"
        claims.append(check(best, above_known, "<= 0.005", "guard"))
    return claims
