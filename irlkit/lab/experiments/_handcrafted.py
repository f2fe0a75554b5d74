"""Seeking coefficients of the handcrafted annealing (Appendix H), and experiments that do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

import pandas as pd
from scipy.stats import qmc

from irlkit.data import CrystalDataset
from irlkit.evaluate import metrics
from irlkit.flows.schedules import Annealing, LinearAnnealing
from irlkit.lab.experiments.base import Experiment
from irlkit.lab.experiments.presets import Rung, Settings
from irlkit.utils.progress import progress_bar

SWEEP_RANGE = 15.0
"""Coefficients are sought between 0 and this (Appendix H)."""

SWEEP_SEED = 1_000_003
"""Seed of the base samples of sweeps: another one than those of evaluations."""

S = TypeVar("S", bound=Settings)


def sweep(
    measure: Callable[[CrystalDataset, int, LinearAnnealing], Any],
    data: CrystalDataset,
    rungs: Sequence[Rung],
    candidates: Sequence[tuple[float, float]] = (),
    progress: bool = True,
) -> pd.DataFrame:
    """Try coefficients of ``LinearAnnealing`` in rounds, each with the best of the one before.

    The coefficients are the first points of a Halton sequence, which covers the square evenly, is
    the same in every run and begins at (0, 0): no annealing. Best means lowest cRMSE.

    `measure` takes a part of the data, a number of steps and a schedule; the summary of what it
    returns has "crmse". The table has a row per trial: round, n_steps, pos, cell and the summary.
    """
    if not rungs:
        raise ValueError("rungs must hold at least one round, got none")
    points = qmc.Halton(2, scramble=False).random(rungs[0].n_trials) * SWEEP_RANGE
    trials = list(dict.fromkeys([*candidates, *((float(p), float(c)) for p, c in points)]))
    total = len(trials) + sum(rung.n_trials for rung in rungs[1:])
    name = f"sweep at {rungs[-1].n_steps} steps"
    rows: list[dict[str, Any]] = []
    with progress_bar(total=total, disable=not progress, unit="trial", desc=name) as bar:
        for number, rung in enumerate(rungs):
            if number:
                best = last_round(pd.DataFrame(rows))[: rung.n_trials]
                trials = list(best[["pos", "cell"]].itertuples(index=False, name=None))
            part = data.subset(rung.n_structures)
            for pos, cell in trials:
                measured = measure(part, rung.n_steps, LinearAnnealing(pos, cell))
                labels = {"round": number, "n_steps": rung.n_steps, "pos": pos, "cell": cell}
                rows.append({**labels, **measured.summary()})
                bar.update()
    return pd.DataFrame(rows)


def last_round(trials: pd.DataFrame) -> pd.DataFrame:
    """The trials of the last round, best first."""
    last = trials[trials["round"] == trials["round"].max()]
    return last.sort_values("crmse", kind="stable")


def best_of(trials: pd.DataFrame) -> LinearAnnealing:
    """The best annealing of a sweep."""
    best = last_round(trials).iloc[0]
    return LinearAnnealing(float(best["pos"]), float(best["cell"]))


class AnnealedExperiment(Experiment[S]):
    """An experiment with the best handcrafted annealing for a number of steps.

    Attributes:
        sweeps: number of steps -> trials of the sweep for it.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.sweeps: dict[int, pd.DataFrame] = {}

    def sweep_reference(self) -> pd.DataFrame:
        """Seek the best handcrafted annealing for many steps (Appendix H)."""
        return self._sweep(self.preset.reference_sweep)

    def _sweep(self, rungs: Sequence[Rung]) -> pd.DataFrame:
        n_steps = rungs[-1].n_steps

        def measure(data: CrystalDataset, k: int, annealing: Annealing) -> metrics.Metrics:
            return self.measure(data, k, annealing, SWEEP_SEED)

        with self._timed(f"sweep at {n_steps} steps"):
            self.sweeps[n_steps] = sweep(
                measure, self.validation, rungs, self.preset.candidates, self.progress
            )
        return self.sweeps[n_steps]

    def best_handcrafted(self, n_steps: int) -> LinearAnnealing:
        """Return the best of the sweep for so many steps.

        Raises:
            ValueError: that sweep was not run.
        """
        if n_steps not in self.sweeps:
            raise ValueError(
                f"there was no sweep for {n_steps} steps (there are {sorted(self.sweeps)}); call "
                "sweep_reference, or another method that sweeps for this number"
            )
        return best_of(self.sweeps[n_steps])

    def _results(self) -> dict[str, Any]:
        sweeps = [
            {
                "n_steps": n_steps,
                "split": "val",
                "range": [0.0, SWEEP_RANGE],
                "best": asdict(best_of(trials)),
                "trials": trials.to_dict("records"),
            }
            for n_steps, trials in self.sweeps.items()
        ]
        return {**super()._results(), "handcrafted_sweep": sweeps}
