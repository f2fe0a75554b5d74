"""Sweeps on one machine: Optuna proposes, this process (or several) trains."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from irlkit.lab.sweeps.spaces import Choice, SearchSpace
from irlkit.lab.sweeps.store import SweepFolder, TrialRecord
from irlkit.lab.sweeps.trial import Objective, discard_checkpoint, run_trial
from irlkit.utils.checks import checked
from irlkit.utils.progress import progress_bar
from irlkit.utils.system import remove_leftovers

if TYPE_CHECKING:
    import optuna

STORES = {"sqlite": "optuna.db", "journal": "optuna.log"}
"""Store -> its file."""
_GIVE_UP_AFTER = 3


def import_optuna() -> ModuleType:
    """Optuna, quiet.

    Raises:
        ImportError: it is not installed; says how to get it.
    """
    try:
        import optuna
    except ImportError as error:
        raise ImportError(
            "sweeps need Optuna, which is not installed: pip install 'irlkit[sweeps]'"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def distributions(space: SearchSpace) -> dict[str, Any]:
    """The space in Optuna's terms."""
    optuna = import_optuna()
    return {
        p.name: optuna.distributions.CategoricalDistribution(p.values)
        if isinstance(p, Choice)
        else optuna.distributions.FloatDistribution(p.low, p.high, log=p.log)
        for p in space.parameters
    }


@checked
def run_optuna(
    sweep: SweepFolder,
    objective: Objective,
    n_trials: int,
    *,
    store: str = "sqlite",
    prune: bool = False,
    progress: bool = True,
) -> pd.DataFrame:
    """Run or continue a sweep until it has `n_trials` trials, those that were there included.

    What is proposed depends on the seed of the sweep, the number of the trial and the results
    before it. With one process, a sweep that was stopped at any moment and continued is therefore
    the one that was never stopped. Several processes may work on one folder at the same time.

    Args:
        sweep: its folder.
        objective: what is maximised.
        n_trials: in total.
        store: "sqlite", or "journal" for file systems on which SQLite cannot lock; what is already
            in the folder wins.
        prune: end trials early that are worse than the median of the others at the same iteration.
        progress: show a bar.

    Returns:
        ``sweep.trials()``.

    Raises:
        ImportError: Optuna is not installed.
        ValueError: an argument is wrong.
        RuntimeError: the first three trials all failed.
        KeyboardInterrupt: interrupted; the same call continues.
    """
    optuna = import_optuna()
    if isinstance(n_trials, bool) or not isinstance(n_trials, int) or n_trials < 1:
        raise ValueError(f"n_trials must be a positive integer, got {n_trials!r}")
    if store not in STORES:
        raise ValueError(f"store must be one of {sorted(STORES)}, got {store!r}")
    states = {
        "complete": optuna.trial.TrialState.COMPLETE,
        "pruned": optuna.trial.TrialState.PRUNED,
        "failed": optuna.trial.TrialState.FAIL,
    }
    with sweep.lock():
        remove_leftovers(sweep.path)
        sweep.plan(n_trials)
        study = _open_study(sweep, store)
    with progress_bar(total=n_trials, disable=not progress, desc="sweep", unit="trial") as bar:
        while True:
            finished = [trial for trial in sweep.records() if trial.finished]
            bar.n = len(finished)
            best = max((t.value for t in finished if t.value is not None), default=None)
            bar.set_postfix({} if best is None else {"best": f"{best:.4f}"})
            with _claim(sweep, study, n_trials) as claimed:
                if claimed is None:
                    return sweep.trials()
                number, config = claimed
                trial = sweep.read(number)
                if trial is None or not trial.finished:
                    trial = run_trial(sweep, objective, number, config, prune=prune)
                else:  # a process died between writing the record and telling Optuna
                    discard_checkpoint(sweep, trial)
                with sweep.lock():
                    value = trial.value if trial.state == "complete" else None
                    study.tell(number, value, state=states[trial.state])
            if trial.state == "failed":
                _give_up_if_all_failed(sweep)


