"""Seeking coefficients of the handcrafted annealing (Appendix H)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import qmc
from tqdm.auto import tqdm

from irlkit.datasets import CrystalDataset
from irlkit.experiments.presets import Rung
from irlkit.metrics import Metrics
from irlkit.schedules import LinearAnnealing

SWEEP_RANGE = 15.0
"""Coefficients are sought between 0 and this (Appendix H)."""


def sweep(
    measure: Callable[[CrystalDataset, int, LinearAnnealing], Metrics],
    data: CrystalDataset,
    rungs: Sequence[Rung],
    candidates: Sequence[tuple[float, float]] = (),
    progress: bool = True,
) -> pd.DataFrame:
    """Try coefficients of ``LinearAnnealing`` in rounds, each with the best of the one before.

    The coefficients are the first points of a Halton sequence, which covers the square evenly, is
    the same in every run and begins at (0, 0): no annealing. Best means lowest cRMSE.

    Args:
        measure: metrics of a schedule on a part of the data with a number of steps.
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
    n_later = sum(rung.n_trials for rung in rungs[1:])
    rows: list[dict[str, Any]] = []
    with tqdm(
        total=len(trials) + n_later,
        disable=not progress,
        unit="trial",
        desc=f"sweep at {rungs[-1].n_steps} steps",
    ) as bar:
        for number, rung in enumerate(rungs):
            if number:
                best = last_round(pd.DataFrame(rows))[: rung.n_trials]
                trials = list(best[["pos", "cell"]].itertuples(index=False, name=None))
            part = subset(data, rung.n_structures)
            for pos, cell in trials:
                measured = measure(part, rung.n_steps, LinearAnnealing(pos, cell))
                labels = {"round": number, "n_steps": rung.n_steps, "pos": pos, "cell": cell}
                rows.append({**labels, **measured.summary()})
                bar.update()
    return pd.DataFrame(rows)


def last_round(trials: pd.DataFrame) -> pd.DataFrame:
    """Trials of the last round, best first."""
    last = trials[trials["round"] == trials["round"].max()]
    return last.sort_values("crmse", kind="stable")


def best_of(trials: pd.DataFrame) -> LinearAnnealing:
    """The best annealing of a sweep."""
    best = last_round(trials).iloc[0]
    return LinearAnnealing(float(best["pos"]), float(best["cell"]))


def subset(dataset: CrystalDataset, size: int | None, seed: int = 0) -> CrystalDataset:
    """About so many structures of a data set: whole compositions, all polymorphs of each.

    Smaller subsets are part of larger ones.

    Args:
        dataset: whole set or split.
        size: number of structures, positive; the last composition may exceed it. None: all.
        seed: of the order of compositions.

    Raises:
        ValueError: size < 1.
    """
    if size is not None and size < 1:
        raise ValueError(f"size must be a positive number of structures or None, got {size!r}")
    if size is None or size >= len(dataset):
        return dataset
    groups = list(dataset.references().values())
    order = np.random.default_rng(seed).permutation(len(groups))
    enough = int(np.searchsorted(np.cumsum([len(groups[i]) for i in order]), size)) + 1
    rows = np.concatenate([groups[i] for i in order[:enough]])
    return dataset.select(torch.from_numpy(np.sort(rows)))
