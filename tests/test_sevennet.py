"""SevenNet-0 against the package's own calculator."""

import importlib.util
import subprocess
import sys

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk

from irlkit import data, potentials
from irlkit.crystals import CrystalBatch
from irlkit.potentials import SevenNetPotential, sevennet

HAS_SEVENN = importlib.util.find_spec("sevenn") is not None
pytestmark = pytest.mark.judge
SKIP = pytest.mark.skipif(not HAS_SEVENN, reason="needs sevenn: pip install 'irlkit[judge]'")


@pytest.fixture(scope="module")
def seven():
    return SevenNetPotential()


@pytest.fixture(scope="module")
def calculator():
    patch = pytest.MonkeyPatch()
    # What e3nn 0.4 asks for when it is first imported, and older versions of sevenn always.
    patch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    from sevenn.calculator import SevenNetCalculator

    yield SevenNetCalculator("7net-0", device="cpu")
    patch.undo()


def displaced(n=8, noise=0.03, dtype=torch.float64):
    """Structures of the embedded set of all kinds, displaced, so that nothing is symmetric."""
    batch = data.load("prototypes", split="val", progress=False).batch.to(dtype=dtype)
    batch = batch[torch.linspace(0, len(batch) - 1, n).long()]
    generator = torch.Generator().manual_seed(0)
    shift = noise * torch.randn(batch.pos.shape, generator=generator, dtype=torch.float64)
    return batch.replace(pos=batch.pos + shift.to(dtype))


def diatomic(distance=1.3, box=20.0):
    return Atoms("CO", positions=[[0, 0, 0], [0, 0, distance]], cell=[box] * 3, pbc=True)


@SKIP
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-4), (torch.float64, 1e-5)])
def test_values_are_those_of_its_ase_calculator(calculator, dtype, atol):
    batch = CrystalBatch.concatenate(
        [displaced(), CrystalBatch.from_ase([diatomic(), bulk("Cu").repeat(2)], torch.float64)]
    )
    result = SevenNetPotential(dtype=dtype)(batch, forces=True, stress=True)
    energies, forces, stresses = [], [], []
    for atoms in batch.to_ase():
        atoms.calc = calculator
        energies.append(atoms.get_potential_energy() / len(atoms))
        forces.append(atoms.get_forces())
        stresses.append(atoms.get_stress(voigt=False))
    np.testing.assert_allclose(result.energy_per_atom, energies, atol=atol)
    np.testing.assert_allclose(result.forces, np.concatenate(forces), atol=1e-3)
    np.testing.assert_allclose(result.stress, stresses, atol=1e-4)
    assert result.potential == "7net-0"


@SKIP
def test_derivatives_are_those_of_the_energy():
    """In double precision, along a random displacement and a random strain."""
    potential = SevenNetPotential(dtype=torch.float64)
    batch = displaced(3)
    generator = torch.Generator().manual_seed(1)
    shift = torch.randn(batch.pos.shape, generator=generator, dtype=torch.float64)
    strain = torch.randn(3, 3, 3, generator=generator, dtype=torch.float64)
    strain = strain + strain.mT
    result = potential(batch, forces=True, stress=True)
    ends = []
    for h in (1e-4, -1e-4):
        inverse = torch.linalg.inv(batch.cell)[batch.batch]
        pos = batch.pos + h * torch.einsum("ni,nij->nj", shift, inverse)
        cell = batch.cell @ (torch.eye(3, dtype=torch.float64) + h * strain)
        ends.append(potential(batch.replace(pos=pos, cell=cell)).energy_per_atom)
    slope = (ends[0] - ends[1]) / 2e-4 * batch.n_atoms.numpy()
    work = np.zeros(3)
    np.add.at(work, batch.batch.numpy(), -(result.forces * shift.numpy()).sum(1))
    work += (result.stress * strain.numpy()).sum((1, 2)) * batch.volume.numpy()
    np.testing.assert_allclose(slope, work, atol=1e-5, rtol=1e-5)


@SKIP
def test_a_structure_does_not_depend_on_the_others(seven, monkeypatch):
    batch = displaced()
    dense = CrystalBatch.from_ase([Atoms("He", cell=[0.6] * 3, pbc=True)], torch.float64)
    alone = Atoms("Na", cell=[30] * 3, pbc=True)
    broken = dense.replace(cell=torch.full((1, 3, 3), torch.nan, dtype=torch.float64))
    mixed = CrystalBatch.concatenate(
        [batch[:4], dense, broken, CrystalBatch.from_ase([alone], torch.float64), batch[4:]]
    )
    monkeypatch.setattr(sevennet, "MAX_SLOTS", 2000)
    result = seven(mixed, forces=True)
    assert result.failed.nonzero()[0].tolist() == [4] and "too dense" in result.reasons[4]
    assert not result.valid[5] and np.isnan(result.energy_per_atom[4:6]).all()
    assert np.isfinite(result.energy_per_atom[6]) and (result.forces[-batch.n_atoms.sum() :]).any()
    own = np.concatenate([seven(one).energy_per_atom for one in batch])
    np.testing.assert_allclose(np.delete(result.energy_per_atom, [4, 5, 6]), own, atol=2e-6)


@SKIP
def test_atoms_without_neighbours_have_no_forces(seven):
    batch = CrystalBatch.from_ase([Atoms("Na", cell=[30] * 3, pbc=True)])
    result = seven(batch, forces=True, stress=True)
    assert np.isfinite(result.energy_per_atom[0])
    assert not result.forces.any() and not result.stress.any()


@SKIP
def test_what_it_does_not_know(seven, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="does not know the elements Po"):
        seven(CrystalBatch.from_formulas(["NaPo"]))
    with pytest.raises(ValueError, match="model must be '7net-0', got '7net-1'"):
        SevenNetPotential("7net-1")
    with pytest.raises(ValueError, match="dtype must be"):
        SevenNetPotential(dtype=torch.float16)
    other = tmp_path / "other.pth"
    other.write_bytes(b"something else")
    monkeypatch.setattr(sevennet, "_weights_file", lambda: other)
    with pytest.raises(ValueError, match="not the published file of SevenNet-0"):
        SevenNetPotential()


@SKIP
def test_by_name_and_without_the_package_s_code():
    assert isinstance(potentials.get("7net-0", dtype=torch.float64), SevenNetPotential)
    code = (
        "import sys; from irlkit import potentials; potentials.get('7net-0');"
        "print([m for m in ('sevenn', 'e3nn', 'mace') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_without_the_package(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'irlkit\[judge\]'"):
        potentials.get("7net-0")
