"""What every reward promises, and each reward's own definition."""

import math
import threading
import time
import warnings
from contextlib import nullcontext

import numpy as np
import pandas as pd
import pytest
import torch
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure

from irlkit.crystals import CrystalBatch
from irlkit.data import CrystalDataset, load
from irlkit.evaluate.matching import MatchPool
from irlkit.flows.schedules import ConstantNoise, LearnedAnnealing
from irlkit.potentials import CHGNetPotential
from irlkit.rewards import (
    CompositeReward,
    CRMSEReward,
    EnergyReward,
    FunctionReward,
    Reward,
    RewardResult,
    SymmetryReward,
    as_reward,
)
from irlkit.rewards.base import ask
from irlkit.rewards.energy import clip_energies
from irlkit.rl.policies import AnnealingPolicy
from irlkit.rl.trainer import GRPOTrainer, NonFiniteRewardError
from tests.toy_potentials import (
    LennardJonesToy,
    volume_but_hangs_on_neon,
    volume_per_atom,
    volume_without_helium,
)
from tests.toys import ToyModel, crystals, trainer_config


def make_dataset():
    """Two polymorphs of NaCl, one structure of CaTiO3, one of carbon."""
    structures = [
        Structure(Lattice(5.6 / 2 * (1 - np.eye(3))), ["Na", "Cl"], [[0] * 3, [0.5] * 3]),
        Structure(Lattice.cubic(3.4), ["Na", "Cl"], [[0] * 3, [0.5] * 3]),
        Structure(
            Lattice.cubic(3.9),
            ["Ca", "Ti", "O", "O", "O"],
            [[0] * 3, [0.5] * 3, *(0.5 * (1 - np.eye(3)))],
        ),
        Structure(Lattice(3.57 / 2 * (1 - np.eye(3))), ["C"] * 2, [[0] * 3, [0.25] * 3]),
    ]
    batch = CrystalBatch.from_structures(structures)
    table = pd.DataFrame(
        {
            "material_id": list("abcd"),
            "formula": batch.reduced_formulas(),
            "n_atoms": batch.n_atoms.numpy(),
        }
    )
    return CrystalDataset("test", None, batch, table)


@pytest.fixture(scope="module")
def dataset():
    return make_dataset()


REWARDS = {
    "crmse": lambda dataset: CRMSEReward(dataset, pool=0),
    "energy": lambda dataset: EnergyReward(LennardJonesToy(), references=dataset),
    "not_triclinic": lambda dataset: SymmetryReward("not_triclinic"),
    "not_centrosymmetric": lambda dataset: SymmetryReward("not_centrosymmetric"),
    "composite": lambda dataset: CompositeReward(
        {"match": CRMSEReward(dataset, pool=0), "symmetry": SymmetryReward("not_triclinic")},
        {"match": 1.0, "symmetry": 0.25},
    ),
    "function": lambda dataset: FunctionReward(nearest_contact, on_failure=-1.0),
}


def nearest_contact(batch):
    """Smallest distance between atoms, Å; raises for structures without a lattice."""
    matrices = [structure.distance_matrix for structure in batch.to_structures()]
    return [float(np.where(np.eye(len(m)), np.inf, m).min()) for m in matrices]


@pytest.fixture(params=REWARDS)
def reward(request, dataset):
    with REWARDS[request.param](dataset) as reward:
        yield reward