def _open_study(sweep: SweepFolder, store: str) -> optuna.Study:
    """The study in the folder's store; the lock of the sweep is held."""
    optuna = import_optuna()
    there = [name for name, file in STORES.items() if (sweep.path / file).exists()]
    store = there[0] if there else store
    path = sweep.path / STORES[store]
    if store == "sqlite":
        # In a URL, these two would mean something.
        quoted = str(path).replace("%", "%25").replace("?", "%3F")
        storage: Any = optuna.storages.RDBStorage(
            f"sqlite:///{quoted}", engine_kwargs={"connect_args": {"timeout": 60}}
        )
    else:
        _mend_journal(path)
        lock = optuna.storages.journal.JournalFileOpenLock(str(path))
        backend = optuna.storages.journal.JournalFileBackend(str(path), lock)
        storage = optuna.storages.JournalStorage(backend)
    return optuna.create_study(
        study_name="irlkit",
        storage=storage,
        direction="maximize",
        # Never asked: see `propose`.
        sampler=optuna.samplers.RandomSampler(seed=0),
        load_if_exists=True,
    )


def _mend_journal(path: Path) -> None:
    """Remove what a process that was killed while it wrote has left; the sweep's lock is held."""
    path.with_name(path.name + ".lock").unlink(missing_ok=True)
    if path.exists():
        data = path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            with open(path, "r+b") as file:
                file.truncate(whole)


@contextmanager
def _claim(
    sweep: SweepFolder, study: optuna.Study, n_trials: int
) -> Iterator[tuple[int, dict[str, Any]] | None]:
    """The next trial for this process: one left unfinished, a new one, or None if there is none."""
    optuna = import_optuna()
    running = optuna.trial.TrialState.RUNNING
    with ExitStack() as claims:
        with sweep.lock():
            trials = study.get_trials(deepcopy=False)
            chosen = None
            for trial in trials:
                if trial.state == running and claims.enter_context(sweep.claim(trial.number)):
                    chosen = trial.number, dict(trial.params)
                    break
            if chosen is None and len(trials) < n_trials:
                config = propose(sweep.space, sweep.seed, len(trials), sweep.records())
                # Added as a whole: a trial is in the store with all its parameters or not at all.
                study.add_trial(
                    optuna.trial.create_trial(
                        state=running, params=config, distributions=distributions(sweep.space)
                    )
                )
                chosen = len(trials), config
                claims.enter_context(sweep.claim(chosen[0]))
        yield chosen


def propose(
    space: SearchSpace, seed: int, number: int, records: Sequence[TrialRecord]
) -> dict[str, Any]:
    """The configuration of a trial: first the starts of the space, then what Optuna's TPE samples.

    Args:
        space: what is searched.
        seed: of the sweep.
        number: of the trial.
        records: what is learned from; unfinished and failed trials are left out.
    """
    if number < len(space.start):
        return dict(space.start[number])
    optuna = import_optuna()
    own_seed = np.random.SeedSequence([seed, number]).generate_state(1)[0]
    study = optuna.create_study(
        direction="maximize", sampler=optuna.samplers.TPESampler(seed=int(own_seed))
    )
    study.add_trials(
        [to_optuna(trial, space) for trial in records if trial.state in ("complete", "pruned")]
    )
    return dict(study.ask(distributions(space)).params)


def to_optuna(trial: TrialRecord, space: SearchSpace) -> optuna.trial.FrozenTrial:
    """A complete or pruned trial in Optuna's terms."""
    optuna = import_optuna()
    complete = trial.state == "complete"
    return optuna.trial.create_trial(
        state=optuna.trial.TrialState.COMPLETE if complete else optuna.trial.TrialState.PRUNED,
        value=trial.value,
        params=dict(trial.config),
        distributions=distributions(space),
        intermediate_values=dict(trial.validations),
    )


def _give_up_if_all_failed(sweep: SweepFolder) -> None:
    records = [trial for trial in sweep.records() if trial.finished]
    if len(records) >= _GIVE_UP_AFTER and all(trial.state == "failed" for trial in records):
        raise RuntimeError(
            f"all of the first {len(records)} trials failed, the last with {records[-1].error}; "
            f"see {sweep.path}"
        )
