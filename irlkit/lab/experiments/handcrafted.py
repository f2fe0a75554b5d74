"""Seeking coefficients of the handcrafted annealing (Appendix H)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
from scipy.stats import qmc

from irlkit.data import CrystalDataset
from irlkit.flows.schedules import LinearAnnealing
from irlkit.lab.experiments.presets import Rung
from irlkit.utils.progress import progress_bar

SWEEP_RANGE = 15.0
"""Coefficients are sought between 0 and this (Appendix H)."""


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

    Args:
        measure: metrics of a schedule on a part of the data with a number of steps, such as
            ``metrics.Metrics``; their summary has "crmse".
        data: split to sweep on; rounds use parts of it.
        rungs: the rounds.
        candidates: coefficients (pos, cell) to try besides.
        progress: show a bar.

    Returns:
        One row per trial: round, n_steps, pos, cell and metrics.

    Raises:
        ValueError: no round.
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
    """Return the trials of the last round, best first."""
    last = trials[trials["round"] == trials["round"].max()]
    return last.sort_values("crmse", kind="stable")


def best_of(trials: pd.DataFrame) -> LinearAnnealing:
    """Return the best annealing of a sweep."""
    best = last_round(trials).iloc[0]
    return LinearAnnealing(float(best["pos"]), float(best["cell"]))
