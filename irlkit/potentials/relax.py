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
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from irlkit.crystals import CrystalBatch
from irlkit.potentials.base import Potential
from irlkit.utils.checks import check_finite, checked
from irlkit.utils.progress import progress_bar
from irlkit.utils.settings import torch_settings

_MEMORY = 20
"""Steps that the curvature is estimated from."""

_CURVATURE = 15.0
"""Of every coordinate before the first step, eV/Å²."""

_LONGEST_STEP, _SHORTEST_STEP = 0.2, 1e-5
"""Largest displacement of an atom, Å, or √N times strain, of a step: at first, and in the end."""

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
@torch_settings(plain=True)
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
    after `max_steps`, or whose energy no step lowers, has not failed: it is returned where it was.

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
    n, size = len(batch), int(max(max_batch or len(batch), 1))
    start = batch.to("cpu", torch.float64)
    finished: list[_State] = []
    reasons: dict[int, str] = {}
    with progress_bar(total=n, disable=not progress, unit="structure") as bar:
        for rows in torch.arange(n).split(size):
            moving = _Moving(start[rows], rows, potential, cell, reasons)
            for step in range(max_steps + 1):
                done = moving.leave(step, force_tolerance, step == max_steps)
                finished.append(done)
                bar.update(len(done["row"]))
                if not len(moving.state["row"]):
                    break
                moving.step()
    order = torch.cat([done["row"] for done in finished]).argsort()
    final = {
        name: torch.cat([done[name] for done in finished])[order]
        for name in ("energy_per_atom", "max_force", "stress", "n_steps", "converged", "failed")
    }
    crystals = CrystalBatch.concatenate([_crystals(done) for done in finished])[order]
    crystals = crystals.to(batch.device, batch.dtype).wrap()
    arrays = {name: values.numpy() for name, values in final.items()}
    return Relaxation(potential.name, crystals, **arrays, reasons=dict(sorted(reasons.items())))


_State: TypeAlias = dict[str, Tensor]
"""Tensors whose first dimension are b structures of at most m atoms, float64, on the CPU.

`x` holds the cell in its first three rows and fractional positions in the others, (b, 3 + m, 3),
`first_x` what it was; `gradient` (eV/Å), `moves` and `turns` (the last steps and what the gradient
changed by, (b, k, 3 + m, 3)) are in the coordinates, strain first. `trust` is the longest step (Å).
"""


def _crystals(state: _State) -> CrystalBatch:
    x, species = state["x"], state["species"]
    return CrystalBatch(species[species > 0], x[:, 3:][species > 0], x[:, :3], (species > 0).sum(1))


