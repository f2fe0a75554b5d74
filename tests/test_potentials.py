"""Neighbours, CHGNet against its package, MACE and ASE against one-by-one calculations."""

import importlib.util
import os
import socket
import subprocess
import sys
import threading
import types
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from ase.calculators.lj import LennardJones
from pymatgen.core import Lattice, Structure

from irlkit import potentials
from irlkit.crystals import CrystalBatch
from irlkit.data import load
from irlkit.potentials import ASEPotential, CHGNetPotential, MACEPotential, base
from irlkit.potentials._neighbors import find_neighbors, reduced, slices
from irlkit.utils.workers import WorkersLostError
from tests.tiny_mace import write_mace
from tests.toy_calculators import Troubled, missing_calculator
from tests.toy_potentials import LennardJonesToy

LJ = {"sigma": 2.0, "epsilon": 0.3, "rc": 6.0}
SKIP_WITHOUT_MACE = pytest.mark.skipif(
    importlib.util.find_spec("mace") is None, reason="needs mace-torch"
)
ELEMENTS = torch.tensor([8, 11, 17, 22, 38])


def random_crystals(n=10, seed=0, skew=0.8):
    """Structures of 1 to 6 atoms at sensible densities, in skewed cells, positions not wrapped."""
    generator = torch.Generator().manual_seed(seed)
    n_atoms = torch.randint(1, 7, (n,), generator=generator)
    total = int(n_atoms.sum())
    lengths = (15.0 * n_atoms.double()) ** (1 / 3)
    noise = torch.randn(n, 3, 3, generator=generator, dtype=torch.float64)
    return CrystalBatch(
        ELEMENTS[torch.randint(0, 5, (total,), generator=generator)],
        4 * torch.rand(total, 3, generator=generator, dtype=torch.float64) - 2,
        lengths[:, None, None] * torch.eye(3, dtype=torch.float64) + skew * noise,
        n_atoms,
    )


