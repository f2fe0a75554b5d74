"""Notebook 06's experiment: models in and out of OMatG's format, a reward, CIF files."""

import numpy as np
import pytest
import torch

import irlkit
from irlkit import CrystalBatch, rewards
from irlkit import data as datasets
from irlkit.flows.base_distribution import BaseDistribution
from irlkit.lab.experiments import bring_your_own as own
from irlkit.networks.cspnet import CSPNet
from irlkit.networks.flow_model import FlowModel
from irlkit.pretraining import KINDS
from tests.tiny_omatg import write_model

pytest.importorskip("yaml")
SIZE = own.Size(3, 2, 2)


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


def test_a_model_written_as_omatg_does_computes_the_same(model, small_batch, tmp_path):
    loaded = irlkit.load_omatg(own.write_omatg(model, tmp_path, n_steps=7))
    assert loaded.interpolants == model.interpolants
    assert loaded.info["omatg"]["n_steps"] == 7
    batch = small_batch.to(dtype=torch.float32)
    t = torch.tensor(0.4)
    expected, found = (
        one.velocity(t, batch.pos, batch.cell, one.prepare(batch)).velocity
        for one in (model, loaded)
    )
    for field in ("pos", "cell"):
        torch.testing.assert_close(found[field], expected[field], rtol=0, atol=0)


def test_other_kinds_are_not_written(model, tmp_path):
    other = FlowModel(CSPNet(8, 1, 3, 8, denoiser=True), KINDS["trig-sde-gamma"], model.base)
    with pytest.raises(ValueError, match="the interpolant of pos must be linear"):
        own.write_omatg(other, tmp_path)


def test_a_model_of_ones_own_is_found_with_and_without_its_configuration(tmp_path):
    folder = write_model(tmp_path / "mine")
    moved = (folder / "train.yaml").rename(tmp_path / "elsewhere.yaml")
    found, origin = own.load_model(folder / "model.ckpt", moved, out_dir=tmp_path)
    assert origin.endswith("model.ckpt")
    assert not any(p.requires_grad for p in found.parameters())
    with pytest.raises(FileNotFoundError, match="config"):
        own.load_model(folder / "model.ckpt", out_dir=tmp_path)
    with pytest.raises(ValueError, match="needs the checkpoint"):
        own.load_model(None, moved, out_dir=tmp_path)


def test_sizes_that_make_no_sense():
    assert own.resolve("quick", iterations=3).iterations == 3
    with pytest.raises(ValueError, match="preset must be one of"):
        own.resolve("huge")
    with pytest.raises(ValueError, match="at least 2 structures"):
        own.resolve("quick", n_structures=1)


def test_training_follows_the_reward_and_leaves_the_model_alone(model, salts):
    """A reward that only size can raise: cells grow, those of the pretrained model do not."""
    pretrained = {name: value.clone() for name, value in model.state_dict().items()}
    reward = rewards.FunctionReward(lambda batch: batch.volume.abs().log(), on_failure=-9.0)
    size = own.Size(8, 12, 2)
    before = own.generate(model, salts, size, 4)
    trainer = own.make_trainer(model, salts, reward, size, 4, learning_rate=1e-2)
    trainer.run(size.iterations, progress=False)
    after = own.generate(model, salts, size, 4, policy=trainer.policy)
    assert reward(after).values.mean() > reward(before).values.mean() + 0.1
    torch.testing.assert_close(own.generate(model, salts, size, 4).cell, before.cell)
    for name, value in model.state_dict().items():
        assert torch.equal(value, pretrained[name])


def test_structures_are_named_and_the_best_valid_ones_are_kept(salts):
    values = torch.arange(6.0)
    table = own.structure_table(salts, SIZE, {"before": values, "after": -values})
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
    table = own.structure_table(twice, SIZE, {"before": torch.zeros(6)})
    assert table["material_id"].is_unique


def test_cif_files_come_back_and_are_never_mixed(tmp_path):
    structures = crystals([30.0, 50.0])
    salts = datasets.load(["NaCl"], z=1)
    table = own.structure_table(salts, own.Size(2, 1, 1), {"after": torch.tensor([1.0, 2.0])})
    provenance = {"seed": 3}
    folders = [own.write_cifs(tmp_path, structures, table, provenance) for _ in range(2)]
    assert [folder.name for folder in folders] == ["cifs", "cifs-2"]
    assert own.share_read_back(folders[0], structures) == 1.0
    assert own.share_read_back(folders[0], crystals([30.0, 51.0])) == 0.5
    read = datasets.load(folders[1], niggli=False, progress=False)
    assert list(read.table["reward"]) == [1.0, 2.0]
    assert set(read.table["provenance"]) == {'{"seed": 3}'}


def test_claims(salts):
    table = own.structure_table(salts, SIZE, {"before": torch.zeros(6), "after": torch.ones(6)})
    assert all(claim.holds for claim in own.own_claims(table, 1.0))
    table.loc[table["set"] == "after", "reward"] = [-1.0, *[np.nan] * 5]
    held = [claim.holds for claim in own.own_claims(table, 0.9, n_skipped=1)]
    assert held == [False] * 4
    assert [claim.required for claim in own.own_claims(table, 1.0)] == [True, True, False, False]