def _choose(good: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """Takes structures of `new` where the mask is True, of `old` elsewhere."""
    return torch.where(good.reshape(-1, *[1] * (new.ndim - 1)), new, old)


class _Moving:
    """The structures of a batch that are still relaxed; see `relax` for the arguments.

    `rows` are their numbers, shape (b,); `reasons` gets why structures failed, by number.
    """

    def __init__(
        self,
        crystals: CrystalBatch,
        rows: Tensor,
        potential: Potential,
        cell: bool,
        reasons: dict[int, str],
    ) -> None:
        self.potential, self.cell, self.reasons = potential, cell, reasons
        most = int(crystals.n_atoms.max()) if len(rows) else 0
        species = torch.zeros(len(rows), most, dtype=torch.int64)
        real = torch.arange(most) < crystals.n_atoms[:, None]
        species[real] = crystals.species
        x = torch.zeros(len(rows), 3 + most, 3, dtype=torch.float64)
        x[:, :3], x[:, 3:][real] = crystals.cell.detach(), crystals.pos.detach()
        self.state: _State = {"row": rows, "species": species, "x": x, "first_x": x}
        self.state["failed"] = torch.zeros(len(rows), dtype=torch.bool)
        self.state["trust"] = torch.full((len(rows),), _LONGEST_STEP, dtype=torch.float64)
        self.state["moves"] = self.state["turns"] = x.new_zeros(len(rows), 0, 3 + most, 3)
        point, failures = self._measure(x)
        self.state |= point
        self._fail(failures)

    def _fail(self, failures: Mapping[int, str]) -> None:
        for i, reason in failures.items():
            self.state["failed"][i] = True
            self.reasons[int(self.state["row"][i])] = reason

    def _measure(self, x: Tensor) -> tuple[_State, dict[int, str]]:
        """Energies, gradients, stresses and largest forces, and where and why there are none."""
        crystals = _crystals({**self.state, "x": x})
        result = self.potential(crystals, forces=True, stress=self.cell)
        gradient, stress = torch.zeros_like(x), torch.full_like(x[:, :3], torch.nan)
        gradient[:, 3:][self.state["species"] > 0] = -torch.from_numpy(result.forces)
        max_force = gradient.norm(dim=2).amax(dim=1)
        if self.cell:
            stress = torch.from_numpy(result.stress)
            stress = (stress + stress.transpose(1, 2)) / 2
            n_atoms = crystals.n_atoms.double()[:, None, None]
            virial = stress * crystals.volume[:, None, None]
            gradient[:, :3] = virial / n_atoms.sqrt()
            max_force = torch.maximum(max_force, (virial / n_atoms).norm(dim=2).amax(dim=1))
        energy = torch.from_numpy(result.energy_per_atom)
        bad = ~(energy.isfinite() & max_force.isfinite())
        failures = {
            i: result.reasons.get(i, "the forces are not finite")
            if result.valid[i]
            else "it is not valid: its volume or a distance of atoms is too small"
            for i in bad.nonzero().flatten().tolist()
        }
        point = {"energy_per_atom": energy, "gradient": gradient, "stress": stress}
        return {"x": x, "max_force": max_force, **point}, failures

    def step(self) -> None:
        """Move every structure; undo what raised the energy or cannot be computed."""
        state = self.state
        move = self._direction()
        length = move.norm(dim=2).amax(dim=1).clamp_min(1e-12)
        move = move * (state["trust"] / length).clamp_max(1.0)[:, None, None]
        cell = state["x"][:, :3]
        strain = move[:, :3] / (state["species"] > 0).sum(1).sqrt()[:, None, None]
        pos = state["x"][:, 3:] + move[:, 3:] @ torch.linalg.inv(cell)
        new, failures = self._measure(torch.cat([cell @ torch.linalg.matrix_exp(strain), pos], 1))
        good = new["energy_per_atom"] <= state["energy_per_atom"] + _RISE
        good[list(failures)] = False
        turn = new["gradient"] - state["gradient"]
        curved = good & ((move * turn).sum((1, 2)) > 1e-8 * move.square().sum((1, 2)))
        for name, latest in (("moves", move), ("turns", turn)):
            # After a bad step, nothing that is remembered of the curvature is worth keeping.
            kept = _choose(good, state[name], torch.zeros_like(state[name]))
            latest = _choose(curved, latest, torch.zeros_like(latest))
            state[name] = torch.cat([kept, latest[:, None]], dim=1)[:, -_MEMORY:]
        trust = state["trust"]
        state["trust"] = torch.where(good, (1.2 * trust).clamp_max(_LONGEST_STEP), trust / 4)
        state |= {name: _choose(good, values, state[name]) for name, values in new.items()}
        stuck = state["trust"] < _SHORTEST_STEP
        self._fail({i: f"no step leads on: {failures[i]}" for i in failures if stuck[i]})
        self._stop_the_absurd()

    def _stop_the_absurd(self) -> None:
        energy = self.state["energy_per_atom"]
        volume, first_volume = (
            torch.linalg.det(self.state[name][:, :3]).abs() for name in ("x", "first_x")
        )
        growth = volume / first_volume
        for i in (energy < LOWEST_ENERGY).nonzero().flatten().tolist():
            self._fail({i: f"its energy is {float(energy[i]):.1f} eV/atom, which is absurd"})
        absurd = growth.log().abs() > math.log(VOLUME_FACTOR)
        for i in absurd.nonzero().flatten().tolist():
            self._fail({i: f"its volume became {float(growth[i]):.2g} times what it was"})

    def _direction(self) -> Tensor:
        """Steps of L-BFGS, by the two loops over what is remembered."""
        moves, turns = self.state["moves"], self.state["turns"]
        product = (moves * turns).sum((2, 3))
        weight = torch.where(product > 0, 1 / product, 0.0)[:, :, None, None]
        memory = list(zip(moves.unbind(1), turns.unbind(1), weight.unbind(1), strict=True))
        q, shares = self.state["gradient"], []
        for move, turn, rho in reversed(memory):
            shares.append(rho * (move * q).sum((1, 2), keepdim=True))
            q = q - shares[-1] * turn
        q = q / _CURVATURE
        for move, turn, rho in memory:
            q = q + move * (shares.pop() - rho * (turn * q).sum((1, 2), keepdim=True))
        return -q

    def leave(self, step: int, force_tolerance: float, last: bool) -> _State:
        """Part with the structures that are done or have failed after so many steps.

        With `last`, all leave. What failed is where it came from.
        """
        state = self.state
        failed = state["failed"]
        converged = ~failed & (state["max_force"] < force_tolerance)
        state |= {"converged": converged, "n_steps": torch.full_like(state["row"], step)}
        leaving = failed | converged | (state["trust"] < _SHORTEST_STEP) | last
        self.state = {name: values[~leaving] for name, values in state.items()}
        done = {name: values[leaving] for name, values in state.items()}
        lost = done["failed"]
        done["x"] = _choose(lost, done["first_x"], done["x"])
        for name in ("energy_per_atom", "max_force", "stress"):
            done[name] = _choose(lost, torch.full_like(done[name], torch.nan), done[name])
        return done
