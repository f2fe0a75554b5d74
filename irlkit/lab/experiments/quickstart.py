"""The experiment of notebook 00: structures for one formula, scored by energy and improved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from irlkit import data as datasets
from irlkit.crystals import CrystalBatch, compositions
from irlkit.flows.schedules import ConstantNoise, LearnedAnnealing
from irlkit.lab.experiments.claims import Claim
from irlkit.lab.experiments.presets import choose
from irlkit.networks.flow_model import FlowModel
from irlkit.rewards import Reward
from irlkit.rl.config import TrainerConfig
from irlkit.rl.policies import AnnealingPolicy
from irlkit.rl.trainer import GRPOTrainer

NEAR = 0.05
"""Structures that lie less above the lowest energy, in eV/atom, count as near it."""


@dataclass(frozen=True)
class Size:
    """How much notebook 00 does.

    Attributes:
        n_structures: generated before and after, and in each iteration of GRPO.
        iterations: of GRPO.
    """

    n_structures: int
    iterations: int


SIZES = {"quick": Size(8, 2), "laptop": Size(24, 15), "paper": Size(128, 60)}


def resolve(preset: str, **given: int | None) -> Size:
    """The size of a preset, with what was given instead where it is not None.

    Raises:
        ValueError: no such preset, or a number that is too small.
    """
    size = choose(SIZES, preset, given)
    values = vars(size)
    if values["n_structures"] < 2 or values["iterations"] < 1:
        raise ValueError(f"at least 2 structures and 1 iteration are needed, got {values}")
    return size


class WrongFormula(ValueError):
    """A formula that no structure can be generated for; a notebook shows the words alone."""

    def _render_traceback_(self) -> list[str]:
        """What IPython prints: where in the package it was found helps nobody here."""
        return [f"\x1b[0;31m{self}\x1b[0m"]


def composition_of(formula: str, n_formula_units: int = 1) -> CrystalBatch:
    """As ``compositions.from_formula``, for people who type the formula in a notebook.

    Raises:
        WrongFormula: in words, why no structure can be generated for it.
    """
    try:
        return compositions.from_formula(formula, n_formula_units)
    except ValueError as error:
        raise WrongFormula(str(error)) from None


def known_structures(composition: CrystalBatch, dataset: str = "prototypes") -> CrystalBatch:
    """Structures of a data set that have this composition; none, if it has none.

    Args:
        composition: one structure.
        dataset: name or path; all its splits are searched.
    """
    formula = composition.reduced_formulas()[0]
    parts = []
    for split in ("train", "val", "test"):
        batch = datasets.load(dataset, split=split).batch
        same = np.flatnonzero(np.array(batch.reduced_formulas()) == formula)
        parts.append(batch[same])
    return CrystalBatch.concatenate(parts)


def energy_trainer(
    model: FlowModel,
    composition: CrystalBatch,
    reward: Reward,
    size: Size,
    n_steps: int,
    seed: int = 0,
) -> GRPOTrainer:
    """A trainer of an annealing for one composition; ``run`` it for as long as you like.

    Args:
        model: frozen.
        composition: one structure.
        reward: of the structures.
        size: members of the group.
        n_steps: integration steps.
        seed: of everything random.
    """
    noise = {field: ConstantNoise(0.15) for field in ("pos", "cell")}
    generator = torch.Generator().manual_seed(seed)
    annealing = LearnedAnnealing(positive=True, generator=generator)
    config = TrainerConfig(
        n_groups=1,
        group_size=size.n_structures,
        n_steps=n_steps,
        n_ppo_epochs=8,
        learning_rate=1e-2,
        seed=seed,
    )
    return GRPOTrainer(AnnealingPolicy(model, annealing, noise), reward, composition, config)


def energy_table(energies: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """A row per set of structures: how many have an energy, the lowest, the mean, how many near it.

    Args:
        energies: name -> eV/atom, nan where there is none, shape (n,). The lowest of all sets is
            what "near" is measured from.
    """
    together = np.concatenate([np.asarray(values, dtype=float) for values in energies.values()])
    lowest = np.nanmin(together) if np.isfinite(together).any() else np.nan
    rows: dict[str, dict[str, Any]] = {}
    for name, values in energies.items():
        finite = np.asarray(values, dtype=float)[np.isfinite(values)]
        rows[name] = {
            "structures": len(values),
            "with an energy": len(finite),
            "lowest, eV/atom": finite.min() if len(finite) else np.nan,
            "mean, eV/atom": finite.mean() if len(finite) else np.nan,
            "near the lowest": int((finite < lowest + NEAR).sum()),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def structure_table(energies: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """A row per structure, one set after the other: set, number, energy_per_atom (eV/atom).

    Args:
        energies: as of ``energy_table``.
    """
    parts = [
        pd.DataFrame({"set": name, "number": np.arange(len(values)), "energy_per_atom": values})
        for name, values in energies.items()
    ]
    return pd.concat(parts, ignore_index=True)


def energy_claims(before: np.ndarray, after: np.ndarray) -> list[Claim]:
    """What the improvement should have done; one formula and one seed, so these are aims."""
    table = energy_table({"before": before, "after": after})
    mean = table["mean, eV/atom"]
    near = table["near the lowest"].to_dict()
    gained = int(near["after"]) - int(near["before"])
    valid = float(np.isfinite(before).mean())
    return [
        Claim.check("share of generated structures that have an energy", valid, ">= 0.5"),
        Claim.check(
            "mean energy per atom, after minus before, eV",
            float(mean["after"] - mean["before"]),
            "< 0",
            required=False,
        ),
        Claim.check(
            f"more structures within {NEAR} eV/atom of the lowest", gained, ">= 0", required=False
        ),
    ]