def perturbed(batch, noise, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return batch.replace(
        pos=(batch.pos + noise * torch.randn(batch.pos.shape, generator=generator)) % 1.0
    )


class TestEveryReward:
    def test_values(self, reward, dataset):
        result = reward(dataset.batch.repeat(2))
        assert result.values.shape == (8,) and result.values.dtype == torch.float64
        assert torch.isfinite(result.values).all()
        assert all(array.shape == (8,) for array in result.info.values())

    def test_same_batch_same_values(self, reward, dataset):
        batch = perturbed(dataset.batch.repeat(3), 0.05)
        torch.testing.assert_close(reward(batch).values, reward(batch).values, rtol=0, atol=0)

    def test_structures_are_judged_on_their_own(self, reward, dataset):
        batch = perturbed(dataset.batch.repeat(3), 0.05)
        order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(
            reward(batch[order]).values, reward(batch).values[order], rtol=0, atol=0
        )

    def test_broken_structures_get_a_value_and_change_no_other(self, reward, dataset):
        batch = perturbed(dataset.batch.repeat(2), 0.05)
        expected = reward(batch).values
        cell, pos = batch.cell.clone(), batch.pos.clone()
        cell[1], cell[4] = torch.nan, 0.0
        pos[-1] = torch.inf
        values = reward(batch.replace(pos=pos, cell=cell)).values
        assert torch.isfinite(values).all()
        kept = [0, 2, 3, 5, 6]
        torch.testing.assert_close(values[kept], expected[kept], rtol=0, atol=0)

    def test_invariances(self, reward, dataset):
        batch = perturbed(dataset.batch, 0.03).to(dtype=torch.float64)
        shift = torch.tensor([0.3, 0.8, 0.6], dtype=torch.float64)
        rotation = torch.linalg.qr(
            torch.randn(3, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        ).Q
        moved = batch.replace(pos=(batch.pos + shift) % 1.0, cell=batch.cell @ rotation)
        torch.testing.assert_close(reward(moved).values, reward(batch).values, rtol=0, atol=1e-6)

    def test_check_accepts_what_it_can_judge(self, reward, dataset):
        assert reward.check(dataset.batch) is None

    def test_empty_batch(self, reward, dataset):
        assert reward(dataset.batch[:0]).values.shape == (0,)


def test_crmse_reward_takes_the_best_polymorph(dataset):
    batch = perturbed(dataset.batch.repeat(4), 0.06)
    matcher = StructureMatcher(stol=0.5, ltol=0.3, angle_tol=10)
    expected = []
    for structure in batch.to_structures():
        found = [
            matcher.get_rms_dist(structure, reference)
            for reference in dataset.structures
            if reference.composition.reduced_formula == structure.composition.reduced_formula
        ]
        expected.append(0.5 - min([match[0] for match in found if match], default=0.5))
    with CRMSEReward(dataset, pool=0) as reward:
        result = reward(batch)
    np.testing.assert_allclose(result.values, expected, atol=1e-8)
    assert result.values.max() > 0.3
    matched = result.info["matched"]
    assert (result.values[~matched] == 0).all()
    np.testing.assert_allclose(result.info["crmse"], 0.5 - result.values)
    formulas = np.array(dataset.batch.reduced_formulas())
    assert (
        formulas[result.info["reference"][matched]] == np.array(batch.reduced_formulas())[matched]
    ).all()
    assert (result.info["reference"][~matched] == -1).all()


def test_crmse_reward_of_perfect_invalid_and_unmatched_structures(dataset):
    cell = dataset.batch.cell.clone()
    cell[0] = torch.nan
    cell[2] = torch.diag(torch.tensor([2.0, 3.0, 9.0]))
    with CRMSEReward(dataset, pool=0) as reward:
        result = reward(dataset.batch.replace(cell=cell))
    np.testing.assert_allclose(result.values, [0, 0.5, 0, 0.5], atol=1e-5)
    assert result.info["valid"].tolist() == [False, True, True, True]
    assert result.info["reference"].tolist() == [-1, 1, -1, 3]


def test_a_composition_without_reference_is_named(dataset):
    water = CrystalBatch.from_structures(
        [Structure(Lattice.cubic(4), ["H", "H", "O"], [[0] * 3, [0.2, 0, 0], [0.1, 0.1, 0]])]
    )
    batch = CrystalBatch.concatenate([dataset.batch, water])
    with CRMSEReward(dataset, pool=0) as reward:
        with pytest.raises(ValueError, match=r"no reference structure.*H2O"):
            reward.check(batch)
        with pytest.raises(ValueError, match=r"no reference structure.*H2O"):
            reward(batch)


def test_an_empty_dataset_is_refused(dataset):
    with pytest.raises(ValueError, match="dataset must hold at least one structure"):
        CRMSEReward(dataset.select([]), pool=0)


def test_a_pool_given_stays_open_and_must_have_the_tolerances(dataset):
    with MatchPool(n_workers=1) as pool:
        reward = CRMSEReward(dataset, pool)
        reward(dataset.batch)
        reward.close()
        assert pool._pool._open
        with pytest.raises(ValueError, match="pool has the tolerances"):
            CRMSEReward(dataset, pool, stol=0.3)


def test_result_checks_itself():
    with pytest.raises(ValueError, match="one-dimensional float64 tensor on the CPU"):
        RewardResult(torch.zeros(3))
    with pytest.raises(ValueError, match=r"info\['a'\] must have shape \(3,\), got \(2,\)"):
        RewardResult(torch.zeros(3, dtype=torch.float64), {"a": np.zeros(2)})


# --- energies ---


def energies_of(batch):
    return LennardJonesToy()(batch).energy_per_atom


def test_energy_reward_is_the_negative_energy_per_atom(dataset):
    batch = perturbed(dataset.batch, 0.02)
    result = EnergyReward(LennardJonesToy())(batch)
    np.testing.assert_allclose(result.values, -energies_of(batch))
    np.testing.assert_allclose(result.info["energy_per_atom"], energies_of(batch))


def test_energies_are_clipped_per_group_around_the_valid_ones():
    """By the definition of Appendix E, written out."""
    generator = np.random.default_rng(0)
    energy = generator.normal(-4, 0.1, 60)
    energy[[3, 25]] = [40.0, -90.0]
    energy[[7, 8, 41]] = np.nan
    groups = np.repeat([0, 1, 2], 20)
    clipped = clip_energies(energy, groups, 3.0)
    for group in range(3):
        members = energy[groups == group]
        mean, std = np.nanmean(members), np.nanstd(members)
        expected = np.clip(members, mean - 3 * std, mean + 3 * std)
        np.testing.assert_allclose(clipped[groups == group], expected, rtol=1e-12)
    assert (clipped != energy).sum() == 2 + 3  # nan differs from itself
    np.testing.assert_array_equal(clip_energies(energy, groups, math.inf), energy)


def test_energy_reward_groups_clips_and_penalises(dataset):
    """One collapsed structure among 24 is an outlier of its group; invalid ones count 3 eV/atom."""
    batch = perturbed(dataset.batch[:1].repeat(24), 0.01)
    pos, cell = batch.pos.clone(), batch.cell.clone()
    pos[2 * 5 + 1] = pos[2 * 5] + 0.12
    cell[9] = 0.0
    group = batch.replace(pos=pos, cell=cell)
    other = perturbed(dataset.batch[3:].repeat(4), 0.01)
    result = EnergyReward(LennardJonesToy())(CrystalBatch.concatenate([group, other]))
    energy = energies_of(group)
    assert result.values[9] == -3.0
    assert np.isnan(energy[9]) and np.isnan(result.info["energy_per_atom"][9])
    mean, std = np.nanmean(energy), np.nanstd(energy)
    assert energy[5] > mean + 3 * std
    assert float(result.values[5]) == pytest.approx(-(mean + 3 * std))
    assert np.flatnonzero(result.info["clipped"]).tolist() == [5]
    assert np.flatnonzero(~result.info["valid"]).tolist() == [9]
    np.testing.assert_allclose(result.values[24:], -energies_of(other))
    unclipped = EnergyReward(LennardJonesToy(), clip=math.inf, penalty=7.0)(group)
    np.testing.assert_allclose(unclipped.values, -np.where(np.isfinite(energy), energy, 7.0))


def test_group_size_separates_neighbouring_groups_of_one_composition(dataset):
    batch = perturbed(dataset.batch[:1].repeat(40), 0.005)
    cell = batch.cell.clone()
    cell[:20] *= 1.5
    cell[3] *= 0.55
    batch = batch.replace(cell=cell)
    expected = clip_energies(energies_of(batch), np.repeat([0, 1], 20), 3.0)
    apart = EnergyReward(LennardJonesToy(), group_size=20)(batch)
    np.testing.assert_allclose(apart.values, -expected)
    together = EnergyReward(LennardJonesToy())(batch)
    assert not np.allclose(together.values, apart.values)


def test_groups_of_a_trainer_are_requests_whatever_their_formulas(dataset):
    """Structures of one group may have different formulas, and neighbouring groups the same."""
    batch = perturbed(dataset.batch[[0, 2, 0, 3, 3, 3, 3, 3]].repeat(3), 0.05)
    energies = energies_of(batch)
    with EnergyReward(LennardJonesToy(), clip=1.0) as reward:
        values = reward.in_groups(batch, 4).values
        composite = CompositeReward({"energy": reward, "flat": lambda b: b.n_atoms * 0.0})
        torch.testing.assert_close(composite.in_groups(batch, 4).values, values)
    expected = clip_energies(energies, np.repeat(np.arange(6), 4), 1.0)
    np.testing.assert_allclose(values, -expected)
    assert not np.allclose(values, -clip_energies(energies, np.zeros(24, dtype=int), 1.0))


def test_references_shift_whole_compositions(dataset):
    batch = perturbed(dataset.batch.repeat(4), 0.02)
    cell = batch.cell.clone()
    cell[0] = torch.nan
    batch = batch.replace(cell=cell)
    plain = EnergyReward(LennardJonesToy())(batch)
    shifted = EnergyReward(LennardJonesToy(), references=dataset)(batch)
    lowest = energies_of(dataset.batch)
    lowest[:2] = lowest[:2].min()
    shift = np.repeat(lowest, 4)
    np.testing.assert_allclose(shifted.values - plain.values, shift)
    np.testing.assert_allclose(
        shifted.info["energy_above_reference"][1:], energies_of(batch)[1:] - shift[1:]
    )


def test_structures_that_the_potential_fails_on_get_the_penalty(dataset):
    batch = perturbed(dataset.batch, 0.01)
    reward = EnergyReward(LennardJonesToy(breaks=[22]), penalty=2.0)
    result = reward(batch)
    assert result.values[2] == -2.0 and result.info["failed"].tolist() == [0, 0, 1, 0]
    assert result.info["valid"].all()


def test_energy_reward_with_chgnet_prefers_relaxed_structures(dataset):
    reward = EnergyReward(CHGNetPotential(), references=dataset)
    relaxed = reward(dataset.batch)
    assert (relaxed.values > reward(perturbed(dataset.batch, 0.08)).values).all()
    assert relaxed.values.max() == 0


def test_energy_reward_arguments_are_checked(dataset):
    toy = LennardJonesToy()
    with pytest.raises(ValueError, match="group_size must be at least 1 or None"):
        EnergyReward(toy, group_size=0)
    with pytest.raises(ValueError, match="penalty must be a finite energy"):
        EnergyReward(toy, penalty=math.inf)
    with pytest.raises(ValueError, match="clip must be positive"):
        EnergyReward(toy, clip=0.0)
    with pytest.raises(ValueError, match="toy gives none for CaTiO3"):
        EnergyReward(LennardJonesToy(breaks=[22]), references=dataset)
    water = CrystalBatch.from_formulas(["H2 O1"])
    with pytest.raises(ValueError, match=r"no reference structure.*H2O"):
        EnergyReward(toy, references=dataset).check(water)
    with pytest.raises(ValueError, match="does not know the elements Cm"):
        EnergyReward("chgnet").check(CrystalBatch.from_formulas(["Cm1"]))


# --- symmetry ---


def test_symmetry_rewards_of_known_space_groups():
    triclinic = Lattice.from_parameters(3.1, 4.3, 5.7, 77, 85, 98)
    general = [[0] * 3, [0.31, 0.22, 0.13], [0.57, 0.71, 0.39]]
    structures = [
        Structure(triclinic, ["Na", "Cl", "O"], general),
        Structure(triclinic, ["Na", "Cl"], [[0] * 3, [0.5] * 3]),
        Structure.from_spacegroup("F-43m", Lattice.cubic(5.4), ["Zn", "S"], [[0] * 3, [0.25] * 3]),
        Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.6), ["Na", "Cl"], [[0] * 3, [0.5] * 3]),
    ]
    batch = CrystalBatch.from_structures(structures)
    result = SymmetryReward("not_triclinic")(batch)
    assert result.info["spacegroup"].tolist() == [1, 2, 216, 225]
    assert result.values.tolist() == [0, 0, 1, 1]
    result = SymmetryReward("not_centrosymmetric")(batch)
    assert result.info["centrosymmetric"].tolist() == [False, True, False, True]
    assert result.values.tolist() == [1, 0, 1, 0]


