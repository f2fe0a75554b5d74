"""What a process with an ASE calculator does; loads no torch of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Item = tuple[np.ndarray, np.ndarray, np.ndarray, bool, bool]
"""Atomic numbers, Cartesian positions, cell, forces wanted, stress wanted."""


def prepare(
    factory: Callable[..., Any], arguments: dict[str, Any]
) -> Callable[[Item], tuple[Any, ...]]:
    """Makes a calculator; returns what computes a structure with it.

    That returns the energy per atom (eV), forces (eV/Å) and stress (eV/Å³, shape (3, 3)), None
    where they are not wanted.
    """
    from ase import Atoms

    calculator = factory(**arguments)

    def compute(item: Item) -> tuple[Any, ...]:
        numbers, positions, cell, forces, stress = item
        atoms = Atoms(numbers=numbers, positions=positions, cell=cell, pbc=True)
        atoms.calc = calculator
        return (
            float(atoms.get_potential_energy()) / len(atoms),
            np.asarray(atoms.get_forces(), dtype=np.float64) if forces else None,
            np.asarray(atoms.get_stress(voigt=False), dtype=np.float64) if stress else None,
        )

    return compute
