"""What a model makes of numbers of atoms: validity, uniqueness, novelty of its samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
import torch

from irlkit.crystals import CrystalBatch
from irlkit.data import CrystalDataset
from irlkit.evaluate.denovo import denovo
from irlkit.evaluate.matching import MatchPool
from irlkit.evaluate.novelty import TOLERANCES, KnownStructures
from irlkit.flows.dynamics import Dynamics
from irlkit.networks.flow_model import FlowModel


def denovo_evaluation(
    training: CrystalDataset, n_structures: int = 256, n_steps: int = 100, seed: int = 0
) -> Callable[[FlowModel], dict[str, float]]:
    """Return an `evaluate` for `pretrain`: shares of samples with the training set's sizes.

    Its numbers are those of `irlkit.evaluate.denovo`: ``valid``; of the valid, ``unique``,
    ``novel`` and ``new_formula``; ``valid_composition`` of all, where the package smact is
    installed.

    Args:
        training: what is not novel.
        n_structures: how many to generate.
        n_steps: integration steps.
        seed: of the samples, the same at every call.
    """

    def samples(model: FlowModel) -> CrystalBatch:
        generator = torch.Generator().manual_seed(seed)
        n_atoms = model.base.sample_n_atoms(n_structures, generator).to(model.device)
        return Dynamics(model).generate(n_atoms, n_steps, generator=generator, max_batch=128)

    return shares_of_samples(training, samples)


def shares_of_samples(
    training: CrystalDataset, samples: Callable[[Any], CrystalBatch]
) -> Callable[[Any], dict[str, float]]:
    """Return an `evaluate` of what ``samples`` makes with a model; see `denovo_evaluation`."""
    known = KnownStructures(training)

    def compute(model: Any) -> dict[str, float]:
        made = samples(model).to("cpu")
        with MatchPool(n_workers=0, **TOLERANCES) as pool:
            table = denovo(made, known, pool=pool).table
        shares = table[["valid", "valid_composition"]].mean().dropna()
        of_the_valid = table.loc[table["valid"], ["unique", "novel", "new_formula"]].mean()
        return {
            f"validation_{name}": float(x) for name, x in pd.concat([shares, of_the_valid]).items()
        }

    return compute