def test_symmetry_is_found_within_the_tolerance(dataset):
    batch = perturbed(dataset.batch, 0.005)
    assert (SymmetryReward("not_triclinic", symprec=0.2)(batch).values == 1).all()
    assert (SymmetryReward("not_triclinic", symprec=1e-4)(batch).values == 0).any()


def test_what_spglib_refuses_is_no_success(dataset, monkeypatch):
    import spglib

    monkeypatch.setattr(spglib, "get_symmetry_dataset", lambda *arguments: None)
    result = SymmetryReward("not_centrosymmetric")(dataset.batch)
    assert (result.values == 0).all() and result.info["failed"].all()

    def fail(*arguments):
        raise RuntimeError("spglib")

    monkeypatch.setattr(spglib, "get_symmetry_dataset", fail)
    assert SymmetryReward("not_centrosymmetric")(dataset.batch).info["failed"].all()


def test_symmetry_reward_arguments_are_checked():
    with pytest.raises(ValueError, match=r"kind must be .* or 'not_centrosymmetric', got 'cubic'"):
        SymmetryReward("cubic")
    with pytest.raises(ValueError, match="symprec must be positive"):
        SymmetryReward("not_triclinic", symprec=0)
    with pytest.raises(ValueError, match="angle_tolerance must be positive"):
        SymmetryReward("not_triclinic", angle_tolerance=-1)


