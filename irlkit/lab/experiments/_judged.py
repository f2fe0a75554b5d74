"""What energies that were not rewarded say of reinforcement with energies."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from irlkit.flows.dynamics import Dynamics
from irlkit.lab.experiments._energies import EnergyExperiment
from irlkit.lab.experiments._gain import AFTER, BEFORE, Gains, energies_of
from irlkit.lab.experiments.claims import Claim
from irlkit.lab.experiments.presets import EnergyPreset
from irlkit.rl.policies import Policy
from irlkit.utils.progress import progress_bar

_COLUMNS = {
    "validation_info_energy_energy_above_reference": "energy_above_lowest",
    "validation_info_judge_energy_above_reference": "judge_above_lowest",
    "validation_info_relaxed_energy_above_reference": "relaxed_above_lowest",
}
"""Column of a trainer's history -> energy."""


class JudgedExperiment(EnergyExperiment[EnergyPreset]):
    """Trains policies on energies, and asks energies that were not rewarded."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._gain = pd.DataFrame()

    def policy(self, name: str) -> Policy:
        """Make the policy that the trainings of this name begin with."""
        raise NotImplementedError

    def _deployed(self, name: str, seed: int) -> Dynamics:
        """What generates with a trained policy."""
        raise NotImplementedError

    def gain_curves(self) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
        """Return energies of the validations: rewarded, the judge's, and after relaxation.

        Returns:
            A row per policy, seed and iteration of a validation; none beside them; and the columns
            that are there, eV/atom above the composition's lowest polymorph: energy_above_lowest,
            judge_above_lowest, where a structure counts at most 10 either way, and
            relaxed_above_lowest, of the first structures alone.
        """
        table = self.history.rename(columns=_COLUMNS)
        there = [column for column in _COLUMNS.values() if column in table]
        table = table[table["policy"].isin(self.preset.policies)]
        table = table[table["validation_reward"].notna()].reset_index(drop=True)
        return table, pd.DataFrame(columns=["policy", *there]), there

    def measure_gain(self) -> pd.DataFrame:
        """Compute energies that were not rewarded, before and after training, on the test split.

        Of the base samples of the first seed: the rewarded energy, that of the judge if there is
        one, and both after relaxation with the potential that was rewarded.

        Returns:
            Columns policy, when ("before", "after"), training_seed, formula and energies per atom
            (eV, nan where there is none): rewarded, judge, relaxed and "judge, relaxed".

        Raises:
            ValueError: a policy was not trained yet.
        """
        seed, data = self.preset.seeds[0], self.test.subset(self.preset.n_relaxed[1])
        starts = {name: self.policy(name).deploy() for name in self.preset.policies}
        jobs = [(name, BEFORE, np.nan, start) for name, start in starts.items()]
        for name in self.preset.policies:
            jobs += [(name, AFTER, t, self._deployed(name, t)) for t in self.preset._seeds_of(name)]
        tables = []
        total, what = len(jobs), "judge and relaxation"
        bar = progress_bar(total=total, disable=not self.progress, desc=what)
        with self._timed(what), bar:
            for name, when, training_seed, dynamics in jobs:
                made = self.generate(data.batch, self.preset.n_steps, dynamics, seed).to("cpu")
                found = energies_of(made, self.potential, self.judge, self.preset.relax_steps)
                labels = {"policy": name, "when": when, "training_seed": training_seed}
                formulas = data.batch.reduced_formulas()
                tables.append(pd.DataFrame({**labels, "formula": formulas, **found}))
                bar.update()
        self._gain = pd.concat(tables, ignore_index=True)
        return self._gain

    def _gains(self) -> Gains:
        if not len(self._gain):
            raise ValueError("energies that were not rewarded are not there; call measure_gain")
        return Gains(self._gain)

    def gains(self, name: str) -> dict[str, np.ndarray]:
        """Return what each structure has gained (eV/atom) with a policy, all training seeds.

        By kind of energy, shape (training seeds * structures,).

        Args:
            name: of a policy of the main comparison.

        Raises:
            ValueError: ``measure_gain`` was not called before.
        """
        return {kind: gain.ravel() for kind, gain in self._gains().gains(name).items()}

    def _gain_in_words(self) -> pd.DataFrame:
        return self._gains().in_words(self.preset.policies)

    def _gain_claims(self) -> list[Claim]:
        """None, if it was not measured."""
        few = self.preset.n_steps
        names = {name: f"{name}, {few} steps" for name in self.preset.policies}
        return self._gains().claims(names) if len(self._gain) else []