def relaxed(n=6, noise=0.02):
    """Structures of the embedded set, slightly displaced, so that nothing is symmetric."""
    batch = load("prototypes", "val", progress=False).batch[:n].to(dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    shift = noise * torch.randn(batch.pos.shape, generator=generator, dtype=torch.float64)
    return batch.replace(pos=batch.pos + shift)


# --- neighbours ---


def test_neighbors_are_those_of_pymatgen():
    batch = random_crystals(skew=2.0)
    cutoff = 5.0
    pairs = find_neighbors(batch, cutoff)
    difference = batch.pos[pairs.second] - batch.pos[pairs.first] + pairs.shift
    lengths = torch.einsum("pi,pij->pj", difference, batch.cell[batch.batch[pairs.first]]).norm(
        dim=1
    )
    for i, structure in enumerate(batch.to_structures()):
        expected = structure.get_neighbor_list(cutoff, numerical_tol=1e-8)[3]
        # pymatgen lists both directions of each pair.
        own = lengths[batch.batch[pairs.first] == i].repeat_interleave(2)
        np.testing.assert_allclose(np.sort(own), np.sort(expected), atol=1e-9)
    assert (lengths < cutoff).all() and (batch.batch[pairs.first].diff() >= 0).all()


def test_neighbors_in_needles_after_reduction():
    cell = torch.tensor([[[3.0, 0, 0], [200.0, 3.0, 0], [-77.0, 500.0, 4.0]]]).double()
    batch = CrystalBatch(torch.tensor([6, 6]), torch.rand(2, 3).double(), cell, torch.tensor([2]))
    small = reduced(batch)
    assert small.cell.norm(dim=2).max() < 10
    assert torch.allclose(small.volume, batch.volume)
    expected = Structure(Lattice(small.cell[0].numpy()), ["C", "C"], small.pos.numpy())
    original = batch.to_structures()[0]
    assert original.get_distance(0, 1) == pytest.approx(expected.get_distance(0, 1), abs=1e-8)
    assert 2 * len(find_neighbors(small, 4.0).first) == len(expected.get_neighbor_list(4.0)[0])


def test_neighbors_do_not_depend_on_how_many_are_tried_at_once(monkeypatch):
    batch = random_crystals()
    whole = find_neighbors(batch, 6.0)
    monkeypatch.setattr("irlkit.potentials._neighbors._MAX_CANDIDATES", 100)
    parts = find_neighbors(batch, 6.0)
    for name in ("first", "second", "shift"):
        assert torch.equal(getattr(parts, name), getattr(whole, name))


def test_no_neighbors():
    batch = CrystalBatch.from_structures([Structure(Lattice.cubic(9), ["H"], [[0] * 3])])
    assert len(find_neighbors(batch, 5.0).first) == 0
    assert len(find_neighbors(batch[:0], 5.0).first) == 0
    with pytest.raises(ValueError, match="cutoff must be positive"):
        find_neighbors(batch, 0.0)


def test_slices_cover_all_within_the_limit():
    costs = torch.tensor([3, 4, 20, 1, 1, 5, 0, 0])
    found = slices(costs, 7)
    assert [i for part in found for i in range(part.start, part.stop)] == list(range(8))
    assert [int(costs[part].sum()) for part in found] == [7, 20, 7]
    assert slices(costs[:0], 7) == []


# --- every potential ---


@pytest.fixture(scope="module")
def chgnet():
    return CHGNetPotential()


@pytest.fixture(scope="module")
def lennard_jones():
    with ASEPotential(LennardJones, LJ, n_workers=1) as potential:
        yield potential


@pytest.fixture(scope="module")
def tiny_mace(tmp_path_factory):
    """File of a small random MACE model for five elements."""
    return write_mace(tmp_path_factory.mktemp("mace") / "tiny.model", ELEMENTS.tolist())


@pytest.fixture(
    params=[
        "toy",
        "chgnet",
        "lennard_jones",
        pytest.param("mace", marks=[pytest.mark.mace, SKIP_WITHOUT_MACE]),
    ]
)
def potential(request):
    if request.param == "toy":
        return LennardJonesToy()
    if request.param == "mace":
        return MACEPotential(path=request.getfixturevalue("tiny_mace"), trust=True)
    return request.getfixturevalue(request.param)


ROUNDING = {"chgnet-0.3.0": 5e-6}
"""What the order of sums may change, eV/atom: CHGNet computes in float32."""


class TestEveryPotential:
    def test_batched_energies_are_those_of_single_structures(self, potential):
        batch = random_crystals()
        energies = potential(batch)
        assert energies.energy_per_atom.dtype == np.float64 and len(energies) == len(batch)
        assert energies.potential == potential.name
        single = np.concatenate([potential(part).energy_per_atom for part in batch])
        assert energies.valid.sum() > 5
        atol = ROUNDING.get(potential.name, 1e-6)
        np.testing.assert_allclose(energies.energy_per_atom, single, atol=atol, rtol=0)
        assert energies.forces is None and energies.stress is None

    def test_bad_structures_have_no_energy_and_change_no_other(self, potential):
        batch = random_crystals()
        good = np.flatnonzero(potential(batch).valid)[:6]
        batch = batch[good]
        expected = potential(batch)
        cell, pos = batch.cell.clone(), batch.pos.clone()
        cell[1], cell[3] = torch.nan, 0.0
        pos[-1] = torch.inf
        energies = potential(batch.replace(pos=pos, cell=cell))
        assert energies.valid.tolist() == [True, False, True, False, True, False]
        assert not energies.failed.any() and not energies.reasons
        kept, atol = [0, 2, 4], ROUNDING.get(potential.name, 1e-6)
        np.testing.assert_allclose(
            energies.energy_per_atom[kept], expected.energy_per_atom[kept], atol=atol, rtol=0
        )
        assert np.isnan(energies.energy_per_atom[[1, 3, 5]]).all()

    def test_invariances(self, potential):
        batch = random_crystals()
        generator = torch.Generator().manual_seed(2)
        rotation = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64)).Q
        sheared = torch.tensor([[1, 0, 0], [3, 1, 0], [-2, 1, 1]], dtype=torch.float64)
        shift = torch.tensor([0.3, 0.8, 0.6], dtype=torch.float64)
        moved = batch.replace(
            pos=(batch.pos + shift) @ torch.linalg.inv(sheared),
            cell=sheared @ batch.cell @ rotation,
        )
        np.testing.assert_allclose(
            potential(moved).energy_per_atom, potential(batch).energy_per_atom, atol=2e-5
        )

    def test_supercells_have_the_same_energy_per_atom(self, potential):
        structures = random_crystals(6).to_structures()
        batch = CrystalBatch.from_structures(structures, dtype=torch.float64)
        doubled = CrystalBatch.from_structures(
            [structure.make_supercell([2, 1, 1], in_place=False) for structure in structures],
            dtype=torch.float64,
        )
        np.testing.assert_allclose(
            potential(doubled).energy_per_atom, potential(batch).energy_per_atom, atol=2e-5
        )

    def test_empty_batch(self, potential):
        assert len(potential(random_crystals()[:0])) == 0