# --- composite ---


def test_composite_sums_weighted_parts_and_monitors_those_of_weight_zero(dataset):
    batch = perturbed(dataset.batch, 0.02)
    match, energy = CRMSEReward(dataset, pool=0), EnergyReward(LennardJonesToy())
    reward = CompositeReward(
        {"match": match, "energy": energy, "broken": lambda batch: [math.nan] * len(batch)},
        {"match": 2.0, "energy": 0.5, "broken": 0.0},
    )
    result = reward(batch)
    expected = 2 * match(batch).values + 0.5 * energy(batch).values
    torch.testing.assert_close(result.values, expected)
    assert np.isnan(result.info["broken"]).all()
    np.testing.assert_allclose(result.info["energy"], energy(batch).values)
    np.testing.assert_allclose(result.info["match_crmse"], match(batch).info["crmse"])
    reward.weights["broken"] = 1.0
    assert reward(batch).values.isnan().all()


def test_composite_closes_and_checks_its_parts(dataset):
    water = CrystalBatch.from_formulas(["H2 O1"])
    match = CRMSEReward(dataset, pool=1)
    with CompositeReward({"match": match}) as reward:
        reward(dataset.batch)
        assert match.pool._pool._open
        with pytest.raises(ValueError, match=r"no reference structure.*H2O"):
            reward.check(water)
    assert not match.pool._pool._open


