"""Several training runs at a time, each in a process with its share of the cores.

Networks of this size leave most of a second thread idle. Every run writes a checkpoint after each
iteration, as everywhere; whoever started the processes reads the results from there. What a run
computes does not depend on the others, and has the same bits as with as many threads in this
process.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch

from irlkit.data import CrystalDataset
from irlkit.lab import runs
from irlkit.rewards import Reward
from irlkit.rl.config import TrainerConfig
from irlkit.rl.policies import Policy
from irlkit.rl.trainer import CHECKPOINT, GRPOTrainer
from irlkit.utils.progress import progress_bar
from irlkit.utils.workers import WorkerPool

_YEAR = 365 * 86400.0
"""Seconds that a run may take: it is the user who decides."""
_POLL = 1.0
"""Seconds between two looks whether the parent is alive."""
_LOOK = 5.0
"""Seconds between two looks at the checkpoints, which takes a while."""


@dataclass(frozen=True)
class Assignment:
    """What a process is to train.

    Attributes:
        name: of the run, for people.
        folder: for its files.
        policy: to be trained.
        config: settings of GRPO.
        iterations: how many in all.
        resume: go on from the checkpoint in the folder.
    """

    name: str
    folder: Path
    policy: Policy
    config: TrainerConfig
    iterations: int
    resume: bool


MakeRewards = Callable[[], tuple[Reward, Reward]]
"""Makes the reward and that of the validation; has to be importable by another process."""


def train_in_processes(
    assignments: Sequence[Assignment],
    make_rewards: MakeRewards,
    compositions: CrystalDataset,
    validation: CrystalDataset,
    n_processes: int,
    progress: bool,
) -> dict[str, str]:
    """Train all of them; each is then in its folder, trained.

    Args:
        assignments: what to train.
        make_rewards: called once in each process.
        compositions: to train on.
        validation: compositions of the validation.
        n_processes: how many at a time; if there are fewer assignments, each has more threads.
        progress: show a bar.

    Returns:
        Name -> why it was not finished, for the runs that were not.

    Raises:
        KeyboardInterrupt: interrupted; all runs are as they were after their last iteration.
        WorkersLostError: no process can be started, or none stays alive.
    """
    for assigned in assignments:
        if not assigned.resume:
            (assigned.folder / CHECKPOINT).unlink(missing_ok=True)
    at_once = min(n_processes, len(assignments))
    n_threads = n_processes // at_once
    factory = partial(_Trainer, compositions, validation, make_rewards, n_threads, os.getpid())
    pool = WorkerPool(factory, at_once, timeout=_YEAR)
    try:
        with _bar(assignments, progress):
            outcomes = pool.map(assignments)
    finally:
        pool.close()
    pairs = zip(assignments, outcomes, strict=True)
    return {assigned.name: outcome.error for assigned, outcome in pairs if outcome.error}


class _Trainer:
    """What a process does. It ends when the one that started it does."""

    def __init__(
        self,
        compositions: CrystalDataset,
        validation: CrystalDataset,
        make_rewards: MakeRewards,
        n_threads: int,
        parent: int,
    ) -> None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
        torch.set_num_threads(n_threads)
        self._compositions = compositions
        self._validation = validation
        self._make_rewards = make_rewards

    @cached_property
    def _rewards(self) -> tuple[Reward, Reward]:
        """Made with the first run: a start has a time limit, and energies may take long."""
        return self._make_rewards()

    def __call__(self, assigned: Assignment) -> None:
        reward, validation_reward = self._rewards
        trainer = GRPOTrainer(
            assigned.policy,
            reward,
            self._compositions,
            assigned.config,
            validation=self._validation,
            validation_reward=validation_reward,
            out_dir=assigned.folder,
            resume=assigned.resume,
        )
        trainer.run(assigned.iterations, progress=False)


def _end_with(parent: int) -> None:
    """Ends this process with another one, at most a second later; files are never half-written."""
    forever = threading.Event()
    while os.getppid() == parent:
        forever.wait(_POLL)
    os._exit(1)


@contextmanager
def _bar(assignments: Sequence[Assignment], progress: bool) -> Iterator[None]:
    """A bar over the iterations of all runs, as their checkpoints have them."""
    if not progress:
        yield
        return
    bar = progress_bar(total=sum(assigned.iterations for assigned in assignments), unit="it")
    ended = threading.Event()
    done = [0] * len(assignments)

    def look() -> None:
        for i, assigned in enumerate(assignments):
            if done[i] < assigned.iterations:
                done[i] = _iterations_of(assigned)
        bar.update(sum(done) - bar.n)

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


def _iterations_of(assigned: Assignment) -> int:
    try:
        return runs.read(assigned.folder).done or 0
    except (OSError, ValueError):  # not begun, or not to be read now; the run itself says what is
        return 0
