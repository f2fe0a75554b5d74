"""The training runs of an experiment, one after the other or several at a time.

The best policy of each is kept.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from irlkit.data import CrystalDataset
from irlkit.flows.schedules import ConstantNoise, LearnedAnnealing
from irlkit.lab.experiments.parallel import Assignment, MakeRewards, train_in_processes
from irlkit.networks.flow_model import FlowModel
from irlkit.rewards import Reward
from irlkit.rl.config import TrainerConfig
from irlkit.rl.policies import AnnealingPolicy, Policy
from irlkit.rl.trainer import CHECKPOINT, GRPOTrainer
from irlkit.utils.system import write_atomically
from irlkit.utils.workers import WorkersLostError


@dataclass(frozen=True)
class Run:
    """A training run.

    Attributes:
        key: what its policy is found by.
        name: for people.
        folder: for its files, below that of all trainings.
        labels: further columns of its history.
        make: makes the policy to be trained.
        config: settings of GRPO.
        iterations: how many.
    """

    key: Any
    name: str
    folder: str
    labels: Mapping[str, Any]
    make: Callable[[], Policy]
    config: TrainerConfig
    iterations: int


def annealing_policy(
    model: FlowModel, schedule: Mapping[str, Any], noise: Mapping[str, float], seed: int
) -> AnnealingPolicy:
    """A policy that learns the annealing of a model.

    Args:
        model: that is annealed.
        schedule: arguments of ``LearnedAnnealing``.
        noise: field -> scale of the constant exploration noise.
        seed: of the schedule's initial weights.
    """
    generator = torch.Generator().manual_seed(seed)
    return AnnealingPolicy(
        model,
        LearnedAnnealing(**schedule, generator=generator),
        {field: ConstantNoise(scale) for field, scale in noise.items()},
    )


class Trainings:
    """Trains policies with GRPO, each in a folder of its own.

    Args:
        folder: for the files of all runs.
        compositions: to train on.
        progress: show bars.

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
        reward: Reward,
        validation: CrystalDataset,
        validation_reward: Reward,
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
            reward: of the rollouts.
            validation: compositions of the validation.
            validation_reward: of the validation.
            kept: key of a run -> its policy, filled here.
            n_processes: how many are trained at a time, in processes of their own which share as
                many threads; 1 trains one after the other in this process.
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
        trainers = {}
        for run in runs:
            if run.key in kept:
                continue
            trainer = trainers[run.key] = self._trainer(run, reward, validation, validation_reward)
            if run.key not in self._begun and trainer.iteration:
                print(f"{run.name}: {trainer.iteration} iterations are there, going on")
                self.seconds_before += float(trainer.history.filter(like="_seconds").sum().sum())
            self._begun.add(run.key)
        unfinished = [
            run
            for run in runs
            if run.key in trainers and trainers[run.key].iteration < run.iterations
        ]
        if make_rewards is not None and min(n_processes, len(unfinished)) > 1:
            self._continues = True  # With what the processes leave.
            self._train_in_processes(unfinished, trainers, validation, make_rewards, n_processes)
            for run in unfinished:
                trainers[run.key] = self._trainer(run, reward, validation, validation_reward)
        for run in runs:
            if run.key in kept:
                continue
            trainer = trainers.pop(run.key)
            trainer.run(run.iterations, progress=self.progress)
            if len(trainer.history):
                self.histories[run.key] = trainer.history.assign(**run.labels)
            if trainer.iteration < run.iterations:
                raise KeyboardInterrupt(
                    f"training stopped at iteration {trainer.iteration} of {run.iterations} "
                    f"of {run.name}; run this cell again to go on from there"
                )
            trainer.restore_best()
            kept[run.key] = trainer.policy
            assert trainer.best is not None  # A validation split was given.
            self.best_iteration[run.key] = int(trainer.best["iteration"])

    def _train_in_processes(
        self,
        unfinished: Sequence[Run],
        trainers: Mapping[Any, GRPOTrainer],
        validation: CrystalDataset,
        make_rewards: MakeRewards,
        n_processes: int,
    ) -> None:
        """Train several at a time, as far as that goes: the errors come up here, where they end."""
        assignments = [
            Assignment(
                run.name,
                self.folder / run.folder,
                run.make(),
                run.config,
                run.iterations,
                trainers[run.key].iteration > 0,
            )
            for run in unfinished
        ]
        try:
            failed = train_in_processes(
                assignments,
                make_rewards,
                self.compositions,
                validation,
                n_processes,
                self.progress,
            )
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
        for name, reason in failed.items():
            warnings.warn(f"{name} goes on in this process: {reason}", stacklevel=4)

    def _trainer(
        self, run: Run, reward: Reward, validation: CrystalDataset, validation_reward: Reward
    ) -> GRPOTrainer:
        """The trainer of a run, new or where it was."""
        make = partial(
            GRPOTrainer,
            reward=reward,
            dataset=self.compositions,
            config=run.config,
            validation=validation,
            validation_reward=validation_reward,
            out_dir=self.folder / run.folder,
        )
        if run.key in self.histories:
            return make(run.make(), resume=True)
        if not self._continues:
            return make(run.make())
        try:
            return make(run.make(), resume=True)
        except ValueError as error:
            warnings.warn(f"{run.name} begins anew: {error}", stacklevel=4)
            return make(run.make())

    def finish(self) -> None:
        """Note that results are written: what is trained from now on begins anew."""
        self._unfinished.unlink(missing_ok=True)
