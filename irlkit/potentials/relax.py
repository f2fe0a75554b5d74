"""Relaxation of positions and cells of many structures at once.

Each structure takes its own L-BFGS steps (Nocedal, 1980) of bounded length; what they share is the
call of the potential. Those that are done leave the batch. The coordinates of a structure of N
atoms are Cartesian displacements and √N times a symmetric strain, both with respect to where it is
now: the gradient by the strain is then the stress itself, and atoms and cells are similarly stiff.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from irlkit.crystals import CrystalBatch
from irlkit.potentials.base import Potential
from irlkit.utils.checks import check_finite, checked
from irlkit.utils.progress import progress_bar

_MEMORY = 20
"""Steps that the curvature is estimated from."""

_CURVATURE = 50.0
"""Of every coordinate before the first step, eV/Å²."""

_LONGEST_STEP, _SHORTEST_STEP = 0.2, 1e-5
"""Largest displacement of an atom, Å, or change of √N times strain: at first; below which it ends."""

_RISE = 1e-3
"""A step that raises the energy by more is taken back, eV/atom: far above the rounding of
networks in single precision."""

LOWEST_ENERGY = -30.0
"""Below it, a potential is far outside what it was trained on, eV/atom."""

VOLUME_FACTOR = 8.0
"""Larger changes of the volume, either way, count as collapse or explosion."""


@dataclass(frozen=True)
class Relaxation:
    """Outcome of `relax` for B structures, as NumPy arrays.

    Attributes:
        potential: Name of the potential.
        crystals: Relaxed structures in the order given, of the dtype and on the device given;
            those that failed are as they came.
        energy_per_atom: Of the relaxed structures, float64, eV/atom, nan where failed, shape (B,).
        max_force: Largest force on an atom or, with the cell, row of volume times stress over
            the number of atoms, eV/Å, shape (B,).
        stress: dE/dstrain over volume, eV/Å³, nan without the cell, shape (B, 3, 3).
        n_steps: Steps made, int64, shape (B,).
        converged: True where `max_force` is below the tolerance, shape (B,).
        failed: True for structures that diverged or that the potential cannot compute, shape (B,).
        reasons: Why, in words, by the number of the failed structure.
    """

    potential: str
    crystals: CrystalBatch
    energy_per_atom: np.ndarray
    max_force: np.ndarray
    stress: np.ndarray
    n_steps: np.ndarray
    converged: np.ndarray
    failed: np.ndarray
    reasons: Mapping[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.energy_per_atom)


@checked
def relax(
    batch: CrystalBatch,
    potential: Potential,
    *,
    max_steps: int = 200,
    force_tolerance: float = 0.05,
    cell: bool = True,
    max_batch: int | None = None,
    progress: bool = False,
) -> Relaxation:
    """Relax positions and, unless told otherwise, cells of all structures.

    A structure that diverges or that cannot be computed fails alone. One that has not converged
    after `max_steps` has not failed: it is returned where it was then.

    Args:
        batch: Structures on any device.
        potential: Gives energies, forces and stresses; see `irlkit.potentials.get`.
        max_steps: Steps per structure, at most.
        force_tolerance: Largest force of a converged structure, eV/Å; with the cell, also largest
            row of volume times stress over the number of atoms, as ASE's cell filters have it.
        cell: Relax the cells as well.
        max_batch: Structures relaxed together, at most; None for all.
        progress: Show a bar.

    Raises:
        ValueError: a number out of its range, or an element that the potential does not know.
    """
    check_finite("force_tolerance", force_tolerance, above=0)
    if max_steps < 0:
        raise ValueError(f"max_steps must not be negative, got {max_steps}")
    if max_batch is not None and max_batch < 1:
        raise ValueError(f"max_batch must be a positive number of structures, got {max_batch}")
    potential.check(batch)
    start = batch.to("cpu", torch.float64)
    start = start.replace(pos=start.pos.detach().clone(), cell=start.cell.detach().clone())
    n = len(batch)
    result = Relaxation(
        potential=potential.name,
        crystals=start,
        energy_per_atom=np.full(n, np.nan),
        max_force=np.full(n, np.nan),
        stress=np.full((n, 3, 3), np.nan),
        n_steps=np.zeros(n, dtype=np.int64),
        converged=np.zeros(n, dtype=bool),
        failed=np.zeros(n, dtype=bool),
        reasons={},
    )
    reasons: dict[int, str] = {}
    with progress_bar(total=n, disable=not progress, unit="structure") as bar:
        for rows in torch.arange(n).split(max_batch or max(n, 1)):
            moving = _Moving(start, rows, potential, cell)
            for step in range(max_steps + 1):
                done = (moving.max_force < force_tolerance) | (moving.trust < _SHORTEST_STEP)
                if step == max_steps:
                    done = torch.ones_like(done)
                bar.update(moving.leave(done, step, force_tolerance, result, reasons))
                if not len(moving.rows):
                    break
                moving.step()
    crystals = start.wrap().to(batch.device, batch.dtype)
    failed = torch.from_numpy(result.failed).to(batch.device)
    crystals = crystals.replace(
        pos=torch.where(failed[crystals.batch][:, None], batch.pos.detach(), crystals.pos),
        cell=torch.where(failed[:, None, None], batch.cell.detach(), crystals.cell),
    )
    return Relaxation(**{**vars(result), "crystals": crystals, "reasons": dict(sorted(reasons.items()))})


class _Moving:
    """The structures that are still relaxed, b of them with at most m atoms.

    Vectors in their coordinates have the shape (b, 3 + m, 3): the strain, then the atoms.

    Args:
        start: All structures, float64, on the CPU.
        rows: Numbers of those to relax.
        potential: Computes them.
        cell: Relax the cells as well.

    Attributes:
        rows: Numbers of the structures, shape (b,).
        crystals: Where they are.
        energy: eV/atom, shape (b,).
        gradient: Of energies by coordinates, eV/Å, shape (b, 3 + m, 3).
        stress: eV/Å³, shape (b, 3, 3).
        max_force: eV/Å, shape (b,).
        trust: Longest step allowed, Å, shape (b,).
        failure: Why, by number among all structures.
    """

    def __init__(
        self, start: CrystalBatch, rows: Tensor, potential: Potential, cell: bool
    ) -> None:
        self.potential, self.cell, self.rows = potential, cell, rows
        self.crystals = start[rows]
        self.first_volume = self.crystals.volume
        self.failure: dict[int, str] = {}
        self.trust = torch.full((len(rows),), _LONGEST_STEP, dtype=torch.float64)
        self.energy, self.gradient, self.stress, self.max_force = self._measure(self.crystals)
        shape = (0, *self.gradient.shape)
        self.moves, self.turns = self.gradient.new_zeros(shape), self.gradient.new_zeros(shape)
        for i in (~torch.isfinite(self.max_force)).nonzero().flatten().tolist():
            self.failure[int(rows[i])] = self._why.get(i, "the forces are not finite")

    def _slots(self, crystals: CrystalBatch) -> Tensor:
        """Place of each atom in its structure's vectors."""
        begins = crystals.n_atoms.cumsum(0) - crystals.n_atoms
        return torch.arange(len(crystals.species)) - begins[crystals.batch] + 3

    def _measure(self, crystals: CrystalBatch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Energies, gradients, stresses and largest forces; nan where there are none."""
        result = self.potential(crystals, forces=True, stress=self.cell)
        self._why = {
            i: "not a valid structure" if not valid else result.reasons.get(i, "")
            for i, valid in enumerate(result.valid)
            if not valid or result.failed[i]
        }
        energy = torch.from_numpy(result.energy_per_atom)
        n_atoms = crystals.n_atoms.double()
        gradient = energy.new_zeros(len(crystals), 3 + int(crystals.n_atoms.max()), 3)
        stress = torch.full((len(crystals), 3, 3), torch.nan, dtype=torch.float64)
        assert result.forces is not None
        gradient[crystals.batch, self._slots(crystals)] = -torch.from_numpy(result.forces)
        max_force = gradient.norm(dim=2).amax(dim=1)
        if self.cell:
            assert result.stress is not None
            stress = torch.from_numpy(result.stress)
            stress = (stress + stress.transpose(1, 2)) / 2
            virial = stress * crystals.volume[:, None, None]
            gradient[:, :3] = virial / n_atoms.sqrt()[:, None, None]
            pull = (virial / n_atoms[:, None, None]).norm(dim=2).amax(dim=1)
            max_force = torch.maximum(max_force, pull)
        return energy, gradient, stress, torch.where(energy.isfinite(), max_force, torch.nan)

    def step(self) -> None:
        """Move every structure once; takes back what raises the energy or cannot be computed."""
        move = self._direction()
        length = move.norm(dim=2).amax(dim=1)
        move *= (self.trust / length.clamp_min(1e-12)).clamp_max(1.0)[:, None, None]
        crystals = self._moved(move)
        energy, gradient, stress, max_force = self._measure(crystals)
        good = max_force.isfinite() & (energy <= self.energy + _RISE)
        turn = gradient - self.gradient
        curved = good & ((move * turn).sum((1, 2)) > 1e-8 * move.square().sum((1, 2)))
        wide = curved[:, None, None]
        self.moves = torch.cat([self.moves, torch.where(wide, move, 0.0)[None]])[-_MEMORY:]
        self.turns = torch.cat([self.turns, torch.where(wide, turn, 0.0)[None]])[-_MEMORY:]
        # After a bad step the estimate of the curvature is worth little.
        self.moves[:, ~good] = 0.0
        self.turns[:, ~good] = 0.0
        self.trust = torch.where(good, (1.2 * self.trust).clamp_max(_LONGEST_STEP), self.trust / 4)
        atoms = good[crystals.batch][:, None]
        self.crystals = crystals.replace(
            pos=torch.where(atoms, crystals.pos, self.crystals.pos),
            cell=torch.where(good[:, None, None], crystals.cell, self.crystals.cell),
        )
        self.energy = torch.where(good, energy, self.energy)
        self.max_force = torch.where(good, max_force, self.max_force)
        self.gradient = torch.where(good[:, None, None], gradient, self.gradient)
        self.stress = torch.where(good[:, None, None], stress, self.stress)
        growth = self.crystals.volume / self.first_volume
        for i in (self.energy < LOWEST_ENERGY).nonzero().flatten().tolist():
            self.failure[int(self.rows[i])] = (
                f"the energy fell to {float(self.energy[i]):.1f} eV/atom, "
                f"below {LOWEST_ENERGY:g}: no structure that {self.potential.name} knows"
            )
        for i in (growth.log().abs() > math.log(VOLUME_FACTOR)).nonzero().flatten().tolist():
            self.failure[int(self.rows[i])] = (
                f"the volume became {float(growth[i]):.2g} times what it was"
            )

    def _direction(self) -> Tensor:
        """Steps of L-BFGS, by the two loops over what is remembered."""
        product = (self.moves * self.turns).sum((2, 3))
        weight = torch.where(product > 0, 1 / product, 0.0)[:, :, None, None]
        q, shares = self.gradient.clone(), []
        for move, turn, rho in zip(self.moves.flip(0), self.turns.flip(0), weight.flip(0), strict=True):
            shares.append(rho * (move * q).sum((1, 2), keepdim=True))
            q -= shares[-1] * turn
        q /= _CURVATURE
        for move, turn, rho in zip(self.moves, self.turns, weight, strict=True):
            q += move * (shares.pop() - rho * (turn * q).sum((1, 2), keepdim=True))
        return -q

    def _moved(self, move: Tensor) -> CrystalBatch:
        """The structures after a step in their coordinates."""
        here = self.crystals
        shift = torch.einsum(
            "ni,nij->nj",
            move[here.batch, self._slots(here)],
            torch.linalg.inv(here.cell)[here.batch],
        )
        strain = move[:, :3] / here.n_atoms.double().sqrt()[:, None, None]
        return here.replace(
            pos=here.pos + shift, cell=here.cell @ torch.linalg.matrix_exp(strain)
        )

    def leave(
        self,
        done: Tensor,
        step: int,
        tolerance: float,
        result: Relaxation,
        reasons: dict[int, str],
    ) -> int:
        """Write those that are done or have failed into the result, and forget them.

        Returns:
            How many left.
        """
        failed = torch.tensor([int(i) in self.failure for i in self.rows])
        leaving = done | failed if len(done) else done
        rows = self.rows[leaving].numpy()
        if not len(rows):
            return 0
        result.n_steps[rows] = step
        result.failed[rows] = failed[leaving].numpy()
        reasons |= self.failure
        for name in ("energy", "max_force", "stress"):
            values = getattr(self, name)[leaving]
            values[failed[leaving]] = torch.nan
            target = result.energy_per_atom if name == "energy" else getattr(result, name)
            target[rows] = values.numpy()
        result.converged[rows] = result.max_force[rows] < tolerance
        gone = self.crystals[leaving]
        all_crystals = result.crystals
        all_crystals.pos[all_crystals.atom_indices(self.rows[leaving])] = gone.pos
        all_crystals.cell[self.rows[leaving]] = gone.cell
        stay = ~leaving
        self.rows, self.crystals, self.trust = self.rows[stay], self.crystals[stay], self.trust[stay]
        self.first_volume, self.energy = self.first_volume[stay], self.energy[stay]
        self.stress, self.max_force = self.stress[stay], self.max_force[stay]
        size = 3 + int(self.crystals.n_atoms.max()) if len(self.rows) else 3
        self.gradient = self.gradient[stay, :size]
        self.moves, self.turns = self.moves[:, stay, :size], self.turns[:, stay, :size]
        self.failure = {}
        return len(rows)
