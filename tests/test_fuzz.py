"""Broken files and broken crystals: see tests/README.md for the full set."""

import os

import numpy as np
import pandas as pd
import pytest
import torch

from irlkit import diversity, plots, validity
from irlkit.crystals import CrystalBatch
from irlkit.datasets import CrystalDataset
from irlkit.matching import MatchPool
from irlkit.metrics import evaluate, evaluate_energies
from irlkit.rewards import CompositeReward, CRMSEReward, EnergyReward, SymmetryReward
from tests import fuzz
from tests.toy_potentials import LennardJonesToy

N = int(os.environ.get("IRLKIT_FUZZ", "260"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a system with process limits")
def test_mutated_files_are_read_or_refused():
    # Seeds that the full set does not begin with, so that both together see more.
    counts, findings, longest = fuzz.run(N, first=0 if N >= 10_000 else 1_000_000)
    assert not findings, findings
    assert longest < fuzz.SECONDS
    results = sum(counts.values(), fuzz.collections.Counter())
    assert results.total() == N
    # Mutations that only ever broke files, or never did, would show nothing.
    assert results["read"] > N / 20 and results["refused"] > N / 20


# --- degenerate crystals ---


def crystal(species, pos=None, cell=None):
    n = len(species)
    draws = torch.Generator().manual_seed(n)
    pos = torch.rand(n, 3, generator=draws) if pos is None else torch.as_tensor(pos)
    cell = 4.0 * torch.eye(3) if cell is None else torch.as_tensor(cell)
    return CrystalBatch(torch.tensor(species), pos.float(), cell.float()[None], torch.tensor([n]))


FLAT = torch.tensor([[4.0, 0, 0], [0, 4, 0], [4, 4, 0]])
DEGENERATE = {
    "zero volume": crystal([11, 17], cell=FLAT),
    "no cell": crystal([11, 17], cell=torch.zeros(3, 3)),
    "left-handed": crystal([11, 17], cell=-4.0 * torch.eye(3)),
    "huge cell": crystal([11, 17], cell=1e6 * torch.eye(3)),
    "tiny cell": crystal([11, 17], cell=1e-3 * torch.eye(3)),
    "needle": crystal([11, 17], cell=torch.diag(torch.tensor([1e4, 1e-2, 1.0]))),
    "sheared": crystal([11, 17], cell=torch.tensor([[4.0, 0, 0], [4e4, 4, 0], [0, 4e4, 4]])),
    "coincident atoms": crystal([11, 17], pos=torch.zeros(2, 3)),
    "one atom": crystal([26]),
    "200 atoms": crystal([22, 8] * 100, cell=14.0 * torch.eye(3)),
    "noble gases": crystal([2, 10, 18, 36, 54, 86]),
    "last elements": crystal([99, 100]),
    "nan position": crystal([11, 17], pos=[[0.0, 0, 0], [float("nan"), 0, 0]]),
    "infinite cell": crystal([11, 17], cell=torch.full((3, 3), float("inf"))),
}
ALL = CrystalBatch.concatenate(list(DEGENERATE.values()))


def reference_set():
    """One sound structure for each composition."""
    sound = []
    for batch in DEGENERATE.values():
        n = len(batch.species)
        edge = 2.5 * max(n, 2) ** (1 / 3)
        grid = torch.cartesian_prod(*[torch.arange(6) / 6] * 3)[:n]
        sound.append(batch.replace(pos=grid, cell=edge * torch.eye(3)[None]))
    batch = CrystalBatch.concatenate(sound)
    table = pd.DataFrame(
        {
            "material_id": list(DEGENERATE),
            "formula": batch.reduced_formulas(),
            "n_atoms": batch.n_atoms.numpy(),
        }
    )
    return CrystalDataset("sound", None, batch, table)


REFERENCES = reference_set()
REWARDS = {
    "crmse": lambda: CRMSEReward(REFERENCES, pool=0),
    "energy": lambda: EnergyReward(LennardJonesToy(), references=REFERENCES),
    "not_triclinic": lambda: SymmetryReward("not_triclinic"),
    "not_centrosymmetric": lambda: SymmetryReward("not_centrosymmetric"),
    "composite": lambda: CompositeReward(
        {"match": CRMSEReward(REFERENCES, pool=0), "symmetry": SymmetryReward("not_triclinic")},
        {"match": 1.0, "symmetry": 0.25},
    ),
}


@pytest.mark.parametrize("name", REWARDS)
def test_every_reward_judges_degenerate_crystals(name):
    with REWARDS[name]() as reward:
        values = reward(ALL).values
    assert values.shape == (len(ALL),)
    assert bool(values.isfinite().all())


def test_validity_and_diversity_of_degenerate_crystals():
    valid = dict(zip(DEGENERATE, validity.check(ALL).valid.tolist(), strict=True))
    broken = {"zero volume", "no cell", "tiny cell", "needle", "coincident atoms"}
    broken |= {"nan position", "infinite cell"}
    assert not any(valid[name] for name in broken), valid
    assert valid["one atom"]
    prints = diversity.fingerprints(ALL)
    assert len(prints) == len(ALL)
    assert (diversity.count_distinct(prints, len(ALL)) <= len(ALL)).all()


def test_metrics_of_degenerate_crystals():
    with MatchPool(n_workers=0) as pool:
        metrics = evaluate(ALL, REFERENCES, pool)
    assert 0 <= metrics.metre <= 1 and 0 <= metrics.crmse <= 0.5
    energies = evaluate_energies(ALL, REFERENCES, LennardJonesToy())
    assert all(np.ndim(value) == 0 for value in energies.summary().values())


@pytest.mark.parametrize("name", [*list(DEGENERATE)[:5], "needle"])
def test_plots_of_degenerate_crystals(name):
    batch = DEGENERATE[name]
    for figure in (
        plots.structure(batch),
        plots.structures([batch, batch]),
        plots.trajectories({"a": [batch, batch]}),
        plots.minimum_distances({"a": [batch]}),
        plots.pair_distribution({"a": batch}),
    ):
        assert figure.to_json()
