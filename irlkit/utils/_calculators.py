"""What worker processes do with ASE's calculators.

Here, and not beside the potentials: importing those loads torch, with which a process takes several
times as long to start.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ase import Atoms


def prepare(factory: Callable[..., Any], arguments: dict[str, Any]) -> Callable[[Any], Any]:
    """Make a calculator and return what it computes, for a worker pool."""
    return partial(_compute, factory(**arguments))


def _compute(calculator: Any, item: tuple[Atoms, bool, bool]) -> tuple[Any, ...]:
    """Energy per atom, forces and stress, (3, 3); None where they are not wanted."""
    atoms, forces, stress = item
    atoms.calc = calculator
    return (
        float(atoms.get_potential_energy()) / len(atoms),
        np.asarray(atoms.get_forces(), dtype=np.float64) if forces else None,
        np.asarray(atoms.get_stress(voigt=False), dtype=np.float64) if stress else None,
    )


def calculate(factory: Callable[..., Any], item: tuple[Any, Any, str]) -> float:
    """Energy per atom or band gap, by a calculator that is made for it."""
    atoms, like, quantity = item
    calculator = atoms.calc = factory(like, quantity)
    try:
        energy = float(atoms.get_potential_energy()) / len(atoms)
    except Exception as error:
        name = type(error).__name__
        if "Convergence" in name or name == "SCFError":  # Often without a message.
            raise RuntimeError(f"the calculation did not converge ({name})") from error
        raise
    else:
        return energy if quantity == "energy" else _gap(calculator)
    finally:
        if (scratch := getattr(calculator, "scratch", None)) is not None:
            scratch.cleanup()


def _gap(calculator: Any) -> float:
    """From the highest band below the Fermi level to the lowest above; 0 where one crosses it."""
    level = calculator.get_fermi_level()
    n_points = len(calculator.get_ibz_k_points())
    lowest, highest = [], []
    for spin in range(calculator.get_number_of_spins()):
        bands = np.array([calculator.get_eigenvalues(kpt=k, spin=spin) for k in range(n_points)])
        lowest.append(bands.min(0))
        highest.append(bands.max(0))
    low, high = np.concatenate(lowest), np.concatenate(highest)
    if ((low <= level) & (high > level)).any():
        return 0.0
    return max(float(low[low > level].min() - high[high <= level].max()), 0.0)
