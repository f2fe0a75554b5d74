"""Seeking coefficients of annealings that need no training, and experiments that do.

The handcrafted one is that of Appendix H, s(t) = c t; the rule is ``EndpointAnnealing``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import product
from typing import Any, TypeVar

import pandas as pd
from scipy.stats import qmc

from irlkit.data import CrystalDataset
from irlkit.evaluate import metrics
from irlkit.flows.schedules import Annealing, EndpointAnnealing, LinearAnnealing
from irlkit.lab.experiments.base import Experiment
from irlkit.lab.experiments.presets import Rung, Settings
from irlkit.utils.progress import progress_bar

SWEEP_RANGE = 15.0
"""Coefficients are sought between 0 and this (Appendix H)."""

RULE_TRIALS = tuple(product((2.0, 3.0, 4.0, 6.0, 8.0, 10.0), (0.9, 1.0, 1.1, 1.2, 1.3)))
"""Largest factors (pos, cell) that are tried for the rule."""

SWEEP_SEED = 1_000_003
"""Seed of the base samples of sweeps: another one than those of evaluations."""

S = TypeVar("S", bound=Settings)


def sweep(
    measure: Callable[[CrystalDataset, int, Any], Any],
    data: CrystalDataset,
    rungs: Sequence[Rung],
    candidates: Sequence[tuple[float, float]] = (),
    progress: bool = True,
    kind: type[LinearAnnealing | EndpointAnnealing] = LinearAnnealing,
) -> pd.DataFrame:
    """Try coefficients of an annealing in rounds, each with the best of the one before.

    Those of ``LinearAnnealing`` are the first points of a Halton sequence, which covers the square
    evenly, is the same in every run and begins at (0, 0): no annealing. Those of the rule are the
    candidates alone. Best means lowest cRMSE.

    `measure` takes a part of the data, a number of steps and a schedule; the summary of what it
    returns has "crmse". The table has a row per trial: round, n_steps, pos, cell and the summary.
    """
    if not rungs:
        raise ValueError("rungs must hold at least one round, got none")
    trials = list(candidates)
    if kind is LinearAnnealing:
        points = qmc.Halton(2, scramble=False).random(rungs[0].n_trials) * SWEEP_RANGE
        trials = list(dict.fromkeys([*trials, *((float(p), float(c)) for p, c in points)]))
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
                measured = measure(part, rung.n_steps, kind(pos, cell))
                labels = {"round": number, "n_steps": rung.n_steps, "pos": pos, "cell": cell}
                rows.append({**labels, **measured.summary()})
                bar.update()
    return pd.DataFrame(rows)


def last_round(trials: pd.DataFrame) -> pd.DataFrame:
    """The trials of the last round, best first."""
    last = trials[trials["round"] == trials["round"].max()]
    return last.sort_values("crmse", kind="stable")


def best_of(
    trials: pd.DataFrame, kind: type[LinearAnnealing | EndpointAnnealing] = LinearAnnealing
) -> Any:
    """The best annealing of a sweep."""
    best = last_round(trials).iloc[0]
    return kind(float(best["pos"]), float(best["cell"]))


class AnnealedExperiment(Experiment[S]):
    """An experiment with the best annealings for a number of steps that need no training.

    Attributes:
        sweeps: number of steps -> trials of the handcrafted sweep for it.
        rule_sweeps: the same of the rule.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.sweeps: dict[int, pd.DataFrame] = {}
        self.rule_sweeps: dict[int, pd.DataFrame] = {}

    def sweep_reference(self) -> pd.DataFrame:
        """Seek the best handcrafted annealing for many steps (Appendix H)."""
        return self._sweep(self.preset.reference_sweep)

    def sweep_rule(self, *n_steps: int) -> pd.DataFrame:
        """Seek the constants of 1 + s = min(m, (1 - t) / dt), m per field, for numbers of steps.

        Args:
            *n_steps: a sweep each; none: the few of the preset.
        """
        for k in n_steps or (self.preset.n_steps,):
            rungs = (Rung(len(RULE_TRIALS), self.preset.rule_size, k),)
            self._sweep(rungs, RULE_TRIALS, EndpointAnnealing)
        return self.rule_sweeps[k]

    def _sweep(
        self,
        rungs: Sequence[Rung],
        candidates: Sequence[tuple[float, float]] | None = None,
        kind: type[LinearAnnealing | EndpointAnnealing] = LinearAnnealing,
    ) -> pd.DataFrame:
        n_steps = rungs[-1].n_steps

        def measure(data: CrystalDataset, k: int, annealing: Annealing) -> metrics.Metrics:
            return self.measure(data, k, annealing, SWEEP_SEED)

        candidates = self.preset.candidates if candidates is None else candidates
        linear = kind is LinearAnnealing
        with self._timed(f"sweep {'' if linear else 'of the rule '}at {n_steps} steps"):
            trials = sweep(measure, self.validation, rungs, candidates, self.progress, kind)
        (self.sweeps if linear else self.rule_sweeps)[n_steps] = trials
        return trials

    def best_handcrafted(self, n_steps: int) -> LinearAnnealing:
        """Return the best of the sweep for so many steps.

        Raises:
            ValueError: that sweep was not run.
        """
        return self._best_of(self.sweeps, n_steps, "sweep_reference")

    def best_rule(self, n_steps: int) -> EndpointAnnealing:
        """Return the rule with the constants that are best for so many steps.

        Raises:
            ValueError: that sweep was not run.
        """
        return self._best_of(self.rule_sweeps, n_steps, "sweep_rule")

    def _best_of(self, sweeps: dict[int, pd.DataFrame], n_steps: int, method: str) -> Any:
        if n_steps not in sweeps:
            raise ValueError(
                f"there was no sweep for {n_steps} steps (there are {sorted(sweeps)}); call "
                f"{method}, or another method that sweeps for this number"
            )
        linear = sweeps is self.sweeps
        return best_of(sweeps[n_steps], LinearAnnealing if linear else EndpointAnnealing)

    def _results(self) -> dict[str, Any]:
        def described(best: Any, trials: pd.DataFrame, n_steps: int) -> dict[str, Any]:
            found = {"n_steps": n_steps, "split": "val", "best": asdict(best)}
            return {**found, "trials": trials.to_dict("records")}

        handcrafted = [
            {"range": [0.0, SWEEP_RANGE], **described(self.best_handcrafted(k), trials, k)}
            for k, trials in self.sweeps.items()
        ]
        rules = [described(self.best_rule(k), t, k) for k, t in self.rule_sweeps.items()]
        return {**super()._results(), "handcrafted_sweep": handcrafted, "rule_sweep": rules}
