"""Experiments that judge structures by their energy as well."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from irlkit import potentials
from irlkit.crystals import CrystalBatch
from irlkit.data import CrystalDataset
from irlkit.evaluate import metrics
from irlkit.evaluate.metrics import MatchPool
from irlkit.lab.experiments._handcrafted import AnnealedExperiment, S
from irlkit.potentials import Energies, Potential
from irlkit.rewards import CompositeReward, CRMSEReward, EnergyReward, Reward


class EnergyExperiment(AnnealedExperiment[S]):
    """An experiment with a potential (itself, or its name), which computes all energies."""

    metric_names: Mapping[str, str] = {
        "match_rate": "match rate",
        "rmse": "RMSE",
        "polymorph_match_rate": "polymorph match rate",
        "metre": "METRe",
        "crmse": "cRMSE",
        "energy_above_reference": "energy above reference, eV/atom",
        "median_energy_above_reference": "its median",
        "trimmed_energy_above_reference": "its trimmed mean",
        "invalid_rate": "invalid",
    }

    def __init__(
        self, *arguments: Any, potential: Potential | str = "chgnet", **options: Any
    ) -> None:
        super().__init__(*arguments, **options)
        # A potential that is there already cannot be made again in another process.
        self._potential_name = potential if isinstance(potential, str) else None
        named = {} if self._potential_name is None else {"device": self.device}
        self.potential: Potential = potentials.get(potential, **named)
        for split in (self.train, self.validation, self.test):
            self.potential.check(split.batch)
        self._reference_energies: dict[tuple, Energies] = {}

    def _judge(
        self, generated: CrystalBatch, data: CrystalDataset
    ) -> tuple[dict[str, Any], pd.DataFrame]:
        row, table = super()._judge(generated, data)
        found = metrics.evaluate_energies(
            generated, data, self.potential, self._energies_of_references(data)
        )
        energies = found.summary()
        energies["n_without_energy"] = energies.pop("n_failed")
        more = found.table.rename(columns={"failed": "without_energy"})
        table = table.join(more[[column for column in more if column not in table]])
        return {**row, **energies}, table

    def _energies_of_references(self, data: CrystalDataset) -> Energies:
        """Energies of the references themselves, computed once."""
        key = (data.split, *data.table["material_id"])
        if key not in self._reference_energies:
            self._reference_energies[key] = self.potential(data.batch)
        return self._reference_energies[key]

    def _summary(self) -> dict[str, str]:
        return {"energies": f"of the potential {self.potential.name}"}

    def _parameters(self) -> dict[str, Any]:
        return {**super()._parameters(), "potential": self.potential.name}

    def _results(self) -> dict[str, Any]:
        return {**super()._results(), "potential": self.potential.name}


def energy_rewards(
    group_size: int | None,
    validation: CrystalDataset,
    potential: Potential | str,
    pool: MatchPool | None = None,
) -> tuple[Reward, Reward]:
    """The rewards of rollouts and of the validation; without a pool, matched in this process.

    Only the energy counts; matches are there to be looked at. Validation structures are judged one
    by one: nothing is clipped.
    """
    potential = potentials.get(potential)
    pool = MatchPool(0) if pool is None else pool
    validation_reward = CompositeReward(
        {
            "energy": EnergyReward(potential, clip=math.inf, references=validation),
            "match": CRMSEReward(validation, pool),
        },
        {"energy": 1.0, "match": 0.0},
    )
    return EnergyReward(potential, group_size), validation_reward
