"""Rewards of de novo generation: creativity, stability, diversity, composition."""

import numpy as np
import pytest
import torch
from pymatgen.core import Lattice, Structure

import irlkit
from irlkit import rewards
from irlkit.crystals import CrystalBatch
from irlkit.data import load
from irlkit.evaluate.hull import Hull, HullResult
from irlkit.potentials import relax
from irlkit.rewards.diversity import composition_features, mmd_contributions
from irlkit.rewards.ray import _Worker
from irlkit.rl import GRPOTrainer
from irlkit.rl.policies.species import SpeciesPolicy
from irlkit.rl.process import Request
from tests.toy_potentials import LennardJonesToy
from tests.toys import trainer_config


def cubic(element, a):
    return Structure(Lattice.cubic(a), [element], [[0, 0, 0]])


def rock_salt(a, b, length=5.6):
    return Structure.from_spacegroup(
        "Fm-3m", Lattice.cubic(length), [a, b], [[0, 0, 0], [0.5, 0.5, 0.5]]
    ).get_primitive_structure()


def batch_of(*structures):
    return CrystalBatch.from_structures(list(structures))


@pytest.fixture(scope="module")
def training():
    return load("prototypes", "train", progress=False).select(range(200))


# --- creativity -----------------------------------------------------------------------------------


def test_creativity(training):
    known = training.batch[0].to_structures()[0]
    stretched = known.copy()
    stretched.scale_lattice(2.5 * known.volume)
    new, broken = rock_salt("At", "Fr"), cubic("Xe", 0.1)
    reward = rewards.CreativityReward(training)
    result = reward(batch_of(new, known, new, stretched, broken))
    assert result.info["unique"][[0, 1, 2, 4]].tolist() == [True, True, False, False]
    assert result.info["novel"][[0, 2]].all() and not result.info["novel"][1]
    values = result.values.numpy()
    assert values[0] == 1  # unique and novel
    assert values[4] == 0  # invalid
    assert 0 <= values[1] < 0.5 and 0 <= values[2] < 1e-6  # known; the second of two
    assert not result.info["valid"][4]


def test_creativity_is_the_distance_from_the_nearest_of_a_formula(training):
    """The second of two that match is not unique; what it earns is how far it is from the first."""
    first, second = rock_salt("At", "Fr", 6.0), rock_salt("At", "Fr", 6.3)
    bounded = rewards.CreativityReward(training)(batch_of(first, second)).values
    free = rewards.CreativityReward(training, bounded=False)(batch_of(first, second)).values
    assert bounded[0] == free[0] == 1
    assert 0.05 < float(bounded[1]) < 1
    assert float(free[1]) == pytest.approx(float(bounded[1] / (1 - bounded[1])))


def test_an_empty_training_set_is_refused(training):
    with pytest.raises(ValueError, match="at least one"):
        rewards.CreativityReward(training.select([]))
    with pytest.raises(ValueError, match="at least one"):
        rewards.DiversityReward(training.select([]))


# --- stability ------------------------------------------------------------------------------------


class FakeHull(Hull):
    """Covers what has no helium; 0.05 eV/atom above the hull, or 5, or below."""

    def __init__(self, potential="toy"):
        super().__init__({"Ne": 0.0}, potential)

    def energy_above_hull(self, batch, energies):
        covered = np.array(
            [bool((s != 2).all()) for s in batch.species.split(batch.n_atoms.tolist())]
        )
        value = np.where(covered, np.resize([0.05, 5.0, -0.2], len(batch)), np.nan)
        value[~np.isfinite(energies)] = np.nan
        return HullResult(value, covered, ())