def check_derivatives(potential, batch, atol):
    """Forces and stresses against central differences of the energies."""
    energies = potential(batch, forces=True, stress=True)
    assert energies.forces.shape == (len(batch.species), 3)
    generator = torch.Generator().manual_seed(4)
    direction = torch.randn(batch.pos.shape, generator=generator, dtype=torch.float64)
    strain = torch.randn(len(batch), 3, 3, generator=generator, dtype=torch.float64)
    strain = (strain + strain.transpose(1, 2)) / 2
    step, n_atoms = 2e-6, batch.n_atoms.numpy()

    def along(sign):
        return potential(batch.replace(pos=batch.pos + sign * step * direction)).energy_per_atom

    def strained(sign):
        cell = batch.cell + sign * step * batch.cell @ strain
        return potential(batch.replace(cell=cell)).energy_per_atom

    cartesian = torch.einsum("ni,nij->nj", direction, batch.cell[batch.batch])
    work = (energies.forces * cartesian.numpy()).sum(axis=1)
    work = np.bincount(batch.batch.numpy(), work)
    slope = (along(1) - along(-1)) / (2 * step) * n_atoms
    np.testing.assert_allclose(-work, slope, rtol=1e-4, atol=atol)
    slope = (strained(1) - strained(-1)) / (2 * step) * n_atoms
    virial = (energies.stress * strain.numpy()).sum(axis=(1, 2)) * batch.volume.numpy()
    np.testing.assert_allclose(virial, slope, rtol=1e-4, atol=atol)


# --- failures ---


def test_a_structure_that_breaks_the_batch_fails_alone():
    batch = random_crystals()
    toy = LennardJonesToy(breaks=[22])
    hit = np.array([22 in part.species for part in batch])
    energies = toy(batch)
    expected = LennardJonesToy()(batch)
    assert 0 < hit.sum() < len(batch)
    np.testing.assert_array_equal(energies.failed, hit & energies.valid)
    np.testing.assert_allclose(energies.energy_per_atom[~hit], expected.energy_per_atom[~hit])
    assert set(energies.reasons.values()) == {"ArithmeticError: this toy cannot"}
    assert list(energies.reasons) == np.flatnonzero(energies.failed).tolist()


def test_invalid_structures_never_reach_the_potential():
    batch = random_crystals(3)
    species = batch.species.clone()
    species[: int(batch.n_atoms[0])] = 99
    batch = CrystalBatch(species, batch.pos, batch.cell, batch.n_atoms)
    cell = batch.cell.clone()
    cell[0] = torch.nan
    toy = LennardJonesToy()
    toy(batch.replace(cell=cell))
    assert toy.seen and 99 not in toy.seen


def test_a_potential_that_gives_nothing_warns():
    with pytest.warns(UserWarning, match="toy gave no energy for any of .*this toy cannot"):
        assert LennardJonesToy(breaks=ELEMENTS.tolist())(random_crystals()).failed.any()


# --- CHGNet ---


