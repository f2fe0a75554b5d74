"""A sweep as a folder: Optuna's journal of all trials, and what each training has written.

    sweep.jsonl     search space, objective, seed, trials: the one store, whoever runs them
    trials/00003/   what the training of trial 3 wrote

Locks belong to a process and end with it, however it ends. A trial that is neither finished nor
locked was left by a process that died, and is taken up again.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
from filelock import FileLock
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from irlkit.lab.sweeps.spaces import SearchSpace
from irlkit.utils.checks import checked
from irlkit.utils.system import make_folder

JOURNAL = "sweep.jsonl"
"""The journal's name; tells that a folder holds a sweep."""

_STUDY, _DESCRIPTION = "irlkit", "sweep"
_DONE = (TrialState.COMPLETE, TrialState.PRUNED)


@checked
class Sweep:
    """The trials of a search, in a folder: new ones, or those that are there if they are the same.

    Args:
        path: the folder.
        space: what is searched.
        objective: the settings of what is maximised, as JSON can hold them.
        seed: of the proposals.

    Attributes:
        study: Optuna's view of the trials, on the journal in the folder.
        lock: held while trials are handed out and while the journal is written.

    Raises:
        ValueError: the folder cannot be made, or holds another sweep (it says what differs).
    """

    def __init__(
        self, path: str | Path, space: SearchSpace, objective: Mapping[str, Any], seed: int = 0
    ) -> None:
        self.path, self.space, self.objective = Path(path).absolute(), space, dict(objective)
        self.seed = int(seed)
        ours = self._describe()
        make_folder(path)
        self.lock = _Lock(self.path / JOURNAL)
        with self.lock:
            self.study = optuna.create_study(
                study_name=_STUDY,
                storage=_open_journal(self.path / JOURNAL, self.lock),
                direction="maximize",
                # Never asked: what is proposed must not depend on when a process was started.
                sampler=optuna.samplers.RandomSampler(seed=0),
                pruner=optuna.pruners.MedianPruner(n_startup_trials=4),
                load_if_exists=True,
            )
            theirs = self.study.user_attrs.get(_DESCRIPTION)
            if theirs is None:
                self.study.set_user_attr(_DESCRIPTION, ours)
            elif different := [name for name in ours if theirs.get(name) != ours[name]]:
                raise ValueError(
                    f"out_dir: {path} holds another sweep (other {', '.join(different)}); "
                    "choose another folder, or the same settings to continue it"
                )

    def __reduce__(self) -> tuple[Any, ...]:
        return Sweep, (self.path, self.space, self.objective, self.seed)

    def _describe(self) -> dict[str, Any]:
        space = {
            "policy": self.space.policy,
            "parameters": {
                name: json.loads(optuna.distributions.distribution_to_json(distribution))
                for name, distribution in self.space.parameters.items()
            },
            "fixed": dict(self.space.fixed),
            "start": [dict(config) for config in self.space.start],
        }
        description = {"space": space, "objective": self.objective, "seed": self.seed}
        try:
            return json.loads(json.dumps(description, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise ValueError(f"objective must be described by what JSON holds: {error}") from error

    def folder(self, number: int) -> Path:
        """Return the folder of a trial's files."""
        return self.path / "trials" / f"{number:05d}"


class _Lock:
    """A journal's lock, which ends with its process; re-entrant.

    Who acquires it removes the line that a process has left half-written when it was killed.
    """

    def __init__(self, journal: Path) -> None:
        self._journal, self._lock = journal, FileLock(journal.with_name(f".{journal.name}.lock"))

    def acquire(self) -> bool:
        self._lock.acquire()
        if self._journal.exists():
            with open(self._journal, "r+b") as file:
                file.seek(max(file.seek(0, os.SEEK_END) - 1, 0))
                if file.read() not in (b"", b"\n"):
                    file.seek(0)
                    file.truncate(file.read().rfind(b"\n") + 1)
        return True

    def release(self) -> None:
        self._lock.release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *error: object) -> None:
        self.release()


def _open_journal(path: Path, lock: Any) -> JournalStorage:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return JournalStorage(JournalFileBackend(str(path), lock))


@checked
def open_study(path: str | Path) -> optuna.Study:
    """Open the sweep in a folder to read it.

    Raises:
        FileNotFoundError: there is none.
        ValueError: its journal is damaged or of something else.
    """
    file = Path(path) / JOURNAL
    if not file.is_file():
        raise FileNotFoundError(f"no sweep in {path}: it has no {JOURNAL}")
    try:
        study = optuna.load_study(study_name=_STUDY, storage=_open_journal(file, _Lock(file)))
        dict(study.user_attrs[_DESCRIPTION]["space"]["parameters"])
        return study
    except Exception as error:  # a damaged journal can make Optuna raise nearly anything
        raise ValueError(f"{file} is not the journal of a sweep: {error!r}") from error


def trials_table(study: optuna.Study) -> pd.DataFrame:
    """Return one row per trial of a sweep.

    Returns:
        Columns number, state ("running", "complete", "pruned" or "failed"), value (the highest
        validation reward so far), the parameters, best_iteration (where it was reached), iterations
        (of the last validation), seconds (of work) and error (what a failed trial failed with).
    """
    rows = []
    for trial in study.get_trials(deepcopy=False):
        failed = trial.state == TrialState.FAIL
        validations = {} if failed else trial.intermediate_values
        best = max(validations, key=lambda iteration: validations[iteration], default=None)
        rows.append(
            {
                "number": trial.number,
                "state": "failed" if failed else trial.state.name.lower(),
                "value": np.nan if best is None else validations[best],
                **trial.params,
                "best_iteration": best,
                "iterations": trial.last_step or 0,
                "seconds": trial.user_attrs.get("seconds", np.nan),
                "error": trial.user_attrs.get("error"),
            }
        )
    names = study.user_attrs[_DESCRIPTION]["space"]["parameters"]
    after = ["best_iteration", "iterations", "seconds", "error"]
    table = pd.DataFrame(rows, columns=["number", "state", "value", *names, *after])
    return table.astype({"best_iteration": "Int64"})


def importance(study: optuna.Study) -> pd.Series:
    """Return which parameters make the difference between good trials and others (PED-ANOVA).

    It compares how a parameter is distributed over the best quarter of the trials with how it is
    over all of them, pruned ones included. Few trials say little.

    Returns:
        Parameter -> share, highest first; they sum to 1. All are nan with fewer than four trials or
        where all values are equal.
    """
    done = study.get_trials(deepcopy=False, states=_DONE)
    names = list(study.user_attrs[_DESCRIPTION]["space"]["parameters"])
    values = [max(trial.intermediate_values.values()) for trial in done]
    if len(done) < 4 or len(set(values)) < 2:
        return pd.Series(np.nan, index=names, name="importance")
    judged = optuna.create_study(direction="maximize")
    judged.add_trials(
        [
            optuna.trial.create_trial(
                params=trial.params, distributions=trial.distributions, value=value
            )
            for trial, value in zip(done, values, strict=True)
        ]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=0.25)
        found = optuna.importance.get_param_importances(judged, evaluator=evaluator)
    return pd.Series(found, dtype=float, name="importance")
