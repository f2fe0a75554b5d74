"""What a potential is, and what it returns."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from irlkit.crystals import CrystalBatch, validity
from irlkit.potentials._neighbors import (
    Neighbors,
    find_neighbors,
    reduced,
    select_structures,
    slices,
)
from irlkit.utils.checks import checked
from irlkit.utils.settings import torch_settings
from irlkit.utils.system import Closing
from irlkit.utils.workers import WorkersLostError


@dataclass(frozen=True)
class Energies:
    """Energies of B structures with n atoms in all, as NumPy arrays.

    A structure has an energy if it is valid and the potential has not failed on it; everything
    else about it is nan.

    Attributes:
        potential: Name of the potential; energies of different potentials do not compare.
        energy_per_atom: float64, eV/atom, shape (B,).
        valid: False for structures that `validity.check` rejects, which are not computed,
            shape (B,).
        failed: True for valid structures that the potential gave no finite energy for,
            shape (B,).
        reasons: Why, in words, by the number of the failed structure.
        forces: float64, eV/Å, shape (n, 3); None unless asked for.
        stress: dE/dstrain over volume, float64, eV/Å³, shape (B, 3, 3); None unless asked for.
    """

    potential: str
    energy_per_atom: np.ndarray
    valid: np.ndarray
    failed: np.ndarray
    reasons: Mapping[int, str] = field(default_factory=dict)
    forces: np.ndarray | None = None
    stress: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.energy_per_atom)


@dataclass(frozen=True)
class Computed:
    """What a potential computes for b valid structures with m atoms.

    Attributes:
        energy_per_atom: eV/atom, nan where there is none, shape (b,).
        forces: eV/Å, shape (m, 3), or None.
        stress: eV/Å³, shape (b, 3, 3), or None.
        reasons: Why there is no energy, by number of the structure.
    """

    energy_per_atom: Tensor
    forces: Tensor | None = None
    stress: Tensor | None = None
    reasons: Mapping[int, str] = field(default_factory=dict)


class Potential(Closing, ABC):
    """Energies of many structures at once.

    A structure that the potential cannot compute changes the energy of no other (beyond rounding)
    and does not end the call. Potentials are context managers, which close them.

    Attributes:
        name: What results call it.
    """

    name: str

    @checked
    @torch_settings(plain=True)
    def __call__(self, batch: CrystalBatch, forces: bool = False, stress: bool = False) -> Energies:
        """Compute energies of all structures that are valid (Appendix B).

        Args:
            batch: Structures on any device, positions wrapped or not.
            forces: Compute forces as well, at several times the cost.
            stress: Compute stresses as well, at several times the cost.

        Raises:
            ValueError: an element that the potential does not know.
            WorkersLostError: the processes that compute cannot be started.
        """
        self.check(batch)
        valid = validity.check(batch).valid
        n = len(batch.species)
        energies = Energies(
            potential=self.name,
            energy_per_atom=np.full(len(batch), np.nan),
            valid=valid,
            failed=np.zeros(len(batch), dtype=bool),
            reasons={},
            forces=np.full((n, 3), np.nan) if forces else None,
            stress=np.full((len(batch), 3, 3), np.nan) if stress else None,
        )
        rows = np.flatnonzero(valid)
        reasons = {}
        if len(rows):
            detached = batch.replace(pos=batch.pos.detach(), cell=batch.cell.detach())
            reasons = self._fill(energies, detached, rows)
        energies.failed[:] = valid & ~np.isfinite(energies.energy_per_atom)
        energies.energy_per_atom[energies.failed] = np.nan
        for i in np.flatnonzero(energies.failed).tolist():
            reasons.setdefault(i, "the energy is not finite")
        if len(rows) and energies.failed[rows].all():
            first = next(iter(reasons.values()))
            warnings.warn(
                f"{self.name} gave no energy for any of {len(rows)} valid structures: {first}",
                stacklevel=3,
            )
        return Energies(**{**vars(energies), "reasons": dict(sorted(reasons.items()))})

    def _fill(self, energies: Energies, batch: CrystalBatch, rows: np.ndarray) -> dict[int, str]:
        """Compute some structures into `energies`; where that fails, one half after the other.

        Returns:
            Why structures have no energy, by number.
        """
        wanted = energies.forces is not None, energies.stress is not None
        try:
            computed = self._compute(batch[rows], *wanted)
        except WorkersLostError:
            raise
        except Exception as error:  # whatever a strange structure does to foreign code
            if len(rows) == 1:
                return {int(rows[0]): f"{type(error).__name__}: {error}"}
            first, second = rows[: len(rows) // 2], rows[len(rows) // 2 :]
            return self._fill(energies, batch, first) | self._fill(energies, batch, second)
        energies.energy_per_atom[rows] = _to_numpy(computed.energy_per_atom)
        if energies.forces is not None and computed.forces is not None:
            atoms = batch.atom_indices(torch.from_numpy(rows).to(batch.device)).cpu().numpy()
            energies.forces[atoms] = _to_numpy(computed.forces)
        if energies.stress is not None and computed.stress is not None:
            energies.stress[rows] = _to_numpy(computed.stress)
        return {int(rows[i]): reason for i, reason in computed.reasons.items()}

    @abstractmethod
    def _compute(self, batch: CrystalBatch, forces: bool, stress: bool) -> Computed:
        """Compute valid structures, at least one."""

    def check(self, compositions: CrystalBatch) -> None:
        """Raise a ValueError that names elements that the potential does not know."""

    def knows(self, batch: CrystalBatch) -> np.ndarray:
        """Return whether all elements of each structure are known, shape (B,)."""
        unknown = []
        for z in batch.species.unique().tolist():
            try:
                self.check(CrystalBatch.from_species([np.array([z])], torch.float32))
            except ValueError:
                unknown.append(z)
        bad = torch.isin(batch.species.cpu(), torch.tensor(unknown, dtype=torch.int64))
        return torch.bincount(batch.batch.cpu()[bad], minlength=len(batch)).numpy() == 0


_AT_ONCE = 1024
"""Structures whose neighbours are held at once."""


def _joined(parts: list[Computed]) -> Computed:
    """What was computed of the parts of a batch."""
    reasons: dict[int, str] = {}
    begin = 0
    for part in parts:
        reasons |= {begin + i: reason for i, reason in part.reasons.items()}
        begin += len(part.energy_per_atom)

    def joined(values: list[Tensor | None]) -> Tensor | None:
        there = [value for value in values if value is not None]
        return torch.cat(there) if there else None

    energies = torch.cat([part.energy_per_atom for part in parts])
    forces, stress = (joined([getattr(p, name) for p in parts]) for name in ("forces", "stress"))
    return Computed(energies, forces, stress, reasons)


class BatchedPotential(Potential):
    """A network that takes many structures at once, up to a cost that memory or caches bound."""

    device: torch.device
    _network: Any
    _cutoff: float
    _max_cost: int

    def _compute(self, batch: CrystalBatch, forces: bool, stress: bool) -> Computed:
        if len(batch) > _AT_ONCE:
            parts = [batch[i : i + _AT_ONCE] for i in range(0, len(batch), _AT_ONCE)]
            return _joined([self._compute(part, forces, stress) for part in parts])
        batch = reduced(batch.to(self.device))
        neighbors = find_neighbors(batch, self._cutoff)
        costs, kinds, reasons = self._costs(batch, neighbors)
        energy = torch.full((len(batch),), torch.nan, dtype=torch.float64, device=self.device)
        force = energy.new_full((len(batch.species), 3), torch.nan) if forces else None
        virial = energy.new_full((len(batch), 3, 3), torch.nan) if stress else None
        rows = torch.tensor([i for i in range(len(batch)) if i not in reasons], dtype=torch.int64)
        rows = rows.to(self.device)
        rows = rows[kinds[rows].argsort(stable=True)]
        for part in slices(costs[rows], self._max_cost):
            chosen = rows[part].sort().values
            few, pairs = select_structures(batch, neighbors, chosen)
            with torch.set_grad_enabled(forces or stress):
                result = self._energies(few, pairs, forces, stress)
            energy[chosen] = result.energy_per_atom
            if force is not None and result.forces is not None:
                force[batch.atom_indices(chosen)] = result.forces
            if virial is not None and result.stress is not None:
                virial[chosen] = result.stress
        return Computed(energy, force, virial, reasons)

    @abstractmethod
    def _costs(
        self, batch: CrystalBatch, neighbors: Neighbors
    ) -> tuple[Tensor, Tensor, dict[int, str]]:
        """What structures cost, (b,); what goes well together, (b,); why some are not computed."""

    def _energies(
        self, batch: CrystalBatch, neighbors: Neighbors, forces: bool, stress: bool
    ) -> Computed:
        """Compute structures together, with all pairs of atoms below the cut-off."""
        energies = partial(self._network.energies, batch, neighbors)
        return differentiate(energies, batch, neighbors, forces, stress)


def differentiate(
    energies: Callable[[Tensor], Tensor],
    batch: CrystalBatch,
    neighbors: Neighbors,
    forces: bool,
    stress: bool,
) -> Computed:
    """Compute energies and, if asked for, their derivatives.

    Args:
        energies: Gives energies, eV, float64, shape (B,), for the vectors of all pairs, shape
            (P, 3). Called once.
        batch: Structures, float64.
        neighbors: Their P pairs.
        forces: Compute forces.
        stress: Compute stresses.
    """
    first, second = neighbors.first, neighbors.second
    structure = batch.batch[first]
    with torch.set_grad_enabled(forces or stress):
        offsets = batch.pos[second] + neighbors.shift - batch.pos[first]
        vectors = torch.einsum("pi,pij->pj", offsets, batch.cell[structure])
        energy = energies(vectors.requires_grad_(forces or stress))
        if not (forces or stress):
            return Computed(energy / batch.n_atoms)
        slopes = torch.zeros_like(vectors)
        if energy.requires_grad:  # which it does not where no atom has a neighbour
            (slopes,) = torch.autograd.grad(energy.sum(), vectors)
    vectors = vectors.detach()
    force = torch.zeros_like(batch.pos).index_add(0, first, slopes).index_add(0, second, -slopes)
    strain = torch.einsum("pi,pj->pij", vectors, slopes)
    virial = torch.zeros_like(batch.cell).index_add(0, structure, strain)
    return Computed(energy.detach() / batch.n_atoms, force, virial / batch.volume[:, None, None])


def check_elements(name: str, compositions: CrystalBatch, known: Tensor) -> None:
    """Raise a ValueError that names the elements of a batch that are not known.

    Args:
        name: Of the potential.
        compositions: Structures to be computed.
        known: Atomic numbers, int64, on the CPU, shape (n_elements,).
    """
    species = compositions.species.unique().cpu()
    unknown = species[~torch.isin(species, known)].tolist()
    if unknown:
        from pymatgen.core import Element

        symbols = ", ".join(Element.from_Z(z).symbol for z in unknown)
        raise ValueError(
            f"the potential {name} does not know the elements {symbols}; "
            "leave out structures with them or take another potential"
        )


def _to_numpy(values: Tensor) -> np.ndarray:
    return values.detach().cpu().double().numpy()
