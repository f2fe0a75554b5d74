"""Running a sweep: Optuna proposes, this process, several, or workers of a Ray cluster train."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import optuna
import pandas as pd
from filelock import FileLock, Timeout
from optuna.trial import FrozenTrial, TrialState

from irlkit.lab.sweeps.study import Sweep, trials_table
from irlkit.rl.trainer import CHECKPOINT, NonFiniteRewardError
from irlkit.utils.checks import check_count, checked
from irlkit.utils.cluster import connect
from irlkit.utils.progress import progress_bar

Report = Callable[[int, float], None]
"""Takes an iteration and its validation reward; may end the trial with ``optuna.TrialPruned``."""

_GIVE_UP_AFTER = 3


class Objective(Protocol):
    """What a sweep maximises: the highest validation reward that it reports.

    Called again with the folder of a trial that a process left unfinished, it continues and reports
    everything from the beginning. It has to be picklable for a cluster.
    """

    def __call__(self, config: Mapping[str, Any], folder: Path, report: Report) -> None:
        """Train with a configuration, with files in `folder`, and report each validation."""


@checked
def run_optuna(
    sweep: Sweep, objective: Objective, n_trials: int, *, prune: bool = False, progress: bool = True
) -> pd.DataFrame:
    """Run or continue a sweep until it has `n_trials` trials in all; return ``trials_table``.

    What is proposed depends on the seed of the sweep, the number of the trial and the results
    before it. With one process, a sweep that was stopped at any moment and continued is therefore
    the one that was never stopped. Several processes may work on one folder at the same time.

    >>> import tempfile
    >>> from irlkit.lab.sweeps import SPACES
    >>> def objective(config, folder, report):
    ...     report(1, -config["clip_eps"])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     sweep = Sweep(folder, SPACES["annealing"], {})
    ...     trials = run_optuna(sweep, objective, 2, progress=False)
    >>> trials["state"].tolist(), float(trials["value"][0])
    (['complete', 'complete'], -0.3)

    Args:
        sweep: its folder.
        objective: what is maximised.
        n_trials: in total.
        prune: end trials early that are worse than the median of the others at the same iteration.
        progress: show a bar.

    Raises:
        ValueError: an argument is wrong.
        RuntimeError: the first three trials all failed.
        KeyboardInterrupt: interrupted; the same call continues.
    """
    check_count("n_trials", n_trials)
    with sweep.lock:
        sweep.study.set_user_attr("n_trials", n_trials)
        for trial in sweep.study.get_trials(deepcopy=False, states=[TrialState.COMPLETE]):
            _discard_checkpoint(sweep, trial.number)
    with progress_bar(total=n_trials, disable=not progress, desc="sweep", unit="trial") as bar:
        while True:
            trials = trials_table(sweep.study)
            finished = trials[trials["state"] != "running"]
            bar.n = len(finished)
            best = finished["value"].max()
            bar.set_postfix({} if math.isnan(best) else {"best": f"{best:.4f}"})
            if len(finished) >= _GIVE_UP_AFTER and (finished["state"] == "failed").all():
                raise RuntimeError(
                    f"all of the first {len(finished)} trials failed, the last with "
                    f"{finished['error'].iloc[-1]}; see {sweep.path}"
                )
            claimed = _claim_next(sweep, n_trials)
            if claimed is None:
                return trials
            trial, lock = claimed
            try:
                _run_trial(sweep, objective, trial, prune)
            finally:
                lock.release()


@checked
def run_ray(
    sweep: Sweep,
    objective: Objective,
    n_trials: int,
    *,
    n_workers: int = 2,
    cpus_per_trial: float = 1.0,
    gpus_per_trial: float = 0.0,
    address: str | None = None,
    prune: bool = False,
) -> pd.DataFrame:
    """Run or continue a sweep as ``run_optuna`` does, in several workers of a Ray cluster.

    All nodes need the folder of the sweep at the same path; the objective is pickled.

    Args:
        sweep, objective, n_trials, prune: see ``run_optuna``.
        n_workers: trials at the same time.
        cpus_per_trial, gpus_per_trial: what a trial is given.
        address: of a Ray cluster; None: the one this process is connected to, or else a new one on
            this machine, which ends with the sweep.

    Raises:
        ImportError: Ray is not installed.
        ValueError, RuntimeError: see ``run_optuna``.
    """
    check_count("n_trials", n_trials)
    check_count("n_workers", n_workers)
    ray, connected = connect(address, n_workers, cpus_per_trial, gpus_per_trial)
    # A worker whose node is lost is begun anew elsewhere, with the trial that it has left.
    options = {"max_restarts": 3, "max_task_retries": 3}
    make = ray.remote(num_cpus=cpus_per_trial, num_gpus=gpus_per_trial, **options)(_Worker)
    workers = [make.remote() for _ in range(n_workers)]
    try:
        ray.get([worker.run.remote(sweep, objective, n_trials, prune) for worker in workers])
    finally:
        for worker in workers:
            ray.kill(worker)
        if connected:
            ray.shutdown()
    return trials_table(sweep.study)


class _Worker:
    def run(self, sweep: Sweep, objective: Objective, n_trials: int, prune: bool) -> None:
        run_optuna(sweep, objective, n_trials, prune=prune, progress=False)


def _claim(sweep: Sweep, number: int) -> FileLock | None:
    """Lock a trial, so that this process alone works on it; None if another one does."""
    sweep.folder(number).mkdir(parents=True, exist_ok=True)
    lock = FileLock(sweep.folder(number) / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    return lock


def _claim_next(sweep: Sweep, n_trials: int) -> tuple[FrozenTrial, FileLock] | None:
    """Claim a trial that was left unfinished, or else a new one; None if there is none."""
    with sweep.lock:
        trials = sweep.study.get_trials(deepcopy=False)
        for trial in trials:
            if trial.state == TrialState.RUNNING and (lock := _claim(sweep, trial.number)):
                return trial, lock
        number = len(trials)
        if number >= n_trials or (lock := _claim(sweep, number)) is None:
            return None
        # Added as a whole: a trial is there with all its parameters or not at all.
        sweep.study.add_trial(
            optuna.trial.create_trial(
                state=TrialState.RUNNING,
                params=_propose(sweep, number),
                distributions=dict(sweep.space.parameters),
            )
        )
        return sweep.study.get_trials(deepcopy=False)[number], lock


def _propose(sweep: Sweep, number: int) -> dict[str, Any]:
    """Propose the configuration of a trial: a start of the space, or what Optuna's TPE samples."""
    if number < len(sweep.space.start):
        return dict(sweep.space.start[number])
    seed = int(np.random.SeedSequence([sweep.seed, number]).generate_state(1)[0])
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
    done = (TrialState.COMPLETE, TrialState.PRUNED)
    study.add_trials(sweep.study.get_trials(deepcopy=False, states=done))
    return dict(study.ask(dict(sweep.space.parameters)).params)


