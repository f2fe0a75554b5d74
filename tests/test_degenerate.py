"""Crystals that no material is, through every reward, metric, potential and plot."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from irlkit.crystals import CrystalBatch, validity
from irlkit.data import CrystalDataset, load, writers
from irlkit.evaluate import diversity
from irlkit.evaluate.matching import MatchPool
from irlkit.evaluate.metrics import evaluate, evaluate_energies
from irlkit.lab import plots
from irlkit.potentials import CHGNetPotential, MACEPotential
from irlkit.rewards import (
    CompositeReward,
    CRMSEReward,
    EnergyReward,
    FunctionReward,
    SymmetryReward,
)
from tests.test_potentials import SKIP_WITHOUT_MACE
from tests.tiny_mace import write_mace
from tests.toy_potentials import LennardJonesToy, volume_per_atom


def crystal(species, pos=None, cell=None):
    n = len(species)
    draws = torch.Generator().manual_seed(n)
    pos = torch.rand(n, 3, generator=draws) if pos is None else torch.as_tensor(pos)
    cell = 4.0 * torch.eye(3) if cell is None else torch.as_tensor(cell)
    return CrystalBatch(torch.tensor(species), pos.float(), cell.float()[None], torch.tensor([n]))


NAN, INF = math.nan, math.inf
FLAT = torch.tensor([[4.0, 0, 0], [0, 4, 0], [4, 4, 0]])
DEGENERATE = {
    "zero volume": crystal([11, 17], cell=FLAT),
    "no cell": crystal([11, 17], cell=torch.zeros(3, 3)),
    "left-handed": crystal([11, 17], [[0, 0, 0], [0.5, 0.5, 0.5]], -4.0 * torch.eye(3)),
    "huge cell": crystal([11, 17], cell=1e6 * torch.eye(3)),
    "largest cell": crystal([11, 17], cell=3e38 * torch.eye(3)),
    "tiny cell": crystal([11, 17], cell=1e-3 * torch.eye(3)),
    "smallest cell": crystal([11, 17], cell=1e-45 * torch.eye(3)),
    "needle": crystal([11, 17], cell=torch.diag(torch.tensor([1e4, 1e-2, 1.0]))),
    "sheared": crystal([11, 17], cell=torch.tensor([[4.0, 0, 0], [4e4, 4, 0], [0, 4e4, 4]])),
    "coincident atoms": crystal([11, 17], pos=torch.zeros(2, 3)),
    "coincident images": crystal([11, 17], pos=[[0.0, 0, 0], [1.0, 1, 1]]),
    "far positions": crystal([11, 17], pos=[[0.0, 0, 0], [1e20, -1e20, 0.5]]),
    "one atom": crystal([26]),
    "200 atoms": crystal([22, 8] * 100, cell=14.0 * torch.eye(3)),
    "noble gases": crystal([2, 10, 18, 36, 54, 86]),
    "last elements": crystal([99, 100]),
    "nan position": crystal([11, 17], pos=[[0.0, 0, 0], [NAN, 0, 0]]),
    "infinite position": crystal([11, 17], pos=[[0.0, 0, 0], [INF, 0, 0]]),
    "nan cell": crystal([11, 17], cell=torch.full((3, 3), NAN)),
    "infinite cell": crystal([11, 17], cell=torch.full((3, 3), INF)),
}
BROKEN = [name for name in DEGENERATE if name.split()[0] in (
    "zero", "no", "tiny", "smallest", "needle", "coincident", "nan", "infinite"
)]  # fmt: skip
ALL = CrystalBatch.concatenate(list(DEGENERATE.values()))
ROCK_SALT = crystal([11, 17], [[0, 0, 0], [0.5, 0.5, 0.5]], 2.8 * (1 - torch.eye(3)))
GOOD = CrystalBatch.concatenate([ROCK_SALT, ROCK_SALT.replace(cell=1.04 * ROCK_SALT.cell)])
MIXED = CrystalBatch.concatenate([GOOD[0], ALL, GOOD[1]])
SPECIES = [11, 17, 26, 22, 8, 2, 10, 18, 36, 54, 86, 99, 100]
# CHGNet's table ends before these, and no data taught it radon.
OF_CHGNET = [i for i, batch in enumerate(MIXED) if int(batch.species.max()) < 86]


def of_each_composition(batch):
    """A sound structure for each structure."""
    sound = []
    for one in batch:
        n = len(one.species)
        edge = 2.5 * max(n, 2) ** (1 / 3)
        grid = torch.cartesian_prod(*[torch.arange(6) / 6] * 3)[:n]
        sound.append(one.replace(pos=grid, cell=edge * torch.eye(3)[None]))
    return CrystalBatch.concatenate(sound)


def as_dataset(batch):
    names = [str(i) for i in range(len(batch))]
    formulas, n_atoms = batch.reduced_formulas(), batch.n_atoms.numpy()
    table = pd.DataFrame({"material_id": names, "formula": formulas, "n_atoms": n_atoms})
    return CrystalDataset("sound", None, batch, table)


REFERENCES = as_dataset(CrystalBatch.concatenate([of_each_composition(ALL), GOOD]))
REWARDS = {
    "crmse": lambda: CRMSEReward(REFERENCES, pool=0),
    "energy": lambda: EnergyReward(LennardJonesToy(), group_size=1),
    "energy above references": lambda: EnergyReward(
        LennardJonesToy(), group_size=1, references=REFERENCES
    ),
    "not_triclinic": lambda: SymmetryReward("not_triclinic"),
    "not_centrosymmetric": lambda: SymmetryReward("not_centrosymmetric"),
    "function": lambda: FunctionReward(volume_per_atom, on_failure=0.0),
    "composite": lambda: CompositeReward(
        {"match": CRMSEReward(REFERENCES, pool=0), "symmetry": SymmetryReward("not_triclinic")},
        {"match": 1.0, "symmetry": 0.25},
    ),
}


@pytest.mark.parametrize("name", REWARDS)
def test_every_reward_judges_degenerate_crystals(name):
    with REWARDS[name]() as reward:
        values = reward(MIXED).values
        alone = reward(GOOD).values
    assert values.shape == (len(MIXED),)
    assert bool(values.isfinite().all())
    assert torch.equal(values[[0, -1]], alone)


@pytest.fixture(scope="module")
def tiny_mace(tmp_path_factory):
    elements = sorted(SPECIES)
    return write_mace(tmp_path_factory.mktemp("mace") / "tiny.model", elements)


@pytest.mark.parametrize(
    "name",
    ["toy", "chgnet", pytest.param("mace", marks=[pytest.mark.mace, SKIP_WITHOUT_MACE])],
)
def test_every_potential_computes_what_it_can(name, request):
    if name == "mace":
        potential = MACEPotential(path=request.getfixturevalue("tiny_mace"), trust=True)
    else:
        potential = CHGNetPotential() if name == "chgnet" else LennardJonesToy()
    batch = MIXED[OF_CHGNET] if name == "chgnet" else MIXED
    with potential:
        mixed, alone = potential(batch), potential(GOOD)
    np.testing.assert_allclose(mixed.energy_per_atom[[0, -1]], alone.energy_per_atom, atol=5e-6)
    valid = validity.check(batch).valid
    np.testing.assert_array_equal(mixed.valid, valid)
    np.testing.assert_array_equal(
        np.isfinite(mixed.energy_per_atom), valid & ~mixed.failed, "an energy without a reason"
    )
    assert sorted(mixed.reasons) == np.flatnonzero(mixed.failed).tolist()


def test_elements_beyond_the_potential_are_named():
    with pytest.raises(ValueError, match="does not know the elements Rn, Es, Fm"):
        CHGNetPotential()(MIXED)


@pytest.mark.parametrize("number", [0, -1, 101, 118, 10**6])
def test_unknown_elements_are_refused(number):
    with pytest.raises(ValueError, match="species must be atomic numbers from 1 to 100"):
        crystal([11, number])


def test_validity_and_diversity_of_degenerate_crystals():
    valid = dict(zip(DEGENERATE, validity.check(ALL).valid.tolist(), strict=True))
    assert not any(valid[name] for name in BROKEN), valid
    assert valid["one atom"] and valid["left-handed"]
    prints = diversity.fingerprints(MIXED)
    np.testing.assert_array_equal(prints[[0, -1]], diversity.fingerprints(GOOD))
    assert diversity.count_distinct(prints, len(MIXED))[0] <= len(MIXED)


def test_metrics_of_degenerate_crystals():
    references = of_each_composition(MIXED)
    with MatchPool(n_workers=0) as pool:
        metrics = evaluate(MIXED, references, pool)
    assert 0 <= metrics.metre <= 1 and 0 <= metrics.crmse <= 0.5
    energies = evaluate_energies(MIXED, references, LennardJonesToy())
    assert 0 < energies.invalid_rate < 1
    for table in (metrics.table, energies.table):
        assert len(table) == len(MIXED)
    alone = evaluate_energies(GOOD, of_each_composition(GOOD), LennardJonesToy())
    np.testing.assert_array_equal(
        energies.table["energy_per_atom"].iloc[[0, -1]], alone.table["energy_per_atom"]
    )


def test_metrics_of_broken_crystals_alone():
    broken = CrystalBatch.concatenate([DEGENERATE[name] for name in BROKEN])
    references = of_each_composition(broken)
    with MatchPool(n_workers=0) as pool:
        metrics = evaluate(broken, references, pool)
    assert metrics.metre == 0 and metrics.crmse == 0.5
    energies = evaluate_energies(broken, references, LennardJonesToy())
    assert energies.invalid_rate == 1 and math.isnan(energies.energy_above_reference)


@pytest.mark.parametrize("name", DEGENERATE)
def test_plots_of_degenerate_crystals(name):
    pytest.importorskip("plotly")
    batch = DEGENERATE[name]
    sound = of_each_composition(batch)
    group = CrystalBatch.concatenate([batch, sound])
    for figure in (
        plots.structure(batch, polyhedra=name != "200 atoms"),
        plots.structures([batch, sound], bonds=name != "200 atoms"),
        plots.trajectories({"a": [sound, batch]}),
        plots.group_trajectories([group, group], [1.0, -1.0]),
        plots.trajectory_and_curves(
            [sound, batch], {"pos": np.array([0.0, 1.0])}, "1 + s", reference=sound
        ),
        plots.minimum_distances({"a": [sound, batch]}),
        plots.pair_distribution({"a": group}),
    ):
        assert figure.to_json()


@pytest.mark.parametrize("suffix", [".extxyz", ".parquet", ""])
def test_what_is_written_of_degenerate_crystals_is_read_or_skipped(suffix, tmp_path):
    path = writers.write(tmp_path / f"all{suffix}", MIXED)
    with pytest.warns(UserWarning, match="records of .* were skipped"):
        dataset = load(path, cache=False, niggli=False, progress=False)
    assert len(dataset) + len(dataset.skipped) == len(MIXED)
    ids = dataset.table["material_id"].tolist()
    assert {"structure-00", f"structure-{len(MIXED) - 1}"} <= set(ids)
    assert len(dataset.skipped) >= 6
