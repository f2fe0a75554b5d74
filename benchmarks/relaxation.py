"""Relaxations of many structures at once against ASE one by one, and SevenNet-0 against its own.

Structures of the embedded set, displaced and strained; both sides relax positions and cells with
CHGNet to the same tolerance, ASE with BFGS, its fastest, on a FrechetCellFilter. (Where a structure
sits between two minima, they may choose different ones; the median difference is checked.)
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.common import in_turns, parser, report, start
from irlkit.crystals import CrystalBatch
from irlkit.data import load
from irlkit.potentials import CHGNetPotential, SevenNetPotential, relax

TOLERANCE = 0.05
"""eV/Å."""


def disturbed(n: int) -> CrystalBatch:
    """Structures of the validation split with displaced atoms (0.15 Å) and strained cells (5 %)."""
    batch = load("prototypes", split="val", progress=False).batch.to(dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    batch = batch[torch.randperm(len(batch), generator=generator)[:n]]
    shift = 0.15 * torch.randn(batch.pos.shape, generator=generator, dtype=torch.float64)
    strain = 0.025 * torch.randn(n, 3, 3, generator=generator, dtype=torch.float64)
    pos = batch.pos + torch.einsum("ni,nij->nj", shift, torch.linalg.inv(batch.cell)[batch.batch])
    return batch.replace(pos=pos, cell=batch.cell @ torch.linalg.matrix_exp(strain + strain.mT))


def relax_one_by_one(calculator: Any, batch: CrystalBatch, steps: int) -> np.ndarray:
    """Energies per atom after ASE's relaxations, eV."""
    from ase.filters import FrechetCellFilter
    from ase.optimize import BFGS

    energies = []
    for atoms in batch.to_ase():
        atoms.calc = calculator
        BFGS(FrechetCellFilter(atoms), logfile=None).run(fmax=TOLERANCE, steps=steps)
        energies.append(atoms.get_potential_energy() / len(atoms))
    return np.array(energies)


def compute_one_by_one(calculator: Any, batch: CrystalBatch) -> np.ndarray:
    """Energies per atom of an ASE calculator, which computes forces and stresses with them, eV."""
    energies = []
    for atoms in batch.to_ase():
        atoms.calc = calculator
        energies.append(atoms.get_potential_energy() / len(atoms))
    return np.array(energies)


def seven_calculator() -> Any:
    """The ASE calculator of the package sevenn."""
    # What e3nn 0.4 asks for when it is first imported, and older versions of sevenn always.
    os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"
    from sevenn.calculator import SevenNetCalculator

    return SevenNetCalculator("7net-0", device="cpu")


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark."""
    known = parser(__doc__)
    known.add_argument("--structures", type=int, default=64)
    options = known.parse_args(arguments)
    device = start(options)
    steps = 200
    if options.quick:
        options.structures, steps = 3, 3
    batch = disturbed(options.structures)
    rows = []

    def compare(
        case: str, one_by_one: Callable[[], np.ndarray], batched: Callable[[], Any]
    ) -> None:
        expected, ours = one_by_one(), batched().energy_per_atom
        difference = float(np.median(np.abs(ours - expected)))
        assert difference < (1.0 if options.quick else 2e-3), f"{case}: {difference} eV/atom"
        seconds = in_turns(
            {"ASE": one_by_one, "batched": batched},
            device,
            options.repeats,
            options.seconds,
            options.clock,
            warm=True,
        )
        rows.append(
            {
                "case": f"{case}, {len(batch)} structures",
                "ratio": seconds["ASE"] / seconds["batched"],
                "seconds": seconds["batched"],
                "ase_seconds": seconds["ASE"],
                "median_difference": difference,
            }
        )

    from chgnet.model import CHGNet, CHGNetCalculator

    calculator = CHGNetCalculator(
        CHGNet.load(use_device=str(device), verbose=False), use_device=str(device)
    )
    chgnet = CHGNetPotential(device=device)
    compare(
        "relaxation, chgnet",
        lambda: relax_one_by_one(calculator, batch, steps),
        lambda: relax(batch, chgnet, max_steps=steps, force_tolerance=TOLERANCE),
    )
    if importlib.util.find_spec("sevenn") is not None:
        seven, other = SevenNetPotential(device=device), seven_calculator()
        compare("energies, 7net-0", lambda: compute_one_by_one(other, batch), lambda: seven(batch))
        compare(
            "energies, forces and stresses, 7net-0",
            lambda: compute_one_by_one(other, batch),
            lambda: seven(batch, forces=True, stress=True),
        )
        if not options.quick:
            compare(
                "relaxation, 7net-0",
                lambda: relax_one_by_one(other, batch, steps),
                lambda: relax(batch, seven, max_steps=steps, force_tolerance=TOLERANCE),
            )
    report("relaxation", rows, device)


if __name__ == "__main__":
    main()