@pytest.mark.parametrize("relax_steps", [0, 2])
def test_stability(relax_steps):
    batch = batch_of(
        cubic("Ne", 3.0), cubic("Ne", 3.1), cubic("Ne", 3.2), cubic("He", 3.0), cubic("Ne", 0.2)
    )
    reward = rewards.StabilityReward(FakeHull(), LennardJonesToy(), relax_steps=relax_steps)
    result = reward(batch)
    assert result.values.tolist() == pytest.approx([-0.05, -1.0, 0.0, -1.0, -1.0])
    assert result.info["covered"].tolist() == [True, True, True, False, True]
    assert result.info["metastable"].tolist() == [True, False, True, False, False]
    assert not np.signbit(result.values[2]) or result.values[2] == 0
    with pytest.raises(ValueError, match="hull holds energies of the potential other"):
        rewards.StabilityReward(FakeHull("other"), LennardJonesToy())


def test_a_relaxed_energy_is_the_relaxation_s_alone():
    """Each valid structure is computed once per step and once at first, never besides."""
    batch = batch_of(
        cubic("Ne", 3.0), rock_salt("Ne", "Ar", 5.1), cubic("Ne", 0.2), cubic("Kr", 3.0)
    )
    potential = LennardJonesToy(breaks=[36])
    found = rewards.StabilityReward(FakeHull(), potential, relax_steps=3)(batch).info
    seen = len(potential.seen)
    expected = relax(batch[[0, 1]], LennardJonesToy(), max_steps=3)
    assert not expected.converged.any()
    energies = found["energy_per_atom"]
    assert np.array_equal(energies[:2], expected.energy_per_atom) and np.isnan(energies[2:]).all()
    assert found["valid"].tolist() == [True, True, False, True]
    alone = LennardJonesToy()
    rewards.StabilityReward(FakeHull(), alone, relax_steps=3)(batch[[0, 1, 2]])
    assert len(alone.seen) == 3 * (3 + 1) < seen


# --- diversity ------------------------------------------------------------------------------------


def test_contributions_are_those_of_leaving_each_out():
    draws = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, 3, generator=draws, dtype=torch.float64) for n in (7, 5))

    def mmd(a):
        def mean(p, q):
            return ((p @ q.T / 3 + 1) ** 3).mean()

        return mean(a, a) - 2 * mean(a, y) + mean(y, y)

    expected = [mmd(x[torch.arange(7) != m]) - mmd(x) for m in range(7)]
    assert mmd_contributions(x, y).tolist() == pytest.approx([float(e) for e in expected])


def test_what_is_rare_among_the_samples_and_common_in_the_reference_earns_more(training):
    batch = batch_of(*[rock_salt("Na", "Cl")] * 6, rock_salt("Mg", "O"))
    values = rewards.DiversityReward(training)(batch).values
    assert int(values.argmax()) == 6
    assert torch.allclose(values[:6], values[0].expand(6))
    assert composition_features(batch).shape == (7, 118)
    with pytest.raises(ValueError, match="features must be one of"):
        rewards.DiversityReward(training, "colour")


def test_a_broken_structure_does_not_change_what_features_of_others_are(training):
    reward = rewards.DiversityReward(training, "structure")
    batch = batch_of(rock_salt("Na", "Cl"), cubic("Po", 3.3), cubic("Xe", 0.01))
    assert bool(reward(batch).values.isfinite().all())


# --- composition ----------------------------------------------------------------------------------


def test_a_reference_without_structures_has_no_structure_features(training):
    formulas = load(["NaCl", "MgO"])
    with pytest.raises(ValueError, match="reference has compositions alone"):
        rewards.DiversityReward(formulas, "structure")
    rewards.DiversityReward(formulas, "composition")


def test_band_gaps():
    batch = CrystalBatch.from_formulas(["Si2", "Na1 Cl1", "Ga2 N2"])
    result = rewards.BandGapReward(3.0)(batch)
    gap = result.info["band_gap"]
    assert gap[0] < 0.5 and 4.5 < gap[1] < 5.5
    assert result.values.tolist() == pytest.approx((-((gap - 3.0) ** 2)).tolist())
    assert result.info["on_target"].tolist() == (abs(gap - 3.0) <= 0.5).tolist()
    with pytest.raises(ValueError, match="target"):
        rewards.BandGapReward(-1.0)