def test_chgnet_is_the_package_s(chgnet):
    """The package computes in float32 throughout, which its own angles near 180° feel."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from chgnet.model import CHGNet

        package = CHGNet.load(use_device="cpu", verbose=False)
        batch = relaxed()
        expected = package.predict_structure(batch.to_structures(), task="efs")
    energies = chgnet(batch, forces=True, stress=True)
    assert energies.valid.all() and not energies.failed.any()
    np.testing.assert_allclose(energies.energy_per_atom, [r["e"] for r in expected], atol=2e-5)
    forces = np.concatenate([r["f"] for r in expected])
    np.testing.assert_allclose(energies.forces, forces, atol=2e-3)
    stress = np.stack([r["s"] for r in expected]) / 160.21766208
    np.testing.assert_allclose(energies.stress, stress, atol=2e-4)
    assert np.abs(forces).max() > 0.1


def test_energies_of_the_embedded_set_are_chgnet_s(chgnet):
    dataset = load("prototypes", "test", progress=False).select(range(0, 60, 3))
    np.testing.assert_allclose(
        chgnet(dataset.batch).energy_per_atom, dataset.table["energy_per_atom"], atol=1e-4
    )


def test_chgnet_derivatives():
    check_derivatives(CHGNetPotential(dtype=torch.float64), relaxed(4), 1e-5)


def test_chgnet_s_forces_have_the_same_bits_each_time_with_several_threads(chgnet):
    batch = load("prototypes", "test", progress=False).batch[:96]
    n_threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        first, *others = (chgnet(batch, forces=True, stress=True) for _ in range(4))
    finally:
        torch.set_num_threads(n_threads)
    for other in others:
        assert np.array_equal(other.forces, first.forces, equal_nan=True)
        assert np.array_equal(other.stress, first.stress, equal_nan=True)


def test_chgnet_does_not_depend_on_how_much_is_computed_at_once(chgnet, monkeypatch):
    batch = random_crystals()
    expected = chgnet(batch).energy_per_atom
    monkeypatch.setattr(chgnet, "_max_cost", 1)
    np.testing.assert_allclose(chgnet(batch).energy_per_atom, expected, atol=5e-6, rtol=0)


def test_parts_of_a_large_batch_are_the_whole(chgnet, monkeypatch):
    batch = random_crystals()
    whole = chgnet(batch, forces=True, stress=True)
    monkeypatch.setattr(base, "_AT_ONCE", 2)
    parts = chgnet(batch, forces=True, stress=True)
    for name in ("energy_per_atom", "forces", "stress"):
        ours, theirs = getattr(parts, name), getattr(whole, name)
        np.testing.assert_allclose(ours, theirs, atol=2e-5, rtol=1e-5)
    far = CrystalBatch.from_structures([Structure(Lattice.cubic(20), ["H"], [[0] * 3])])
    far = far.to(dtype=batch.dtype)
    lone = CrystalBatch.concatenate([far, batch, far])
    assert chgnet(lone).reasons.keys() == {0, len(lone) - 1}


def test_chgnet_fails_on_isolated_atoms_and_impossible_densities(chgnet):
    batch = CrystalBatch.from_structures(
        [
            Structure(Lattice.cubic(20), ["H", "H"], [[0] * 3, [0.5] * 3]),
            Structure(Lattice.cubic(3.5), ["Cs"], [[0] * 3]),
            Structure(Lattice.cubic(0.52), ["H"], [[0] * 3]),
        ]
    )
    energies = chgnet(batch)
    assert energies.valid.all() and energies.failed.tolist() == [True, False, True]
    assert "no neighbour within 6 Å" in energies.reasons[0]
    assert "too dense" in energies.reasons[2]
    assert np.isfinite(energies.energy_per_atom[1])


def test_chgnet_needs_no_angles(chgnet):
    """In sparse crystals no bond is below 3 Å."""
    batch = CrystalBatch.from_structures([Structure(Lattice.cubic(5.0), ["Cs"], [[0] * 3])])
    energies = chgnet(batch, forces=True, stress=True)
    assert np.isfinite(energies.energy_per_atom).all() and np.isfinite(energies.stress).all()


@pytest.mark.parametrize("symbol", ["Cm", "Po", "At", "Rn", "Fr", "Ra"])
def test_chgnet_refuses_elements_it_was_not_trained_on(chgnet, symbol):
    batch = CrystalBatch.from_formulas([f"{symbol}Cl"])
    with pytest.raises(ValueError, match=rf"chgnet-0\.3\.0 does not know the elements {symbol}"):
        chgnet(batch)
    chgnet.check(CrystalBatch.from_formulas(["CsBi", "AcYb"]))


def test_weights_that_no_data_has_changed_are_those_that_are_refused(chgnet):
    norms = chgnet._network.weights["atom_embedding.embedding.weight"].norm(dim=1)
    assert (norms < 10).nonzero().flatten().add(1).tolist() == [84, 85, 86, 87, 88]
    with pytest.raises(ValueError, match="chgnet-r2scan does not know the elements Yb"):
        CHGNetPotential("r2scan").check(CrystalBatch.from_formulas(["YbO"]))


def test_chgnet_arguments_are_checked():
    with pytest.raises(ValueError, match="model must be one of"):
        CHGNetPotential("0.1")
    with pytest.raises(ValueError, match=r"dtype must be torch.float32 or torch.float64"):
        CHGNetPotential(dtype=torch.float16)


# --- names ---


def test_get(chgnet):
    assert potentials.get("chgnet").name == "chgnet-0.3.0"
    assert potentials.get("chgnet-r2scan").name == "chgnet-r2scan"
    assert potentials.get(chgnet) is chgnet
    with pytest.raises(ValueError, match=r"options \['device'\] can only be given with a name"):
        potentials.get(chgnet, device="cpu")


def test_import_loads_no_potential():
    code = (
        "import sys, irlkit, irlkit.rewards, irlkit.evaluate.metrics; "
        "print([m for m in ('chgnet', 'mace', 'e3nn', 'ase') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


# --- ASE ---


def test_ase_energies_forces_and_stresses():
    batch = random_crystals()
    with ASEPotential(LennardJones, LJ, n_workers=2) as potential:
        assert potential.name == "ase:LennardJones(epsilon=0.3, rc=6.0, sigma=2.0)"
        energies = potential(batch, forces=True, stress=True)
    atoms = batch.to_ase()
    ends = np.cumsum(batch.n_atoms)[:-1]
    for i, own in enumerate(atoms):
        if energies.valid[i]:
            own.calc = LennardJones(**LJ)
            assert energies.energy_per_atom[i] == pytest.approx(
                own.get_potential_energy() / len(own)
            )
            np.testing.assert_allclose(
                np.split(energies.forces, ends)[i], own.get_forces(), atol=1e-9
            )
            np.testing.assert_allclose(energies.stress[i], own.get_stress(voigt=False), atol=1e-9)
    np.testing.assert_allclose(
        energies.energy_per_atom, LennardJonesToy()(batch).energy_per_atom, rtol=1e-9, atol=1e-12
    )


def test_ase_calculators_that_raise_hang_die_or_return_nan():
    symbols = ["Na", "He", "Na", "Ne", "Ar", "Kr", "Na"]
    batch = CrystalBatch.from_structures(
        [Structure(Lattice.cubic(3 + 0.1 * i), [s], [[0] * 3]) for i, s in enumerate(symbols)]
    )
    with ASEPotential(Troubled, LJ, n_workers=2, timeout=5.0) as potential:
        energies = potential(batch)
    assert energies.failed.tolist() == [False, True, False, True, True, True, False]
    assert energies.reasons == {
        1: "ArithmeticError: no helium",
        3: "it took more than 5 s",
        4: "the worker process ended (exit status 3)",
        5: "the energy is not finite",
    }
    expected = LennardJonesToy()(batch).energy_per_atom
    np.testing.assert_allclose(energies.energy_per_atom[[0, 2, 6]], expected[[0, 2, 6]], rtol=1e-5)


def test_ase_calculators_that_cannot_be_made_end_the_call():
    with pytest.raises(WorkersLostError, match="did not start: OSError: no licence"):
        ASEPotential(missing_calculator, n_workers=1)(random_crystals())


def test_ase_factories_are_sent_to_workers_if_that_can_be():
    with ASEPotential(lambda: LennardJones(**LJ), n_workers=1) as potential:
        energies = potential(random_crystals()).energy_per_atom
    with ASEPotential(LennardJones, LJ, n_workers=0) as here:
        np.testing.assert_array_equal(here(random_crystals()).energy_per_atom, energies)
    for factory, name in (
        (partial(LennardJones, sigma=2.0), "ase:LennardJones(epsilon=0.5, sigma=2.0)"),
        (partial(LennardJones, "x"), "ase:LennardJones('x', epsilon=0.5)"),
        (LennardJones, "ase:LennardJones(epsilon=0.5)"),
    ):
        assert ASEPotential(factory, {"epsilon": 0.5}, n_workers=0).name == name
    lock = threading.Lock()
    with pytest.raises(ValueError, match=r"cannot be sent to a worker process: .*lock"):
        ASEPotential(lambda: lock and LennardJones(), n_workers=1)
    with pytest.raises(ValueError, match="timeout must be positive"):
        ASEPotential(LennardJones, timeout=0)


# --- MACE ---


@pytest.mark.mace
@SKIP_WITHOUT_MACE
class TestMACE:
    @pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
    def test_values_are_those_of_its_ase_calculator(self, tiny_mace, dtype, atol, monkeypatch):
        batch = random_crystals()
        potential = MACEPotential(path=tiny_mace, trust=True, dtype=dtype)
        energies = potential(batch, forces=True, stress=True)
        from irlkit.potentials.mace import _mace

        # What mace sets when it is first imported; its calculator cannot load without.
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
        with _mace():
            from mace.calculators import MACECalculator

            name = str(dtype).removeprefix("torch.")
            calculator = MACECalculator(
                model_paths=str(tiny_mace), device="cpu", default_dtype=name
            )
            rows = np.flatnonzero(energies.valid)[:4]
            atoms = batch[rows].to_ase()
            for own in atoms:
                own.calc = calculator
            expected = [own.get_potential_energy() / len(own) for own in atoms]
            forces = np.concatenate([own.get_forces() for own in atoms])
            stress = np.stack([own.get_stress(voigt=False) for own in atoms])
        np.testing.assert_allclose(energies.energy_per_atom[rows], expected, atol=atol)
        kept = np.isin(batch.batch.numpy(), rows)
        np.testing.assert_allclose(energies.forces[kept], forces, atol=10 * atol)
        np.testing.assert_allclose(energies.stress[rows], stress, atol=10 * atol)

    def test_derivatives(self, tiny_mace):
        batch = random_crystals(6)
        potential = MACEPotential(path=tiny_mace, trust=True)
        check_derivatives(potential, batch[potential(batch).valid], 1e-6)

    @pytest.mark.parametrize(("max_ell", "correlation"), [(1, 1), (2, 2), (3, 3)])
    def test_polynomials_are_the_symmetric_contraction(self, max_ell, correlation):
        from irlkit.potentials._mace_contraction import PolynomialContractions
        from irlkit.potentials.mace import _mace

        with _mace():
            from e3nn import o3
            from mace.modules.symmetric_contraction import SymmetricContraction

            torch.manual_seed(0)
            torch.set_default_dtype(torch.float64)
            harmonics = o3.Irreps.spherical_harmonics(max_ell)
            theirs = SymmetricContraction(
                o3.Irreps([(4, harmonic.ir) for harmonic in harmonics]),
                o3.Irreps("4x0e+4x1o"),
                correlation,
                num_elements=3,
            )
        ours = PolynomialContractions(theirs.contractions)
        components = torch.randn(5, 4, harmonics.dim, dtype=torch.float64, requires_grad=True)
        element = torch.nn.functional.one_hot(torch.tensor([0, 2, 1, 2, 0])).double()
        expected, found = (module(components, element) for module in (theirs, ours))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
        direction = torch.randn_like(expected)
        gradients = [
            torch.autograd.grad(out, components, direction)[0] for out in (expected, found)
        ]
        assert float(gradients[0].abs().max()) > 0.1
        torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=1e-12)

    def test_every_contraction_of_a_model_is_replaced(self, tiny_mace):
        from irlkit.potentials._mace_contraction import PolynomialContractions

        model = MACEPotential(path=tiny_mace, trust=True)._model
        assert len(model.products) == 2
        for product in model.products:
            assert isinstance(product.symmetric_contractions, PolynomialContractions)

    def test_default_bound_follows_from_the_channels(self, tiny_mace):
        assert MACEPotential(path=tiny_mace, trust=True)._max_cost == (1 << 17) // 8

    def test_memory_bound_changes_nothing(self, tiny_mace):
        batch = random_crystals()
        expected = MACEPotential(path=tiny_mace, trust=True)(batch).energy_per_atom
        bounded = MACEPotential(path=tiny_mace, trust=True, max_edges=1)
        np.testing.assert_allclose(bounded(batch).energy_per_atom, expected, atol=1e-9)

    def test_impossible_densities_fail(self, tiny_mace, monkeypatch):
        batch = random_crystals()
        potential = MACEPotential(path=tiny_mace, trust=True)
        expected = potential(batch).energy_per_atom
        monkeypatch.setattr("irlkit.potentials.mace.MAX_STRUCTURE_EDGES", 150)
        energies = potential(batch)
        assert 0 < energies.failed.sum() < energies.valid.sum()
        assert all("too dense" in reason for reason in energies.reasons.values())
        kept = energies.valid & ~energies.failed
        np.testing.assert_allclose(energies.energy_per_atom[kept], expected[kept], atol=1e-9)

    def test_the_process_is_left_as_it_was(self, tiny_mace):
        assert torch.get_default_dtype() == torch.float32
        assert "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD" not in os.environ
        MACEPotential(path=tiny_mace, trust=True)(random_crystals())
        assert torch.get_default_dtype() == torch.float32
        assert "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD" not in os.environ

    def test_a_path_needs_trust(self, tiny_mace):
        with pytest.raises(ValueError, match=r"is a pickle.*Pass trust=True"):
            MACEPotential(path=tiny_mace)
        with pytest.raises(FileNotFoundError, match="no MACE model at"):
            MACEPotential(path=tiny_mace.with_name("other.model"), trust=True)

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
            (b"<html>404</html>", "a web page"),
            (b"", "an empty file"),
            (lambda path: path.read_bytes()[:5000], "damaged or of another kind"),
            (lambda path: {"model": {}, "epoch": 3}, "it holds 'model', 'epoch', ...: weights or"),
            (lambda path: torch.nn.Linear(1, 1), "it holds a Linear"),
            (lambda path: torch.jit.script(torch.nn.ReLU()), "a compiled one"),
        ],
    )
    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    def test_what_is_no_model_is_said_in_words(self, tiny_mace, tmp_path, content, reason):
        path = tmp_path / "other.model"
        content = content(tiny_mace) if callable(content) else content
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif isinstance(content, torch.jit.ScriptModule):
            content.save(str(path))
        else:
            torch.save(content, path)
        with pytest.raises(ValueError, match=f"is not a MACE model: .*{reason}"):
            MACEPotential(path=path, trust=True)

    def test_a_model_that_needs_another_package(self, tiny_mace, tmp_path, monkeypatch):
        kind = type("Extra", (), {"__module__": "some_accelerator"})
        module = types.ModuleType("some_accelerator")
        module.Extra = kind
        monkeypatch.setitem(sys.modules, "some_accelerator", module)
        torch.save({"extra": kind()}, tmp_path / "other.model")
        monkeypatch.delitem(sys.modules, "some_accelerator")
        with pytest.raises(ImportError, match=r"needs what is not installed.*some_accelerator"):
            MACEPotential(path=tmp_path / "other.model", trust=True)

    def test_get_takes_paths_and_names_the_content(self, tiny_mace):
        one = potentials.get(tiny_mace, trust=True)
        other = potentials.get(str(tiny_mace), trust=True, dtype=torch.float32)
        assert one.name == other.name and one.name.startswith("mace:tiny-")

    def test_elements_and_arguments_are_checked(self, tiny_mace):
        batch = CrystalBatch.from_structures([Structure(Lattice.cubic(4), ["Fe"], [[0] * 3])])
        with pytest.raises(ValueError, match="does not know the elements Fe"):
            MACEPotential(path=tiny_mace, trust=True)(batch)
        with pytest.raises(
            ValueError, match=r"head must be one of the model's heads \['Default'\]"
        ):
            MACEPotential(path=tiny_mace, trust=True, head="omat")
        with pytest.raises(ValueError, match="dtype must be"):
            MACEPotential(path=tiny_mace, trust=True, dtype=torch.bfloat16)
        with pytest.raises(ValueError, match="max_edges must be at least 1"):
            MACEPotential(path=tiny_mace, trust=True, max_edges=0)

    def test_missing_weights_are_named_and_nothing_is_fetched(self, monkeypatch, tmp_path):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        tried = []

        def refuse(*arguments, **keywords):
            tried.append(arguments)
            raise OSError("no network")

        monkeypatch.setattr(socket, "create_connection", refuse)
        monkeypatch.setattr(socket.socket, "connect", refuse)
        monkeypatch.setattr(socket, "getaddrinfo", refuse)
        message = r"macempa0mediummodel .*not in the cache folder .*mace.*download=True.*path="
        with pytest.raises(FileNotFoundError, match=message):
            potentials.get("mace-mpa-0")
        assert not tried
        with pytest.raises(FileNotFoundError, match=f"the download failed.*{message}"):
            potentials.get("mace-mpa-0", download=True)
        assert tried

    def test_unknown_names_list_the_known(self):
        with pytest.raises(ValueError, match=r"unknown MACE model 'mice'; known: .*mace-mpa-0"):
            potentials.get("mice")