def test_composite_arguments_are_checked():
    symmetry = SymmetryReward("not_triclinic")
    with pytest.raises(ValueError, match="parts must hold at least one reward"):
        CompositeReward({})
    with pytest.raises(ValueError, match="weights must have the names of the parts"):
        CompositeReward({"a": symmetry}, {"b": 1.0})
    with pytest.raises(ValueError, match=r"weights\['a'\] must be finite"):
        CompositeReward({"a": symmetry}, {"a": math.nan})


# --- functions ---


def solids(symbols=("Na", "He", "Ne", "Cl")):
    """One atom each, of growing volume."""
    return CrystalBatch.from_structures(
        [Structure(Lattice.cubic(3 + i), [s], [[0] * 3]) for i, s in enumerate(symbols)]
    )


VOLUMES = [27.0, 64.0, 125.0, 216.0]


@pytest.mark.parametrize(
    "convert",
    [
        lambda values: values,
        lambda values: values.float(),
        lambda values: values.numpy(),
        lambda values: values.tolist(),
        lambda values: RewardResult(values.double(), {"half": values.double().numpy() / 2}),
    ],
)
def test_functions_may_return_any_numbers(convert):
    reward = as_reward(lambda batch: convert(batch.volume))
    result = reward(solids())
    np.testing.assert_allclose(result.values, VOLUMES, rtol=1e-6)
    if "half" in result.info:
        np.testing.assert_allclose(result.info["half"], np.array(VOLUMES) / 2, rtol=1e-6)
    else:
        assert not result.info["failed"].any()


