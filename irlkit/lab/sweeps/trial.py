"""One trial of a sweep, from its configuration to its record."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from irlkit.lab.sweeps.store import SweepFolder, TrialRecord
from irlkit.rl.trainer import CHECKPOINT, NonFiniteRewardError

Report = Callable[[int, float], None]
"""Takes an iteration and its validation reward; raises ``Pruned`` to end the trial."""

MIN_OTHERS = 4
"""Complete trials without which none is pruned."""


class Pruned(Exception):
    """A trial was ended early because others were better at the same iteration."""


class Objective(Protocol):
    """What a sweep maximises: the highest validation reward that it reports.

    Called again with the folder of a trial that a process left unfinished, it continues and reports
    everything from the beginning. It has to be picklable for a cluster.
    """

    def __call__(self, config: Mapping[str, Any], folder: Path, report: Report) -> None:
        """Train with a configuration, with files in `folder`, and report each validation."""

    def describe(self) -> dict[str, Any]:
        """Its settings, as JSON can hold them; those of a continued sweep must agree."""


def run_trial(
    sweep: SweepFolder,
    objective: Objective,
    number: int,
    config: Mapping[str, Any],
    *,
    prune: bool = False,
    progress: Callable[[TrialRecord], None] | None = None,
) -> TrialRecord:
    """Run or continue a trial that this process has claimed, and write its record.

    The checkpoint of a complete trial is deleted.

    Errors of the numerics (a reward or gradient that is not finite, memory that ran out) end the
    trial as failed. Everything else, an interrupt included, leaves it unfinished and is raised.

    Args:
        sweep: where it belongs.
        objective: what is maximised.
        number: of the trial.
        config: its configuration.
        prune: end it early if it is worse than the median of the others.
        progress: called with the record after every validation.

    Raises:
        ValueError: the objective has reported nothing.
    """
    started = time.perf_counter()
    trial = TrialRecord(number, dict(config))
    sweep.write(trial)

    def report(iteration: int, value: float) -> None:
        nonlocal trial
        if not math.isfinite(value):
            raise ArithmeticError(f"validation reward {value} at iteration {iteration}")
        validations = (*trial.validations, (int(iteration), float(value)))
        best_iteration, best = max(validations, key=lambda entry: entry[1])
        trial = replace(
            trial,
            value=best,
            best_iteration=best_iteration,
            validations=validations,
            seconds=time.perf_counter() - started,
        )
        sweep.write(trial)
        if progress is not None:
            progress(trial)
        if prune and below_median(trial, sweep.records()):
            raise Pruned

    try:
        objective(config, sweep.folder(number), report)
        if not trial.validations:
            raise ValueError("the objective must report at least one validation, it reported none")
        trial = replace(trial, state="complete")
    except Pruned:
        trial = replace(trial, state="pruned")
    except (RuntimeError, ArithmeticError, MemoryError, NonFiniteRewardError) as failure:
        error = f"{type(failure).__name__}: {failure}"
        trial = replace(trial, state="failed", value=None, best_iteration=None, error=error)
    trial = replace(trial, seconds=time.perf_counter() - started)
    sweep.write(trial)
    discard_checkpoint(sweep, trial)
    return trial


def discard_checkpoint(sweep: SweepFolder, trial: TrialRecord) -> None:
    """Delete the checkpoint of a trial whose record says that it is complete."""
    if trial.state == "complete":
        (sweep.folder(trial.number) / CHECKPOINT).unlink(missing_ok=True)


def below_median(trial: TrialRecord, records: list[TrialRecord]) -> bool:
    """Whether the best value so far is below the median of what others had at that iteration.

    Args:
        trial: with at least one validation.
        records: all trials; the complete ones count, and fewer than ``MIN_OTHERS`` are no ground to
            stop.
    """
    iteration = trial.validations[-1][0]
    others = [
        max(values)
        for other in records
        if other.state == "complete" and other.number != trial.number
        if (values := [value for i, value in other.validations if i <= iteration])
    ]
    best = max(value for _, value in trial.validations)
    return len(others) >= MIN_OTHERS and best < statistics.median(others)
