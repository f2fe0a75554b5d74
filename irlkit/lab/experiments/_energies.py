"""Experiments that judge structures by their energy as well."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from irlkit import potentials
from irlkit.crystals import CrystalBatch
from irlkit.data import CrystalDataset, Skipped
from irlkit.data._text import shorten
from irlkit.evaluate import metrics
from irlkit.evaluate.metrics import MatchPool
from irlkit.lab.experiments._gain import WatchedEnergy
from irlkit.lab.experiments._handcrafted import AnnealedExperiment, S
from irlkit.potentials import Energies, Potential
from irlkit.rewards import CompositeReward, CRMSEReward, EnergyReward, Reward


class EnergyExperiment(AnnealedExperiment[S]):
    """An experiment with a potential (itself, or its name), which computes all energies.

    Beside it there may be a judge, whose energies are never rewarded; see ``find_judge``.
    """

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
        self,
        *arguments: Any,
        potential: Potential | str = "chgnet",
        judge: Potential | str = "none",
        **options: Any,
    ) -> None:
        super().__init__(*arguments, **options)
        named = {"device": self.device} if isinstance(potential, str) else {}
        self.potential: Potential = potentials.get(potential, **named)
        self.judge = find_judge(judge)
        self._potentials = [self.potential] + ([] if self.judge is None else [self.judge])
        # A potential that is there already cannot be made again in another process.
        self._potential_name = potential if isinstance(potential, str) else None
        self._judge_name = judge if isinstance(judge, str) else None
        self._reference_energies: dict[tuple, Energies] = {}
        whole = (self.train, self.validation, self.test)
        self.train, self.validation, self.test = map(self._of_known_elements, whole)
        self.test = self._with_energies(self.test)
        self._trainings.compositions = self.train

    def _of_known_elements(self, data: CrystalDataset) -> CrystalDataset:
        """The structures that the potentials can compute; those of other elements are named."""
        reasons = {
            int(row): f"the potential {potential.name} does not know its elements"
            for potential in self._potentials
            for row in np.flatnonzero(~potential.knows(data.batch))
        }
        return _leave_out(data, reasons)

    def _with_energies(self, data: CrystalDataset) -> CrystalDataset:
        """The structures that have an energy, so that others can be compared; the rest is named."""
        reasons: dict[int, str] = {}
        for potential in self._potentials:
            found = self._energies_of_references(data, potential)
            for row in np.flatnonzero(~np.isfinite(found.energy_per_atom)).tolist():
                reasons.setdefault(row, found.reasons.get(row, "it is not valid"))
        return _leave_out(data, reasons)

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

    def _energies_of_references(
        self, data: CrystalDataset, potential: Potential | None = None
    ) -> Energies:
        """Energies of the references themselves, by that of the experiment, computed once."""
        potential = self.potential if potential is None else potential
        key = (potential.name, data.split, *data.table["material_id"])
        if key not in self._reference_energies:
            self._reference_energies[key] = potential(data.batch)
        return self._reference_energies[key]

    def _summary(self) -> dict[str, str]:
        rows = {"energies": f"of the potential {self.potential.name}"}
        return rows if self.judge is None else {**rows, "judge": self.judge.name}

    def _parameters(self) -> dict[str, Any]:
        judge = None if self.judge is None else self.judge.name
        return {**super()._parameters(), "potential": self.potential.name, "judge": judge}

    def _results(self) -> dict[str, Any]:
        return {**super()._results(), "potential": self.potential.name}


def _leave_out(data: CrystalDataset, reasons: Mapping[int, str]) -> CrystalDataset:
    """A data set without some structures (number -> why), which a warning names."""
    if not reasons:
        return data
    ids = data.table["material_id"].astype(str)
    skipped = [Skipped(ids[row], reason) for row, reason in reasons.items()]
    text = f"{len(skipped)} of {len(data)} structures of the split {data.split!r} are left out: "
    text += shorten([f"{entry.record} ({entry.reason})" for entry in skipped], separator="; ")
    if len(skipped) == len(data):
        raise ValueError(f"dataset: {text}; none remains")
    warnings.warn(text, stacklevel=4)
    kept = data.select(np.setdiff1d(np.arange(len(data)), list(reasons)))
    return replace(kept, skipped=[*data.skipped, *skipped])


def energy_rewards(
    group_size: int | None,
    validation: CrystalDataset,
    potential: Potential | str,
    judge: Potential | str = "none",
    pool: MatchPool | None = None,
    *,
    relaxed: tuple[int, int] | None = None,
) -> tuple[Reward, Reward]:
    """The rewards of rollouts and of the validation; without a pool, matched in this process.

    Only the energy counts; the rest is there to be looked at: matches, the energies of a judge, and
    those after relaxation (of so many structures, with so many steps). Validation structures are
    judged one by one: nothing is clipped.
    """
    potential = potentials.get(potential)
    pool = MatchPool(0) if pool is None else pool
    energy = EnergyReward(potential, clip=math.inf, references=validation)
    parts: dict[str, Reward] = {"energy": energy, "match": CRMSEReward(validation, pool)}
    found = find_judge(judge)
    if found is not None:
        of_judge = EnergyReward(found, clip=math.inf, references=validation)
        parts["judge"] = WatchedEnergy(of_judge)
    if relaxed is not None:
        parts["relaxed"] = WatchedEnergy(energy, *relaxed)
    weights = {name: float(name == "energy") for name in parts}
    return EnergyReward(potential, group_size), CompositeReward(parts, weights)


def find_judge(judge: Potential | str) -> Potential | None:
    """A potential that is not rewarded: itself, or by name; None for "none".

    "auto" is SevenNet-0 where the extra that it needs is installed, and else None.
    """
    if judge == "none":
        return None
    try:
        return potentials.get("7net-0" if judge == "auto" else judge)
    except ImportError:
        if judge == "auto":
            return None
        raise