async def volumes_later(batch):
    return batch.volume


@pytest.mark.parametrize(
    ("convert", "expected"),
    [
        (lambda v: pd.Series(v, index=list("dcba")), VOLUMES),
        (lambda v: v[::-1][::-1], VOLUMES),
        (lambda v: v.astype(object), VOLUMES),
        (lambda v: v.astype(np.float16), VOLUMES),
        (lambda v: list(torch.tensor(v)), VOLUMES),
        (lambda v: [None, *v[1:].tolist()], [math.nan, *VOLUMES[1:]]),
        (lambda v: np.ma.masked_greater(v, 100), [27, 64, math.nan, math.nan]),
        (lambda v: list(np.ma.masked_greater(v, 100)), [27, 64, math.nan, math.nan]),
        (lambda v: torch.tensor(v).to_sparse(), VOLUMES),
        (lambda v: v > 100, [0, 0, 1, 1]),
        (lambda v: torch.tensor(v).bfloat16(), [27, 64, 125, 216]),
        (lambda v: RewardResult(torch.tensor(v).double()), VOLUMES),
    ],
)
def test_what_functions_return_is_normalised(convert, expected):
    values = FunctionReward(lambda batch: convert(batch.volume.numpy()))(solids()).values
    np.testing.assert_allclose(values, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("convert", "words"),
    [
        (lambda v: None, "got a NoneType"),
        (lambda v: pd.Series(v).sort_values(ascending=False), "a Series whose index says another"),
        (lambda v: pd.DataFrame({"r": v}), r"shape \(4,\), got \(4, 1\) \(a DataFrame\)"),
        (lambda v: dict(enumerate(v)), "got a dict"),
        (lambda v: (float(x) for x in v), "got a generator"),
        (lambda v: (torch.tensor(v), {"a": 1}), "got a tuple with a Tensor"),
        (lambda v: torch.tensor(v) * 1j, "got a Tensor of torch.complex64"),
        (lambda v: v.astype(complex), "got a ndarray of complex128"),
        (lambda v: 1.0, "got a float"),
        (lambda v: v.astype(str), "got a ndarray"),
        (lambda v: "1234", "got a str"),
        (lambda v: v[:, None], r"got \(4, 1\) \(a ndarray\)"),
        (lambda v: [{}] * 4, "got a list with a dict"),
    ],
)
def test_what_is_no_number_for_each_structure_is_refused_by_name(convert, words):
    with pytest.raises(ValueError, match=f"the reward function must return one .*{words}"):
        FunctionReward(lambda batch: convert(batch.volume.numpy()), on_failure=0.0)(solids())


def test_an_async_function_is_refused_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match="got a coroutine"):
            FunctionReward(volumes_later)(solids())


def spoil(batch):
    """Give the volumes, and leave nothing as it was."""
    values = batch.volume.clone()
    for tensor in (batch.pos, batch.cell, batch.species, batch.n_atoms, batch.batch):
        tensor.zero_()
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    torch.set_grad_enabled(False)
    return values


class Spoiling(Reward):
    def __call__(self, batch):
        return RewardResult(spoil(batch).double())


@pytest.mark.parametrize("make", [lambda: FunctionReward(spoil), Spoiling])
def test_a_reward_reaches_neither_structures_nor_settings(make):
    batch, fresh = solids(), solids()
    values = ask(make(), batch).values
    assert torch.get_default_dtype() == torch.float32 and torch.is_grad_enabled()
    assert torch.get_default_device() == torch.device("cpu") == torch.zeros(1).device
    np.testing.assert_allclose(values, VOLUMES, rtol=1e-6)
    for name in ("pos", "cell", "species", "n_atoms", "batch"):
        assert torch.equal(getattr(batch, name), getattr(fresh, name))
    if make is not Spoiling:
        np.testing.assert_allclose(make()(batch).values, VOLUMES, rtol=1e-6)
        assert batch.formulas() == fresh.formulas() and torch.is_grad_enabled()


