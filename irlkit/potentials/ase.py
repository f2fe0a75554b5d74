"""Any ASE calculator, in worker processes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from irlkit.crystals import CrystalBatch
from irlkit.potentials.base import Computed, Potential
from irlkit.utils._calculators import prepare
from irlkit.utils.checks import checked
from irlkit.utils.workers import WorkerPool


class ASEPotential(Potential):
    """Energies from an ASE calculator, one structure at a time in each of several processes.

    A structure for which the calculator raises, takes too long or ends its process counts as
    failed, with the reason.

    Args:
        factory: makes a calculator, such as a calculator's class; called once in each process.
        arguments: keyword arguments of the factory.
        name: what results call the potential; None for the factory's name and its arguments.
        n_workers: processes; None for one per available core, 0 for this process.
        timeout: seconds that a structure may take; in this process, code that never returns to
            Python is not stopped.

    Raises:
        ValueError: the factory cannot be sent to other processes, or a number is out of its range.
    """

    @checked
    def __init__(
        self,
        factory: Callable[..., Any],
        arguments: dict[str, Any] | None = None,
        *,
        name: str | None = None,
        n_workers: int | None = None,
        timeout: float = 60.0,
    ) -> None:
        arguments = arguments or {}
        if name is None:
            made, before, given = factory, [], arguments
            if isinstance(factory, partial):
                made, before = factory.func, [repr(value) for value in factory.args]
                given = {**factory.keywords, **arguments}
            listed = ", ".join([*before, *(f"{key}={given[key]!r}" for key in sorted(given))])
            name = f"ase:{getattr(made, '__qualname__', type(made).__qualname__)}({listed})"
        self.name = name
        self._pool = WorkerPool(partial(prepare, factory, arguments), n_workers, timeout)

    def _compute(self, batch: CrystalBatch, forces: bool, stress: bool) -> Computed:
        items = [(atoms, forces, stress) for atoms in batch.to_ase()]
        outcomes = self._pool.map(items)
        values = [
            outcome.value or (np.nan, np.full((len(item[0]), 3), np.nan), np.full((3, 3), np.nan))
            for item, outcome in zip(items, outcomes, strict=True)
        ]
        energy, force, virial = zip(*values, strict=True)
        return Computed(
            torch.tensor(energy, dtype=torch.float64),
            torch.from_numpy(np.concatenate(force)) if forces else None,
            torch.from_numpy(np.stack(virial)) if stress else None,
            {i: outcome.error for i, outcome in enumerate(outcomes) if outcome.error},
        )

    def close(self) -> None:
        """End the worker processes; the next call starts new ones."""
        self._pool.close()
