"""A sweep as a folder, the same whatever runs it.

    sweep.json              search space, objective, seed and backend
    trials/00003/trial.json configuration, state and result
    trials/00003/...        what the training of the trial wrote
    optuna.db, ray/         what the backend keeps for itself

Locks belong to a process and end with it, however it ends. A trial that is neither finished nor
locked was left by a process that died, and is taken up again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout

from irlkit.lab.sweeps.spaces import SearchSpace
from irlkit.utils.checks import checked
from irlkit.utils.system import write_atomically

FORMAT = "irlkit-sweep"
FINISHED = ("complete", "pruned", "failed")
STATES = ("running", *FINISHED)


@checked
@dataclass(frozen=True)
class TrialRecord:
    """A trial.

    Attributes:
        number: from 0, without gaps.
        config: value of each parameter.
        state: "running" (or left unfinished), "complete", "pruned" or "failed".
        value: the best validation reward; None unless the trial is complete or pruned.
        best_iteration: where it was reached.
        validations: (iteration, validation reward) in order.
        seconds: from the start of the trial to its end in the process that ended it.
        error: what a failed trial failed with.
    """

    number: int
    config: Mapping[str, Any]
    state: str = "running"
    value: float | None = None
    best_iteration: int | None = None
    validations: tuple[tuple[int, float], ...] = ()
    seconds: float = 0.0
    error: str | None = None

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return self.state in FINISHED


@checked
@dataclass(frozen=True)
class SweepFolder:
    """The files of a sweep.

    Attributes:
        path: the folder.
        space: what is searched.
        objective: the settings of what is maximised, as JSON can hold them.
        seed: of the proposals.
        backend: "optuna" or "ray".
    """

    path: Path
    space: SearchSpace
    objective: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    backend: str = "optuna"

    @classmethod
    @checked
    def open(cls, path: str | Path) -> SweepFolder:
        """A sweep that is there.

        Raises:
            FileNotFoundError: no ``sweep.json`` in the folder.
            ValueError: it is damaged or of something else.
        """
        path = Path(path)
        file = path / "sweep.json"
        if not file.is_file():
            raise FileNotFoundError(f"no sweep in {path}: it has no sweep.json")
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
            if not isinstance(data, dict) or data.get("format") != FORMAT:
                raise ValueError(f"it carries no '{FORMAT}' mark")
            return cls(
                path.absolute(),
                SearchSpace.from_dict(data["space"]),
                data["objective"],
                data["seed"],
                data["backend"],
            )
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"{file} is not the description of a sweep: {error}") from error

    @classmethod
    @checked
    def create(
        cls,
        path: str | Path,
        space: SearchSpace,
        objective: Mapping[str, Any],
        seed: int = 0,
        backend: str = "optuna",
    ) -> SweepFolder:
        """A new sweep, or the one that is there if it is the same.

        Raises:
            ValueError: the folder cannot be made, or holds another sweep (it says what differs).
        """
        sweep = cls(Path(path).absolute(), space, objective, int(seed), backend)
        ours = sweep._description()
        try:
            sweep.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"out_dir: the folder {str(path)!r} cannot be made: {error}") from None
        with sweep.lock():
            if (sweep.path / "sweep.json").exists():
                theirs = cls.open(sweep.path)._description()
                different = [name for name in ours if _plain(theirs[name]) != _plain(ours[name])]
                if different:
                    raise ValueError(
                        f"out_dir: {path} holds another sweep (other {', '.join(different)}); "
                        "choose another folder, or the same settings to continue it"
                    )
            else:
                sweep._write_description(None)
        return sweep

    def plan(self, n_trials: int) -> None:
        """Remember how many trials there are to be; the lock is held."""
        if self.planned() != n_trials:
            self._write_description(n_trials)

    def planned(self) -> int | None:
        """How many trials there are to be, None if it was never run."""
        return json.loads((self.path / "sweep.json").read_text(encoding="utf-8")).get("n_trials")

    def _write_description(self, n_trials: int | None) -> None:
        data = {**self._description(), "n_trials": n_trials}
        try:
            text = json.dumps(data, indent=1, allow_nan=False) + "\n"
        except (TypeError, ValueError) as error:
            raise ValueError(f"objective must be described by what JSON holds: {error}") from error
        write_atomically(self.path / "sweep.json", text.encode())

    def _description(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "space": self.space.to_dict(),
            "objective": dict(self.objective),
            "seed": self.seed,
            "backend": self.backend,
        }

    # ----------------------------------------------------------------------------------------------

    def lock(self) -> FileLock:
        """Held while trials are handed out or the backend's store is written."""
        return FileLock(self.path / ".sweep.lock")

    @contextmanager
    def claim(self, number: int) -> Iterator[bool]:
        """Try to be the only process that works on a trial; yields whether it is."""
        folder = self.folder(number)
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def folder(self, number: int) -> Path:
        """Where a trial's files are."""
        return self.path / "trials" / f"{number:05d}"

    def write(self, trial: TrialRecord) -> None:
        """Write a trial's file whole."""
        data = asdict(trial)
        text = json.dumps(_plain(data), indent=1, allow_nan=False) + "\n"
        write_atomically(self.folder(trial.number) / "trial.json", text.encode())

    def read(self, number: int) -> TrialRecord | None:
        """A trial, or None where there is none yet.

        Raises:
            ValueError: its file is damaged.
        """
        path = self.folder(number) / "trial.json"
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            trial = TrialRecord(**data)
            if trial.number != number or trial.state not in STATES:
                raise ValueError(f"number {trial.number}, state {trial.state!r}")
            self.space.check(trial.config)
            validations = tuple((int(i), float(v)) for i, v in trial.validations)
            return replace(trial, validations=validations)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(f"{path} is not the record of a trial: {error}") from error

    def records(self) -> list[TrialRecord]:
        """All trials in order.

        Raises:
            ValueError: the file of one is damaged.
        """
        numbers = sorted(
            int(p.parent.name)
            for p in self.path.glob("trials/*/trial.json")
            if p.parent.name.isdigit()
        )
        found = [self.read(number) for number in numbers]
        return [trial for trial in found if trial is not None]

    def trials(self) -> pd.DataFrame:
        """One row per trial: number, state, value, its parameters, best_iteration, iterations,
        seconds and error.
        """
        rows = [
            {
                "number": trial.number,
                "state": trial.state,
                "value": np.nan if trial.value is None else trial.value,
                **trial.config,
                "best_iteration": trial.best_iteration,
                "iterations": trial.validations[-1][0] if trial.validations else 0,
                "seconds": trial.seconds,
                "error": trial.error,
            }
            for trial in self.records()
        ]
        after = ["best_iteration", "iterations", "seconds", "error"]
        columns = ["number", "state", "value", *self.space.names, *after]
        table = pd.DataFrame(rows, columns=columns)
        return table.astype({"best_iteration": "Int64"})

    def validations(self) -> pd.DataFrame:
        """All validations of all trials: number, iteration, value."""
        rows = [(t.number, i, v) for t in self.records() for i, v in t.validations]
        return pd.DataFrame(rows, columns=["number", "iteration", "value"])

    def best(self) -> TrialRecord:
        """The complete trial with the highest value, the first of equals.

        Raises:
            ValueError: there is none yet.
        """
        done = [t for t in self.records() if t.state == "complete" and t.value is not None]
        if not done:
            raise ValueError(f"no trial of the sweep in {self.path} is complete yet")
        return max(done, key=lambda trial: (trial.value, -trial.number))


def _plain(data: Any) -> Any:
    """As JSON would give it back; numbers that are not finite become None."""
    if isinstance(data, Mapping):
        return {str(key): _plain(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_plain(value) for value in data]
    if isinstance(data, float) and not math.isfinite(data):
        return None
    return data
