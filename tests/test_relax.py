"""Relaxation of many structures at once, against ASE and against itself."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.lj import LennardJones
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS, FIRE

from irlkit import data
from irlkit.crystals import CrystalBatch
from irlkit.potentials import ASEPotential, CHGNetPotential, relax
from irlkit.potentials.base import Computed, Potential
from tests.toy_potentials import LennardJonesToy

LJ = {"sigma": 2.0, "epsilon": 0.3, "rc": 6.0}
OPTIMIZERS = (BFGS, FIRE)
RELAXED_BY_ASE = Path(__file__).parent / "goldens" / "relaxed_by_ase.json"
BOND = 2 ** (1 / 6) * LJ["sigma"]


class Bottomless(Potential):
    """Energies that follow the volume: hydrogen collapses, helium explodes, others feel nothing.

    Lithium's energy falls without end, and beryllium cannot be computed once its cell has changed.
    """

    name = "bottomless"

    def _compute(self, batch, forces, stress):
        kind = batch.species[batch.n_atoms.cumsum(0) - 1]
        volume = batch.volume
        pull = 0.05 * (kind == 1) - 0.05 * (kind == 2) - 5.0 * (kind == 3) + 0.05 * (kind == 4)
        energy = pull * volume / batch.n_atoms
        energy[(kind == 4) & (volume < 63)] = torch.nan
        virial = pull[:, None, None] * torch.eye(3, dtype=torch.float64)
        return Computed(energy, torch.zeros_like(batch.pos), virial)


def strained(crystals, seed=0, noise=0.1, strain=0.03):
    """Structures with displaced atoms (Å) and deformed cells."""
    batch = crystals.to(dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    shift = noise * torch.randn(batch.pos.shape, generator=generator, dtype=torch.float64)
    matrix = strain * torch.randn(len(batch), 3, 3, generator=generator, dtype=torch.float64)
    pos = batch.pos + torch.einsum("ni,nij->nj", shift, torch.linalg.inv(batch.cell)[batch.batch])
    return batch.replace(pos=pos, cell=batch.cell @ torch.linalg.matrix_exp(matrix + matrix.mT))


def argon_like(n=4):
    """Lennard-Jones solids of different sizes, strained."""
    atoms = [bulk("Ar", a=3.1), bulk("Ar", a=3.1, cubic=True), bulk("Ar", "hcp", a=2.2, c=3.6)]
    return strained(CrystalBatch.from_ase([atoms[i % 3] for i in range(n)], torch.float64))


def dimer(distance, box=14.0):
    return Atoms("Ar2", positions=[[0, 0, 0], [0, 0, distance]], cell=[box] * 3, pbc=True)


def test_a_dimer_in_a_box_finds_its_bond():
    batch = CrystalBatch.from_ase([dimer(2.0), dimer(2.9)], torch.float64)
    result = relax(batch, LennardJonesToy(**LJ), force_tolerance=1e-4, cell=False)
    assert result.converged.all() and not result.failed.any() and len(result) == 2
    assert torch.equal(result.crystals.cell, batch.cell) and np.isnan(result.stress).all()
    for atoms in result.crystals.to_ase():
        assert atoms.get_distance(0, 1, mic=True) == pytest.approx(BOND, abs=1e-4)
    np.testing.assert_allclose(result.max_force, 0, atol=1e-4)
    depth = LJ["epsilon"] * (1 - 4 * ((2 / 6) ** 6 - (2 / 6) ** 12))
    np.testing.assert_allclose(result.energy_per_atom, -depth / 2, atol=1e-4)


def test_bulk_goes_where_ase_goes():
    batch = argon_like()
    result = relax(batch, LennardJonesToy(**LJ), force_tolerance=1e-3)
    assert result.converged.all()
    for i, atoms in enumerate(batch.to_ase()):
        atoms.calc = LennardJones(**LJ)
        assert BFGS(FrechetCellFilter(atoms), logfile=None).run(fmax=1e-3, steps=500)
        assert result.energy_per_atom[i] == pytest.approx(
            atoms.get_potential_energy() / len(atoms), abs=1e-4
        )
        assert float(result.crystals.volume[i]) == pytest.approx(atoms.get_volume(), rel=2e-3)
    assert abs(result.stress).max() < 1e-3 and result.max_force.max() < 1e-3


def test_what_it_says_is_what_the_potential_says():
    with ASEPotential(LennardJones, LJ, n_workers=1) as potential:
        result = relax(argon_like(), potential, max_steps=3)
        again = potential(result.crystals, forces=True, stress=True)
    assert result.n_steps.tolist() == [3] * 4 and not result.converged.any()
    assert not result.failed.any()  # not converged is not failed
    np.testing.assert_allclose(result.energy_per_atom, again.energy_per_atom, atol=1e-9)
    np.testing.assert_allclose(result.stress, again.stress, atol=1e-9)
    per_atom = np.linalg.norm(again.forces, axis=1)
    volume = (result.crystals.volume / result.crystals.n_atoms).numpy()
    rows = np.linalg.norm(again.stress, axis=2).max(1) * volume
    for i in range(4):
        own = per_atom[result.crystals.batch == i].max()
        assert result.max_force[i] == pytest.approx(max(own, rows[i]), abs=1e-9)


def test_one_that_is_relaxed_stays_and_energies_never_rise_much():
    potential = LennardJonesToy(**LJ)
    batch = argon_like()
    first = relax(batch, potential, force_tolerance=1e-3)
    second = relax(first.crystals, potential, force_tolerance=1e-3)
    assert second.n_steps.tolist() == [0] * 4
    assert torch.allclose(second.crystals.cell, first.crystals.cell, atol=1e-12)
    energies = [
        relax(batch, potential, max_steps=k, force_tolerance=1e-9).energy_per_atom
        for k in range(0, 30, 3)
    ]
    assert np.diff(energies, axis=0).max() < 3e-3


def test_broken_structures_change_no_other():
    sound = argon_like(6)
    cell = 4.0 * torch.eye(3, dtype=torch.float64)
    nan = CrystalBatch(
        torch.tensor([18, 18]), torch.rand(2, 3).double(), torch.nan * cell[None], torch.tensor([2])
    )
    clash = CrystalBatch.from_ase([dimer(0.1)], torch.float64)
    odd = CrystalBatch.from_ase([Atoms("Kr", cell=[4.0] * 3, pbc=True)], torch.float64)
    mixed = CrystalBatch.concatenate([nan, sound[:3], clash, sound[3:], odd])
    potential = LennardJonesToy(**LJ, breaks=(36,))
    result = relax(mixed, potential, force_tolerance=1e-3)
    assert result.failed.nonzero()[0].tolist() == [0, 4, 8] == sorted(result.reasons)
    assert "not valid" in result.reasons[0] and "this toy cannot" in result.reasons[8]
    assert np.isnan(result.energy_per_atom[[0, 4, 8]]).all()
    assert not result.converged[[0, 4, 8]].any()
    assert torch.equal(result.crystals[4].pos, clash.pos)
    alone = relax(sound, LennardJonesToy(**LJ), force_tolerance=1e-3)
    kept = [1, 2, 3, 5, 6, 7]
    for name in ("energy_per_atom", "max_force", "n_steps", "stress"):
        np.testing.assert_allclose(getattr(result, name)[kept], getattr(alone, name), atol=1e-9)
    assert torch.allclose(result.crystals[kept].pos, alone.crystals.pos, atol=1e-9)
    assert torch.allclose(result.crystals[kept].cell, alone.crystals.cell, atol=1e-9)


def test_divergence_is_stopped_alone():
    batch = CrystalBatch.from_ase(
        [Atoms(symbol, cell=[4.0] * 3, pbc=True) for symbol in ("H", "Ne", "He", "Li", "Be")],
        torch.float64,
    )
    result = relax(batch, Bottomless(), force_tolerance=1e-3)
    assert result.failed.tolist() == [True, False, True, True, True]
    assert "volume became 0.0" in result.reasons[0]
    assert "volume became" in result.reasons[2] and "which is absurd" in result.reasons[3]
    assert result.converged.tolist() == [False, True, False, False, False]
    assert "no step leads on: the energy is not finite" in result.reasons[4]
    assert result.n_steps[4] < 50 and np.isnan(result.energy_per_atom[4])
    assert torch.equal(result.crystals[0].cell, batch[0].cell)


def test_parts_and_dtypes():
    batch = argon_like(5)
    potential = LennardJonesToy(**LJ)
    whole = relax(batch, potential)
    parts = relax(batch, potential, max_batch=2)
    np.testing.assert_allclose(parts.energy_per_atom, whole.energy_per_atom, atol=1e-9)
    assert torch.allclose(parts.crystals.pos, whole.crystals.pos, atol=1e-9)
    single = relax(batch.to(dtype=torch.float32), potential)
    assert single.crystals.dtype == torch.float32
    edge = batch.replace(pos=batch.pos.clone().fill_(-1e-9)).to(dtype=torch.float32)[:1]
    for crystals in (single.crystals, relax(edge, potential, max_steps=0).crystals):
        assert (crystals.pos >= 0).all() and (crystals.pos < 1).all()
    np.testing.assert_allclose(single.energy_per_atom, whole.energy_per_atom, atol=1e-4)
    empty = relax(batch[:0], potential)
    assert len(empty) == 0 and len(empty.crystals) == 0 and empty.stress.shape == (0, 3, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_steps": -1}, "max_steps must not be negative, got -1"),
        ({"force_tolerance": 0.0}, "force_tolerance must be a finite number above 0"),
        ({"max_batch": 0}, "max_batch must be a positive number of structures, got 0"),
        ({"cell": "no"}, "cell must be"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        relax(argon_like(1), LennardJonesToy(**LJ), **options)


def few_prototypes():
    """Twenty structures of up to 6 atoms on the hull, strained a little.

    Structures above it are often saddle points, from where optimisers find different minima.
    """
    dataset = data.load("prototypes", split="val", progress=False)
    table = dataset.table
    rows = np.flatnonzero((table.e_above_hull < 1e-3) & table.n_atoms.between(2, 6))
    rows = rows[np.linspace(0, len(rows) - 1, 20).astype(int)]
    return strained(dataset.batch[rows], noise=0.03, strain=0.01)


@pytest.fixture(scope="module")
def prototypes():
    return few_prototypes()


def test_chgnet_relaxes_whatever_else_is_in_the_batch(prototypes):
    potential = CHGNetPotential(dtype=torch.float64)
    broken = prototypes[3].replace(pos=0 * prototypes[3].pos)
    few = relax(prototypes[:4], potential, force_tolerance=0.02)
    more = relax(
        CrystalBatch.concatenate([prototypes[:2], broken, prototypes[2:4]]),
        potential,
        force_tolerance=0.02,
    )
    assert more.failed.tolist() == [False, False, True, False, False]
    np.testing.assert_allclose(more.energy_per_atom[[0, 1, 3, 4]], few.energy_per_atom, atol=1e-6)


def energies_of_ase(crystals, optimizer):
    """Relax one by one; returns eV/atom."""
    from chgnet.model import CHGNet, CHGNetCalculator

    calculator = CHGNetCalculator(CHGNet.load(use_device="cpu", verbose=False), use_device="cpu")
    energies = []
    for atoms in crystals.to_ase():
        atoms.calc = calculator
        optimizer(FrechetCellFilter(atoms), logfile=None).run(fmax=0.01, steps=500)
        energies.append(float(atoms.get_potential_energy()) / len(atoms))
    return energies


@pytest.mark.slow
def test_energies_are_those_of_ase(prototypes):
    """All of them against what ASE has given, which takes minutes, and some against ASE itself."""
    recorded = json.loads(RELAXED_BY_ASE.read_text(encoding="utf-8"))
    result = relax(prototypes, CHGNetPotential(), force_tolerance=0.01, max_steps=500)
    assert result.converged.all()
    few = prototypes.n_atoms.argsort(stable=True)[:4]
    for optimizer in OPTIMIZERS:
        expected = np.array(recorded[optimizer.__name__])
        np.testing.assert_allclose(result.energy_per_atom, expected, atol=1e-3)
        found = energies_of_ase(prototypes[few], optimizer)
        np.testing.assert_allclose(found, expected[few], atol=2e-4)


def record():
    """Relax with ASE anew: ``python -m tests.test_relax``."""
    crystals = few_prototypes()
    found = {each.__name__: energies_of_ase(crystals, each) for each in OPTIMIZERS}
    RELAXED_BY_ASE.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    record()
