"""The training runs of an experiment, one after the other or several at a time.

The best policy of each is kept. In processes, each run has its share of the cores: networks of this
size leave most of a second thread idle. Every run writes a checkpoint after each iteration, as
everywhere; whoever started the processes reads the results from there. What a run computes does not
depend on the others, and has the same bits as with as many threads in this process.
"""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from irlkit.data import CrystalDataset
from irlkit.flows.schedules import Annealing, ConstantNoise, LearnedAnnealing
from irlkit.lab import runs as run_folders
from irlkit.lab.tracking import log_lines
from irlkit.networks.flow_model import FlowModel
from irlkit.rewards import Reward
from irlkit.rl.config import TrainerConfig
from irlkit.rl.policies import AnnealingPolicy, Policy
from irlkit.rl.trainer import CHECKPOINT, GRPOTrainer
from irlkit.utils.progress import progress_bar
from irlkit.utils.system import write_atomically
from irlkit.utils.workers import WorkerPool, WorkersLostError

_YEAR = 365 * 86400.0
"""Seconds that a run may take."""
_LOOK = 5.0
"""Seconds between two looks at the checkpoints, which takes a while."""

MakeRewards = Callable[[], tuple[Reward, Reward]]
"""Makes the reward and that of the validation; has to be importable by another process."""


@dataclass(frozen=True)
class Run:
    """A training run.

    Attributes:
        key: what its policy is found by.
        name: for people.
        labels: further columns of its history.
        make: makes the policy to be trained.
        config: settings of GRPO, with the number of iterations.
    """

    key: Any
    name: str
    labels: Mapping[str, Any]
    make: Callable[[], Policy]
    config: TrainerConfig

    @property
    def iterations(self) -> int:
        """How many in all."""
        assert self.config.iterations is not None  # Every preset says it.
        return self.config.iterations


def file_name(name: str) -> str:
    """A name as part of a file name."""
    return "_".join(re.findall("[a-z0-9]+", name.lower()))


def annealing_policy(
    model: FlowModel,
    schedule: Mapping[str, Any],
    noise: Mapping[str, float],
    seed: int,
    rule: Annealing | None = None,
) -> AnnealingPolicy:
    """A policy that learns the annealing of a model.

    `schedule` are arguments of ``LearnedAnnealing``, whose initial weights are of this seed and
    which starts from `rule`; `noise` are the scales of the constant exploration noise by field.
    """
    generator = torch.Generator().manual_seed(seed)
    return AnnealingPolicy(
        model,
        LearnedAnnealing(**schedule, generator=generator, rule=rule),
        {field: ConstantNoise(scale) for field, scale in noise.items()},
    )


