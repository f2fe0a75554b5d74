"""Experiments that judge structures by their energy as well."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from irlkit import potentials
from irlkit.crystals import CrystalBatch
from irlkit.data import CrystalDataset
from irlkit.evaluate import metrics
from irlkit.lab.experiments.base import Experiment
from irlkit.lab.experiments.presets import Settings
from irlkit.potentials import Energies, Potential

METRIC_NAMES = {
    "match_rate": "match rate",
    "rmse": "RMSE",
    "polymorph_match_rate": "polymorph match rate",
    "metre": "METRe",
    "crmse": "cRMSE",
    "energy_above_reference": "energy above reference, eV/atom",
    "invalid_rate": "invalid",
}
"""Metric -> what people call it, in the order of tables."""


@dataclass(frozen=True)
class MeasuredWithEnergies:
    """Metrics of structures and of their energies.

    Attributes:
        structures: how well references are reproduced.
        energies: energies relative to the references.
    """

    structures: metrics.Metrics
    energies: metrics.EnergyMetrics

    @property
    def table(self) -> pd.DataFrame:
        """One row per reference, with the columns of both."""
        more = self.energies.table.rename(columns={"failed": "without_energy"})
        known = self.structures.table
        return known.join(more[[column for column in more if column not in known]])

    def summary(self) -> dict[str, Any]:
        """All numbers by name."""
        energies = self.energies.summary()
        energies["n_without_energy"] = energies.pop("n_failed")
        return {**self.structures.summary(), **energies}


class EnergyExperiment(Experiment):
    """An experiment with a potential; all energies of it are of this one.

    Args:
        checkpoint: name of a shipped model or path of a checkpoint.
        dataset: name of a shipped data set or path of a data file.
        preset: size and settings.
        potential: a potential, or its name for ``potentials.get``.
        device: of the network and of a potential given by name; structures are matched on the CPU.
        out_dir: folder for results; made when needed.
        progress: show bars.

    Attributes:
        potential: computes all energies.

    Raises:
        FileNotFoundError: no such checkpoint, data file or weights of the potential.
        ValueError: see ``Experiment``; or an element that the potential does not know.
    """

    def __init__(
        self,
        checkpoint: str | Path,
        dataset: str | Path,
        preset: Settings,
        *,
        potential: Potential | str = "chgnet",
        device: str | torch.device = "cpu",
        out_dir: str | Path,
        progress: bool = True,
    ) -> None:
        super().__init__(
            checkpoint, dataset, preset, device=device, out_dir=out_dir, progress=progress
        )
        # A potential that is there already cannot be made again in another process.
        self._potential_name = None if isinstance(potential, Potential) else potential
        self.potential = (
            potential
            if isinstance(potential, Potential)
            else potentials.get(potential, device=self.device)
        )
        for split in (self.train, self.validation, self.test):
            self.potential.check(split.batch)
        self._reference_energies: dict[tuple, Energies] = {}

    def judge(self, generated: CrystalBatch, data: CrystalDataset) -> MeasuredWithEnergies:
        """Metrics and energies of one generated structure per structure of `data`."""
        generated = generated.to("cpu")
        return MeasuredWithEnergies(
            metrics.evaluate(generated, data, self.pool),
            metrics.evaluate_energies(
                generated, data, self.potential, self.reference_energies(data)
            ),
        )

    def reference_energies(self, data: CrystalDataset) -> Energies:
        """Energies of the references themselves, computed once."""
        key = (data.split, *data.table["material_id"])
        if key not in self._reference_energies:
            self._reference_energies[key] = self.potential(data.batch)
        return self._reference_energies[key]

    def _summary(self) -> dict[str, str]:
        return {"energies": f"of the potential {self.potential.name}"}

    def results(self) -> dict[str, Any]:
        """Which potential all energies are of."""
        return {"potential": self.potential.name}