@pytest.mark.parametrize("overlap", [False, True])
def test_a_run_is_the_same_whatever_its_reward_does_to_what_it_is_given(overlap):
    def run(reward):
        noise = {"pos": ConstantNoise(0.1), "cell": ConstantNoise(0.3)}
        policy = AnnealingPolicy(ToyModel(), LearnedAnnealing(8, 1).double(), noise)
        config = trainer_config(
            n_groups=2, group_size=4, n_steps=3, n_ppo_epochs=2, overlap_rewards=overlap
        )
        history = GRPOTrainer(policy, reward, crystals(), config).run(2, progress=False)
        return history["reward"].tolist(), history["clip_fraction"].tolist()

    expected = run(lambda batch: batch.volume)
    assert run(spoil) == expected and run(Spoiling()) == expected


def test_as_reward_keeps_rewards():
    symmetry = SymmetryReward("not_triclinic")
    assert as_reward(symmetry) is symmetry
    with pytest.raises(ValueError, match="a reward must be callable, got int"):
        as_reward(3)


def test_a_function_that_raises_for_one_structure():
    result = FunctionReward(volume_without_helium)(solids())
    np.testing.assert_allclose(result.values, [27, math.nan, 125, 216], rtol=1e-6)
    assert result.info["error"].tolist() == ["", "ArithmeticError: no helium", "", ""]
    result = FunctionReward(volume_without_helium, on_failure=-5.0)(solids())
    np.testing.assert_allclose(result.values, [27, -5, 125, 216], rtol=1e-6)
    assert result.info["failed"].tolist() == [False, True, False, False]


def test_a_function_that_raises_for_all_is_at_fault():
    with pytest.raises(ArithmeticError, match="no helium"):
        FunctionReward(volume_without_helium)(solids(["He", "He"]))
    with pytest.warns(UserWarning, match="failed for all 2 structures: .*no helium"):
        result = FunctionReward(volume_without_helium, on_failure=0.0)(solids(["He", "He"]))
    assert (result.values == 0).all()


def test_values_that_are_not_finite_are_treated_as_declared():
    def function(batch):
        return torch.tensor([1.0, math.nan, math.inf, 2.0])

    assert FunctionReward(function)(solids()).info["failed"].tolist() == [False, True, True, False]
    assert FunctionReward(function, on_failure=-1)(solids()).values.tolist() == [1, -1, -1, 2]


def test_a_function_that_hangs_is_stopped_in_this_process():
    result = FunctionReward(volume_but_hangs_on_neon, timeout=0.3)(solids())
    np.testing.assert_allclose(result.values, [27, 64, math.nan, 216], rtol=1e-6)
    assert result.info["error"].tolist() == ["", "", "it took more than 0.3 s", ""]


def test_functions_in_worker_processes():
    reward = FunctionReward(volume_but_hangs_on_neon, timeout=5.0, n_workers=1, on_failure=0.0)
    with reward:
        result = reward(solids(["Na", "He", "Cl", "Ne"]))
    np.testing.assert_allclose(result.values, [27, 64, 125, 0], rtol=1e-6)
    assert result.info["error"][3] == "it took more than 5 s"


def test_functions_of_a_notebook_are_sent_to_worker_processes():
    factor = 2.0
    with FunctionReward(lambda batch: factor * batch.volume, n_workers=1) as reward:
        result = reward(solids())
        assert not torch.isnan(result.values).any()
    np.testing.assert_allclose(result.values, 2 * np.array(VOLUMES), rtol=1e-6)


def test_functions_of_a_wrong_shape_are_refused():
    with pytest.raises(ValueError, match=r"one value per structure, shape \(4,\), got \(1,\)"):
        FunctionReward(lambda batch: [1.0])(solids())