class Trainings:
    """Trains policies with GRPO, each in a folder of its own.

    Attributes:
        histories: key of a run -> its history, with the run's labels.
        best_iteration: key of a run -> iteration of its best policy.
        seconds_before: that earlier processes had spent on what the last call of `train` has read,
            added up.
    """

    def __init__(self, folder: Path, compositions: CrystalDataset, progress: bool) -> None:
        self.folder = folder
        self.compositions = compositions
        self.progress = progress
        self.histories: dict[Any, pd.DataFrame] = {}
        self.best_iteration: dict[Any, int] = {}
        self.seconds_before = 0.0
        self._begun: set[Any] = set()  # in this process or those that it started
        # There from the beginning of training until results are written: who finds it goes on.
        self._unfinished = folder / "unfinished"
        self._continues = self._unfinished.exists()

    def train(
        self,
        runs: Sequence[Run],
        rewards: tuple[Reward, Reward],
        validation: CrystalDataset,
        kept: dict[Any, Any],
        n_processes: int = 1,
        make_rewards: MakeRewards | None = None,
    ) -> None:
        """Train policies and keep the best of each by validation.

        Once all are trained, a further call begins anew; after an interruption, it goes on there.
        So does a new process if the last one ended before it has written results: what it has
        trained is read, if it is of the same model, data and settings.

        Args:
            runs: what to train.
            rewards: of the rollouts, and of the validation.
            validation: its compositions.
            kept: key of a run -> its policy, filled here.
            n_processes: how many are trained at a time, in processes that share as many threads.
            make_rewards: makes both rewards, for these processes.

        Raises:
            KeyboardInterrupt: interrupted; says how far training was.
        """
        if all(run.key in kept for run in runs):
            for run in runs:
                del kept[run.key], self.histories[run.key], self.best_iteration[run.key]
            self._begun -= {run.key for run in runs}
            self._continues = False
        if not self._unfinished.exists():
            for path in self.folder.glob(f"*/{CHECKPOINT}"):
                path.unlink()  # of a run before, whose results are written
            write_atomically(self._unfinished, b"")
        self.seconds_before = 0.0
        start = partial(self._trainer, rewards=rewards, validation=validation)
        todo = [run for run in runs if run.key not in kept]
        trainers = {run.key: start(run) for run in todo}
        for run in todo:
            trainer = trainers[run.key]
            if run.key not in self._begun and trainer.iteration:
                print(f"{run.name}: {trainer.iteration} iterations are there, going on")
                self.seconds_before += float(trainer.history.filter(like="_seconds").sum().sum())
            self._begun.add(run.key)
        unfinished = [run for run in todo if trainers[run.key].iteration < run.iterations]
        if make_rewards is not None and min(n_processes, len(unfinished)) > 1:
            self._continues = True  # With what the processes leave.
            resumed = [trainers[run.key].iteration > 0 for run in unfinished]
            self._train_in_processes(unfinished, resumed, validation, make_rewards, n_processes)
            trainers |= {run.key: start(run) for run in unfinished}
        for run in todo:
            self._finish_run(run, trainers.pop(run.key), kept)

    def _finish_run(self, run: Run, trainer: GRPOTrainer, kept: dict[Any, Any]) -> None:
        """Train what is left of a run here, and keep its best policy."""
        log = log_lines(self.folder / file_name(run.name) / "log.txt")
        trainer.run(run.iterations, self.progress, [log])
        if len(trainer.history):
            self.histories[run.key] = trainer.history.assign(**run.labels)
        if trainer.iteration < run.iterations:
            raise KeyboardInterrupt(
                f"training stopped at iteration {trainer.iteration} of {run.iterations} "
                f"of {run.name}; run this cell again to go on from there"
            )
        kept[run.key] = trainer.restore_best()
        assert trainer.best is not None  # A validation split was given.
        self.best_iteration[run.key] = int(trainer.best["iteration"])

    def _trainer(
        self, run: Run, rewards: tuple[Reward, Reward], validation: CrystalDataset
    ) -> GRPOTrainer:
        """The trainer of a run, new or where it was."""

        def make(resume: bool) -> GRPOTrainer:
            return self._assignment(run, resume).trainer(self.compositions, validation, rewards)

        if run.key in self.histories or not self._continues:
            return make(run.key in self.histories)
        try:
            return make(True)
        except ValueError as error:
            warnings.warn(f"{run.name} begins anew: {error}", stacklevel=4)
            return make(False)

    def _assignment(self, run: Run, resume: bool) -> _Assignment:
        folder = self.folder / file_name(run.name)
        return _Assignment(run.make(), run.config, folder, run.iterations, resume)

    def _train_in_processes(
        self,
        unfinished: Sequence[Run],
        resumed: Sequence[bool],
        validation: CrystalDataset,
        make_rewards: MakeRewards,
        n_processes: int,
    ) -> None:
        """Train several at a time, as far as that goes: the errors come up here, where they end."""
        pairs = zip(unfinished, resumed, strict=True)
        assignments = [self._assignment(run, resume) for run, resume in pairs]
        for assigned in assignments:
            if not assigned.resume:
                (assigned.folder / CHECKPOINT).unlink(missing_ok=True)
        at_once = min(n_processes, len(assignments))  # If there are few, each has more threads.
        threads = n_processes // at_once
        factory = partial(_Trainer, self.compositions, validation, make_rewards, threads)
        pool = WorkerPool(factory, at_once, timeout=_YEAR)
        try:
            with _bar(assignments, self.progress):
                outcomes = pool.map(assignments)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                "training stopped; run this cell again to go on from the last iteration of each run"
            ) from None
        except WorkersLostError as error:
            warnings.warn(
                f"training goes on in this process (as n_workers=0 has it from the start): {error}",
                stacklevel=4,
            )
            return
        finally:
            pool.close()
        for run, outcome in zip(unfinished, outcomes, strict=True):
            if outcome.error:
                message = f"{run.name} goes on in this process: {outcome.error}"
                warnings.warn(message, stacklevel=4)

    def finish(self) -> None:
        """Note that results are written: what is trained from now on begins anew."""
        self._unfinished.unlink(missing_ok=True)


# --- In other processes ---


@dataclass(frozen=True)
class _Assignment:
    """What a process is to train; with `resume`, from the checkpoint in the folder."""

    policy: Policy
    config: TrainerConfig
    folder: Path
    iterations: int
    resume: bool

    def trainer(
        self, data: CrystalDataset, validation: CrystalDataset, rewards: tuple[Reward, Reward]
    ) -> GRPOTrainer:
        return GRPOTrainer(
            self.policy,
            rewards[0],
            data,
            self.config,
            validation=validation,
            validation_reward=rewards[1],
            out_dir=self.folder,
            resume=self.resume,
        )

    def done(self) -> int:
        """Iterations that its checkpoint has."""
        try:
            return run_folders.read(self.folder).done or 0
        except (OSError, ValueError):  # not begun, or not to be read now; the run says what is
            return 0


class _Trainer:
    """What a process does."""

    def __init__(
        self,
        compositions: CrystalDataset,
        validation: CrystalDataset,
        make_rewards: MakeRewards,
        n_threads: int,
    ) -> None:
        torch.set_num_threads(n_threads)
        self._data = compositions, validation
        self._make_rewards = make_rewards

    @cached_property
    def _rewards(self) -> tuple[Reward, Reward]:
        """Made with the first run: a start has a time limit, and energies may take long."""
        return self._make_rewards()

    def __call__(self, assigned: _Assignment) -> None:
        trainer = assigned.trainer(*self._data, self._rewards)
        trainer.run(assigned.iterations, False, [log_lines(assigned.folder / "log.txt")])


@contextmanager
def _bar(assignments: Sequence[_Assignment], progress: bool) -> Iterator[None]:
    """A bar over the iterations of all runs, as their checkpoints have them."""
    if not progress:
        yield
        return
    total = sum(assigned.iterations for assigned in assignments)
    bar = progress_bar(total=total, unit="it")
    ended = threading.Event()

    def look() -> None:
        bar.update(sum(assigned.done() for assigned in assignments) - bar.n)

    def watch() -> None:
        while not ended.wait(_LOOK):
            look()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
        look()
        bar.close()
