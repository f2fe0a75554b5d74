"""Sweeps on several workers: Ray Tune with Optuna's sampler, the paper's own stack."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd

from irlkit.lab.sweeps.optuna_backend import distributions, import_optuna
from irlkit.lab.sweeps.store import SweepFolder, TrialRecord
from irlkit.lab.sweeps.trial import Objective, run_trial
from irlkit.utils.checks import checked
from irlkit.utils.cluster import connect, import_ray

_METRIC = "validation_reward"


@checked
def run_ray(
    sweep: SweepFolder,
    objective: Objective,
    n_trials: int,
    *,
    n_workers: int = 2,
    cpus_per_trial: float = 1.0,
    gpus_per_trial: float = 0.0,
    address: str | None = None,
    prune: bool = False,
) -> pd.DataFrame:
    """Run or continue a sweep until it has `n_trials` trials, those that were there included.

    Trials left unfinished are queued again and continue from their checkpoints; finished ones are
    told to the sampler. All nodes need the folder of the sweep at the same path.

    Args:
        sweep: its folder.
        objective: what is maximised; pickled.
        n_trials: in total.
        n_workers: trials at the same time.
        cpus_per_trial, gpus_per_trial: what a trial is given.
        address: of a Ray cluster; None: the one this process is connected to, or else a new one on
            this machine, which ends with the sweep.
        prune: end trials early that are worse than the median of the others at the same iteration.

    Returns:
        ``sweep.trials()``.

    Raises:
        ImportError: Ray or Optuna is not installed.
        ValueError: an argument is wrong.
    """
    for name, value in (("n_trials", n_trials), ("n_workers", n_workers)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a positive integer, got {value!r}")
    import_optuna()
    ray = import_ray()
    with sweep.lock():
        sweep.plan(n_trials)
    records = sweep.records()
    missing = n_trials - sum(trial.finished for trial in records)
    if missing < 1:
        return sweep.trials()

    def trainable(config: dict[str, Any]) -> None:
        with _claim(sweep, config) as number:
            trial = run_trial(
                sweep,
                objective,
                number,
                config,
                prune=prune,
                progress=lambda record: ray.tune.report({_METRIC: record.value}),
            )
        if trial.state == "failed":
            raise RuntimeError(trial.error)

    with _cluster(ray, address, n_workers, cpus_per_trial, gpus_per_trial):
        resources = {"cpu": cpus_per_trial, "gpu": gpus_per_trial}
        tuner = ray.tune.Tuner(
            ray.tune.with_resources(trainable, resources),
            tune_config=ray.tune.TuneConfig(
                search_alg=_searcher(sweep, records),
                num_samples=missing,
                max_concurrent_trials=n_workers,
                # Models and data stay loaded from one trial to the next.
                reuse_actors=True,
            ),
            run_config=ray.tune.RunConfig(name="ray", storage_path=str(sweep.path), verbose=0),
        )
        tuner.fit()
    return sweep.trials()


def _searcher(sweep: SweepFolder, records: list[TrialRecord]) -> Any:
    """Optuna's TPE, which knows what is finished and begins with what is not."""
    from ray.tune.search.optuna import OptunaSearch

    tried = [dict(trial.config) for trial in records]
    queue = [dict(trial.config) for trial in records if not trial.finished]
    queue += [dict(config) for config in sweep.space.start if dict(config) not in tried]
    seed = np.random.SeedSequence([sweep.seed, len(records)]).generate_state(1)[0]
    searcher = OptunaSearch(
        distributions(sweep.space),
        metric=_METRIC,
        mode="max",
        points_to_evaluate=queue or None,
        seed=int(seed),
    )
    for trial in records:
        if trial.state in ("complete", "pruned") and trial.value is not None:
            searcher.add_evaluated_point(
                dict(trial.config),
                trial.value,
                pruned=trial.state == "pruned",
                intermediate_values=[value for _, value in trial.validations],
            )
    return searcher


@contextmanager
def _claim(sweep: SweepFolder, config: Mapping[str, Any]) -> Iterator[int]:
    """Number of the trial with this configuration that was left unfinished, or of a new one."""
    with ExitStack() as claims:
        with sweep.lock():
            records = sweep.records()
            chosen = None
            for trial in records:
                same = not trial.finished and dict(trial.config) == dict(config)
                if same and claims.enter_context(sweep.claim(trial.number)):
                    chosen = trial.number
                    break
            if chosen is None:
                chosen = records[-1].number + 1 if records else 0
                claims.enter_context(sweep.claim(chosen))
                # Written before the lock is given back: the number is taken.
                sweep.write(TrialRecord(chosen, dict(config)))
        yield chosen


@contextmanager
def _cluster(
    ray: ModuleType, address: str | None, n_workers: int, cpus: float, gpus: float
) -> Iterator[None]:
    """A connection to a cluster; one that was not there before ends with it."""
    connected = connect(ray, address, n_workers, cpus, gpus)
    try:
        yield
    finally:
        if connected:
            ray.shutdown()
