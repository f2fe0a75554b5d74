"""Notebook 06's experiment: a reward, tables, CIF files."""

import numpy as np
import pytest
import torch

from irlkit import CrystalBatch, rewards
from irlkit import data as datasets
from irlkit.flows.base_distribution import BaseDistribution
from irlkit.flows.dynamics import Dynamics
from irlkit.flows.schedules import ConstantNoise
from irlkit.lab.experiments import bring_your_own as own
from irlkit.networks.cspnet import CSPNet
from irlkit.networks.flow_model import FlowModel
from irlkit.pretraining import KINDS
from irlkit.rl import GRPOTrainer, TrainerConfig, VelocityPolicy


@pytest.fixture
def model():
    torch.manual_seed(0)
    base = BaseDistribution((1.3,) * 3, (0.2,) * 3)
    return FlowModel(CSPNet(8, 1, 3, 8), KINDS["linear-ode"], base).requires_grad_(False)


@pytest.fixture
def salts():
    return datasets.load(["NaCl", "Li2O"], z=1)


def crystals(volumes):
    """Sound crystals of a salt, of given volumes per cell."""
    batch = CrystalBatch.from_formulas(["NaCl"] * len(volumes))
    pos = torch.tensor([[0.0, 0.0, 0.0], [0.5, 0.5, 0.5]]).repeat(len(volumes), 1)
    edges = torch.tensor(volumes).pow(1 / 3)
    return batch.replace(pos=pos, cell=edges[:, None, None] * torch.eye(3))


def test_training_follows_the_reward_and_leaves_the_model_alone(model, salts):
    """A reward that only size can raise: cells grow, those of the pretrained model do not."""
    pretrained = {name: value.clone() for name, value in model.state_dict().items()}
    reward = rewards.FunctionReward(lambda batch: batch.volume.abs().log(), on_failure=-9.0)
    request = salts.batch.repeat(8)
    x_0 = model.sample_base(request, torch.Generator().manual_seed(0))
    before = Dynamics(model).generate(request, 4, x_0=x_0)
    policy = VelocityPolicy(model, {"pos": ConstantNoise(0.05), "cell": ConstantNoise(0.3)})
    config = TrainerConfig(n_groups=2, group_size=8, n_steps=4, n_ppo_epochs=2)
    GRPOTrainer(policy, reward, salts, config).run(12, progress=False)
    after = policy.deploy().generate(request, 4, x_0=x_0)
    assert reward(after).values.mean() > reward(before).values.mean() + 0.1
    for name, value in model.state_dict().items():
        assert torch.equal(value, pretrained[name])


def test_structures_are_named_and_the_best_valid_ones_are_kept(salts):
    values = torch.arange(6.0)
    table = own.structure_table(salts, 3, {"before": values, "after": -values})
    assert list(table["material_id"][[0, 5]]) == ["NaCl-z1-before-000", "Li2O-z1-before-002"]
    people = own.reward_table(table)
    assert people.loc[("NaCl", "before"), "best"] == 2 and set(people["structures"]) == {3}
    structures = crystals([40.0] * 12)
    cell = structures.cell.clone()
    cell[5] = 0.0  # Of the highest reward.
    best = own.best_of(table, structures.replace(cell=cell), per_formula=2)
    assert sorted(best) == [1, 2, 3, 4]
    with pytest.raises(ValueError, match="none of the 12 structures is valid"):
        own.best_of(table, structures.replace(cell=torch.zeros_like(cell)))


def test_formulas_listed_twice_have_names_of_their_own():
    twice = datasets.load(["NaCl", "NaCl"], z=1)
    table = own.structure_table(twice, 3, {"before": torch.zeros(6)})
    assert table["material_id"].is_unique


def test_cif_files_come_back_and_are_never_mixed(tmp_path):
    structures = crystals([30.0, 50.0])
    salts = datasets.load(["NaCl"], z=1)
    table = own.structure_table(salts, 2, {"after": torch.tensor([1.0, 2.0])})
    provenance = {"seed": 3}
    folders = [own.write_cifs(tmp_path, structures, table, provenance) for _ in range(2)]
    assert [folder.name for folder in folders] == ["cifs", "cifs-2"]
    assert own.share_read_back(folders[0], structures) == 1.0
    assert own.share_read_back(folders[0], crystals([30.0, 51.0])) == 0.5
    read = datasets.load(folders[1], niggli=False, progress=False)
    assert list(read.table["reward"]) == [1.0, 2.0]
    assert set(read.table["provenance"]) == {'{"seed": 3}'}


def test_claims(salts):
    table = own.structure_table(salts, 3, {"before": torch.zeros(6), "after": torch.ones(6)})
    assert all(claim.holds for claim in own.own_claims(table, 1.0))
    table.loc[table["set"] == "after", "reward"] = [-1.0, *[np.nan] * 5]
    held = [claim.holds for claim in own.own_claims(table, 0.9, n_skipped=1)]
    assert held == [False] * 4
    assert [claim.kind for claim in own.own_claims(table, 1.0)] == ["aim"] + ["guard"] * 3
    table["reward"] = 0.0
    assert [claim.holds for claim in own.own_claims(table, 1.0)] == [False] + [True] * 3