def _run_trial(sweep: Sweep, objective: Objective, claimed: FrozenTrial, prune: bool) -> None:
    """Run or continue a trial that this process has claimed, to its end.

    Errors of the numerics (a reward or gradient that is not finite, memory that ran out) end it as
    failed. Everything else, an interrupt included, leaves it unfinished and is raised.
    """
    started = time.perf_counter()
    # Optuna gives a trial that was begun elsewhere to nobody; its constructor does.
    trial = optuna.trial.Trial(sweep.study, claimed._trial_id)
    reported: dict[int, float] = {}

    def report(iteration: int, value: float) -> None:
        if not math.isfinite(value):
            raise ArithmeticError(f"validation reward {value} at iteration {iteration}")
        reported[iteration] = value
        if iteration not in claimed.intermediate_values:
            trial.report(value, iteration)
        if prune and trial.should_prune():
            raise optuna.TrialPruned

    state, value = TrialState.COMPLETE, None
    try:
        objective(claimed.params, sweep.folder(claimed.number), report)
        if not reported:
            raise ValueError("the objective must report at least one validation, it reported none")
        value = max(reported.values())
    except optuna.TrialPruned:
        state = TrialState.PRUNED
    except (RuntimeError, ArithmeticError, MemoryError, NonFiniteRewardError) as failure:
        state = TrialState.FAIL
        trial.set_user_attr("error", f"{type(failure).__name__}: {failure}")
    trial.set_user_attr("seconds", time.perf_counter() - started)
    sweep.study.tell(claimed.number, value, state)
    if state == TrialState.COMPLETE:
        _discard_checkpoint(sweep, claimed.number)


def _discard_checkpoint(sweep: Sweep, number: int) -> None:
    """Delete the checkpoint of a complete trial, which needs none."""
    (sweep.folder(number) / CHECKPOINT).unlink(missing_ok=True)
