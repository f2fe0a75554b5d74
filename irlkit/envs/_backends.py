"""What computes energies and band gaps: potentials, and any ASE calculator in worker processes."""

from __future__ import annotations

import importlib.metadata
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from irlkit import potentials
from irlkit.crystals import CrystalBatch
from irlkit.potentials import Potential
from irlkit.utils._calculators import calculate
from irlkit.utils.checks import checked
from irlkit.utils.system import processes_possible
from irlkit.utils.workers import WorkerPool


class Passing(str):
    """A reason that need not come again, such as a time limit: it is not kept in a file."""


@dataclass(frozen=True)
class Computed:
    """What a backend says of B crystals.

    Attributes:
        values: float64, nan where there is none, shape (B,).
        reasons: number of a crystal -> why there is none; `Passing` where that may change.
    """

    values: np.ndarray
    reasons: Mapping[int, str] = field(default_factory=dict)


class Backend(ABC):
    """Computes energies, and band gaps where it can. A context manager, which closes it.

    Attributes:
        name: with settings and versions: values of different names do not compare.
        has_gap: whether it computes band gaps.
        at_once: fillings evaluated together; what is finished is kept after so many.
        in_parallel: such parts that are evaluated at the same time, from threads.
    """

    name: str
    has_gap: bool = False
    at_once: int = 512
    in_parallel: int = 1

    @abstractmethod
    def energies(self, batch: CrystalBatch, like: CrystalBatch) -> Computed:
        """Return energies per atom, eV.

        Args:
            batch: B crystals.
            like: crystals of the same compositions that decide on settings such as the cut-off and
                the k-points, so that the points of a curve share them.
        """

    def gaps(self, batch: CrystalBatch) -> Computed:
        """Return band gaps, eV; 0 for metals."""
        raise NotImplementedError

    def check(self, elements: Sequence[str]) -> None:  # noqa: B027
        """Raise a ValueError that names elements that it cannot compute."""

    def close(self) -> None:  # noqa: B027
        """End processes and free memory."""

    def __enter__(self) -> Backend:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class PotentialBackend(Backend):
    """Energies of any potential of `irlkit.potentials`, in batches.

    Args:
        potential: a potential, or its name for `irlkit.potentials.get`.
    """

    @checked
    def __init__(self, potential: Potential | str = "chgnet") -> None:
        self.potential = potentials.get(potential)
        self.name = self.potential.name

    def energies(self, batch: CrystalBatch, like: CrystalBatch) -> Computed:
        """Return energies per atom, eV."""
        found = self.potential(batch)
        invalid = np.flatnonzero(~found.valid).tolist()
        reasons = {**dict.fromkeys(invalid, "atoms are too close to one another"), **found.reasons}
        return Computed(found.energy_per_atom, reasons)

    def check(self, elements: Sequence[str]) -> None:
        """Raise a ValueError that names elements that the potential does not know."""
        self.potential.check(CrystalBatch.from_formulas(list(elements)))

    def close(self) -> None:
        """End the potential's processes."""
        self.potential.close()


class CalculatorBackend(Backend):
    """Energies and gaps of ASE calculators, in worker processes with a time limit.

    A crystal for which the calculator raises, does not converge, takes too long or ends its process
    has failed, with the reason; the process is replaced.

    Args:
        factory: ``factory(atoms, quantity)`` makes the calculator of a quantity, "energy" or "gap";
            the elements and the cell of the ASE atoms may decide on its settings. A temporary
            folder that it has as `scratch` is removed after the calculation.
        name: what results and caches call it; it has to name settings and versions.
        has_gap: whether its calculators know eigenvalues (`get_eigenvalues`).
        n_workers: processes; None for one per core, 0 for this process.
        timeout: seconds that one calculation may take.
    """

    @checked
    def __init__(
        self,
        factory: Callable[..., Any],
        name: str,
        *,
        has_gap: bool = False,
        n_workers: int | None = None,
        timeout: float = 1800.0,
    ) -> None:
        self.name = name
        self.has_gap = has_gap
        self._pool = WorkerPool(partial(partial, calculate, factory), n_workers, timeout)
        # One: what is finished is kept, and no worker waits for another's filling.
        n = self._pool.n_workers
        self.at_once, self.in_parallel = 1, n if n > 1 and processes_possible() else 1

    def energies(self, batch: CrystalBatch, like: CrystalBatch) -> Computed:
        """Return energies per atom, eV."""
        return self._map(
            [(*pair, "energy") for pair in zip(batch.to_ase(), like.to_ase(), strict=True)]
        )

    def gaps(self, batch: CrystalBatch) -> Computed:
        """Return band gaps, eV."""
        return self._map([(atoms, atoms.copy(), "gap") for atoms in batch.to_ase()])

    def _map(self, items: Sequence[Any]) -> Computed:
        outcomes = self._pool.map(items)
        values = [np.nan if o.value is None else o.value for o in outcomes]
        reasons = {
            i: Passing(o.error) if o.late or o.lost else o.error
            for i, o in enumerate(outcomes)
            if o.error
        }
        return Computed(np.array(values, dtype=np.float64), reasons)

    def close(self) -> None:
        """End the worker processes; the next call starts new ones."""
        self._pool.close()


def version(*packages: str) -> str:
    """Return packages with their versions, for names.

    Raises:
        importlib.metadata.PackageNotFoundError: one is not installed.
    """
    return "+".join(f"{package}-{importlib.metadata.version(package)}" for package in packages)