def test_valid_compositions():
    pytest.importorskip("smact", reason="smact is not installed")
    batch = CrystalBatch.from_formulas(["Na1 Cl1", "Na1 Cl3", "Ni1 Al1"])
    assert rewards.ValidCompositionReward()(batch).values.tolist() == [1.0, 0.0, 1.0]


# --- several together -----------------------------------------------------------------------------


def test_parts_are_scaled_over_all_that_is_judged_together():
    parts = {"a": lambda batch: batch.n_atoms, "b": lambda batch: 0.0 * batch.n_atoms + 7}
    reward = rewards.CompositeReward(parts, {"a": 2.0, "b": 1.0}, normalized=("a", "b"))
    batch = CrystalBatch.from_formulas(["C1", "C3", "C5"])
    for result in (reward(batch), reward.in_groups(batch, 3)):
        assert result.values.tolist() == [0.0, 1.0, 2.0]
        assert result.info["a"].tolist() == [1, 3, 5]
        assert result.info["a_normalized"].tolist() == [0.0, 0.5, 1.0]
        assert result.info["b_normalized"].tolist() == [0.0, 0.0, 0.0]
    assert reward.compares_all
    with pytest.raises(ValueError, match="normalized must name parts"):
        rewards.CompositeReward(parts, normalized=("c",))


def test_a_gate_decides_who_earns():
    batch = CrystalBatch.from_formulas(["C1", "Na1 Cl1", "Sr1 Ti1 O3", "C4"])
    judge = lambda batch: torch.where(batch.n_atoms == 4, torch.nan, -batch.n_atoms.double())  # noqa: E731
    reward = rewards.GatedReward(judge, rewards.CompoundReward(), least=-9.0)
    for result in (reward(batch), reward.in_groups(batch, 2)):
        assert result.values.tolist() == [-9.0, -2.0, -5.0, -9.0]
        assert result.info["passes"].tolist() == [0.0, 1.0, 1.0, 0.0]
        assert result.info["ungated"][:3].tolist() == [-1.0, -2.0, -5.0]
    half = rewards.GatedReward(judge, lambda batch: 0.5 * (batch.n_atoms == 5), least=-9.0)
    assert half(batch).values.tolist() == [-9.0, -9.0, -7.0, -9.0]
    assert rewards.CompoundReward(3)(batch).values.tolist() == [0.0, 0.0, 1.0, 0.0]
    with pytest.raises(ValueError, match="gate must give values from 0 to 1"):
        rewards.GatedReward(judge, judge)(batch[:3])
    with pytest.raises(ValueError, match="least"):
        rewards.GatedReward(judge, judge, least=-torch.inf)


def test_pure_elements_are_neither_creative_nor_stable_where_compounds_are_asked_for(training):
    batch = batch_of(rock_salt("At", "Fr"), rock_salt("At", "Po"), cubic("Po", 3.0))
    free, gated = (
        rewards.creativity_and_stability(training, FakeHull(), LennardJonesToy(), least_elements=n)(
            batch
        ).info
        for n in (1, 2)
    )
    assert free["creativity"].tolist() == [1.0, 1.0, 1.0]
    assert gated["creativity"].tolist() == [1.0, 1.0, 0.0]
    assert free["stability"].tolist() == pytest.approx([-0.05, -1.0, 0.0])
    assert gated["stability"].tolist() == pytest.approx([-0.05, -1.0, -1.0])
    assert (gated["composition"] == free["composition"]).all()


def test_what_compares_all_is_not_asked_in_parts():
    reward = rewards.CompositeReward({"rare": rewards.RareFormulaReward()})
    assert reward.compares_all
    with pytest.raises(ValueError, match="compares all structures"):
        _Worker(lambda: reward, 1).grouping()

    policy = SpeciesPolicy(irlkit.load_pretrained("denovo-mask"))
    config = trainer_config(n_groups=1, group_size=4, n_steps=3, overlap_rewards=True, max_batch=2)
    with pytest.raises(ValueError, match=r"overlap_rewards.*compares all structures"):
        GRPOTrainer(policy, reward, Request(torch.tensor([2])), config)