def test_function_reward_arguments_are_checked():
    with pytest.raises(ValueError, match="function must be callable, got 3"):
        FunctionReward(3)
    with pytest.raises(ValueError, match="timeout must be positive"):
        FunctionReward(volume_per_atom, timeout=-1)
    with pytest.raises(ValueError, match="n_workers must be 0"):
        FunctionReward(volume_per_atom, n_workers=-1)
    lock = threading.Lock()
    with pytest.raises(ValueError, match=r"cannot be sent to a worker process: .*lock"):
        FunctionReward(lambda batch: lock and batch.volume, n_workers=1)
    assert len(FunctionReward(volume_per_atom)(solids()[:0])) == 0


# --- what a trainer does when a function fails ---


def small_trainer(reward, folder, resume=False):
    noise = {"pos": ConstantNoise(0.1), "cell": ConstantNoise(0.3)}
    policy = AnnealingPolicy(ToyModel(), LearnedAnnealing(8, 1).double(), noise)
    config = trainer_config(n_groups=2, group_size=4, n_steps=3, n_ppo_epochs=1)
    return GRPOTrainer(policy, reward, crystals(), config, out_dir=folder, resume=resume)


@pytest.mark.parametrize("how", ["raises", "nan", "hangs"])
def test_a_run_names_the_structures_that_a_function_fails_on_and_can_go_on(how, tmp_path):
    armed = []

    def function(batch):
        values = volume_per_atom(batch).double()
        bad = torch.zeros(len(batch), dtype=torch.bool)
        bad[batch.batch[batch.pos[:, 0] > 0.95]] = True
        if armed and bad.any():
            if how == "raises":
                raise ArithmeticError("no")
            if how == "hangs":
                time.sleep(60)
            values[bad] = math.nan
        return values

    reward = FunctionReward(function, timeout=0.2 if how == "hangs" else None)
    trainer = small_trainer(reward, tmp_path)
    trainer.run(2, progress=False)
    armed.append(True)
    with pytest.raises(NonFiniteRewardError, match=r"not finite for . of 8 structures") as caught:
        trainer.run(4, progress=False)
    assert 0 < len(caught.value.structures) < 8
    assert len(caught.value.paths) == len(caught.value.structures)
    assert all(path.exists() for path in caught.value.paths)
    assert (caught.value.structures.pos[:, 0] > 0.95).any()
    armed.clear()
    continued = small_trainer(reward, tmp_path, resume=True)
    assert continued.iteration == trainer.iteration >= 2
    continued.run(5, progress=False)
    assert continued.iteration == 5


def test_a_run_goes_on_where_the_reward_declares_what_failures_count(tmp_path):
    def function(batch):
        return torch.where(batch.volume > batch.volume.median(), math.nan, batch.volume)

    trainer = small_trainer(FunctionReward(function, on_failure=0.0), tmp_path)
    assert trainer.run(2, progress=False)["info_failed"].iloc[-1] > 0


def test_a_trainer_takes_plain_functions(tmp_path):
    history = small_trainer(volume_per_atom, tmp_path).run(2, progress=False)
    assert history["reward"].gt(0).all()


def test_a_run_is_the_same_whatever_torchs_settings_are():
    """Default dtype, default device ("meta" stands for a GPU) and gradients belong to the user."""

    model = ToyModel()

    def run(mode):
        noise = {"pos": ConstantNoise(0.1), "cell": ConstantNoise(0.3)}
        annealing = LearnedAnnealing(8, 1, generator=torch.Generator().manual_seed(0))
        policy = AnnealingPolicy(model, annealing.double(), noise)
        config = trainer_config(n_groups=2, group_size=4, n_steps=3, n_ppo_epochs=1)
        dataset = load(["NaCl", "C"])
        reward = EnergyReward(LennardJonesToy())
        trainer = GRPOTrainer(policy, reward, dataset.batch.to(dtype=torch.float64), config)
        with mode:
            return trainer.run(2, progress=False)["reward"].tolist()

    expected = run(nullcontext())
    try:
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("meta")
        torch.set_grad_enabled(False)
        assert run(nullcontext()) == expected
        assert torch.get_default_dtype() == torch.float64 and not torch.is_grad_enabled()
        assert torch.get_default_device() == torch.device("meta")
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
        torch.set_grad_enabled(True)
    for mode in (
        torch.inference_mode(),
        torch.device("meta"),
        torch.autocast("cpu", torch.bfloat16),
    ):
        assert run(mode) == expected
