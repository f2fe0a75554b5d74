"""What every reward promises, and the structure-matching reward."""

import numpy as np
import pandas as pd
import pytest
import torch
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure

from irlkit.crystals import CrystalBatch
from irlkit.datasets import CrystalDataset
from irlkit.matching import MatchPool
from irlkit.rewards import CRMSEReward, RewardResult


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


REWARDS = {"crmse": lambda dataset: CRMSEReward(dataset, pool=0)}


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
        assert len(pool._workers) == 1
        with pytest.raises(ValueError, match="pool has the tolerances"):
            CRMSEReward(dataset, pool, stol=0.3)


def test_result_checks_itself():
    with pytest.raises(ValueError, match="one-dimensional float64 tensor on the CPU"):
        RewardResult(torch.zeros(3))
    with pytest.raises(ValueError, match=r"info\['a'\] must have shape \(3,\), got \(2,\)"):
        RewardResult(torch.zeros(3, dtype=torch.float64), {"a": np.zeros(2)})
