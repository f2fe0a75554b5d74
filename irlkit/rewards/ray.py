"""Rewards on the workers of a Ray cluster."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch

from irlkit.crystals import CrystalBatch
from irlkit.rewards._parts import cut, grouping, joined, on_cpu, runs
from irlkit.rewards.base import Reward, RewardResult
from irlkit.rewards.function import as_reward
from irlkit.utils.checks import check_count, checked
from irlkit.utils.cluster import connect
from irlkit.utils.workers import WorkersLostError

_TRIES = 2
"""How often a part is tried whose worker is lost: a node may go; twice is no chance."""


class RayReward(Reward):
    """A reward that every worker has a copy of, and that a batch is shared among.

    Values and information are those of the reward itself, in order; energies of a batch may differ
    by rounding from those of its parts. Groups that the reward compares within (``EnergyReward``)
    stay whole. A worker that is free takes the next part, so that slow parts hold up nobody.

    The structures of a worker that dies (its node goes, or a structure ends its process) are given
    to its successor, once. If that dies as well, they have no result: their reward is `on_failure`,
    their information is nan, False, -1 or None, and `info` has an entry ``lost``, True for them.
    While `on_failure` is nan, a trainer stops with an error that names them. An error that the
    reward raises is raised here. There is no time limit beyond what the reward itself keeps.

    Args:
        factory: Makes the reward (or a function of structures, as `FunctionReward` takes), once in
            each worker, such as ``partial(EnergyReward, "chgnet", 32)`` or
            ``partial(CRMSEReward, data, 0)``. It is sent to the workers, with all it holds.
        n_workers: Ray actors.
        cpus, gpus: What Ray reserves for each; a worker computes with as many threads.
        address: Of a Ray cluster, such as "auto"; None: the one that this process is connected to,
            or else a new one on this machine, which ends with `close`. The package has to be
            installed on all nodes.
        parts_per_worker: Into how many parts per worker a batch is cut: more of them even out the
            load, and lose less with a worker; fewer keep batches large.
        on_failure: Reward of structures whose workers were lost twice.

    Raises:
        ValueError: a number is out of its range, or a reward is given in place of a factory.
        ImportError: Ray is not installed.
    """

    @checked
    def __init__(
        self,
        factory: Callable[[], Any],
        n_workers: int = 2,
        *,
        cpus: float = 1.0,
        gpus: float = 0.0,
        address: str | None = None,
        parts_per_worker: int = 2,
        on_failure: float = math.nan,
    ) -> None:
        if isinstance(factory, Reward) or not callable(factory):
            raise ValueError(
                "factory must be a function that makes the reward, such as "
                f"partial(EnergyReward, 'chgnet'), got {type(factory).__name__}"
            )
        check_count("n_workers", n_workers)
        check_count("parts_per_worker", parts_per_worker)
        for name, amount in (("cpus", cpus), ("gpus", gpus)):
            if not (math.isfinite(amount) and amount >= 0):
                raise ValueError(f"{name} must not be negative, got {amount!r}")
        self._ray, self._owns_cluster = connect(address, n_workers, cpus, gpus)
        # Ray ends workers itself where a node runs out of memory, and says so in its own way.
        errors = self._ray.exceptions
        self._lost = errors.RayActorError, errors.OutOfMemoryError
        self.n_workers = n_workers
        self.parts_per_worker = parts_per_worker
        self.on_failure = float(on_failure)
        # What a worker that dies was at is tried once more, in its successor.
        options = {"max_restarts": -1, "max_task_retries": _TRIES - 1}
        actor = self._ray.remote(num_cpus=cpus, num_gpus=gpus, **options)(_Worker)
        self._make = partial(actor.remote, factory, max(round(cpus), 1))
        self._workers: list[Any] = []
        try:
            self.group_size, self._by_runs = self._ask_one("grouping")
        except BaseException:
            self.close()
            raise
        self.compares = self._by_runs or self.group_size is not None

    def check(self, compositions: CrystalBatch) -> None:
        """Raise what the reward raises if it cannot judge structures of these compositions."""
        self._ask_one("check", on_cpu(compositions))

    def __call__(self, batch: CrystalBatch) -> RewardResult:
        """Judge all structures.

        Raises:
            Exception: what the reward raises.
            WorkersLostError: no structure has a result.
        """
        begins = runs(batch) if self._by_runs else np.ones(len(batch), dtype=bool)
        if self.group_size is not None:
            begins &= np.arange(len(batch)) % self.group_size == 0
        return self._judge(batch, begins, None)

    def in_groups(self, batch: CrystalBatch, group_size: int) -> RewardResult:
        """Judge all structures; groups are cut only where the reward does not compare in them."""
        begins = np.arange(len(batch)) % (group_size if self.compares else 1) == 0
        return self._judge(batch, begins, group_size)

    def close(self) -> None:
        """End the workers, and the cluster if this reward has started it."""
        self._stop()
        if self._owns_cluster:
            self._ray.shutdown()
            self._owns_cluster = False

    # ----------------------------------------------------------------------------------------------

    def _judge(
        self, batch: CrystalBatch, begins: np.ndarray, group_size: int | None
    ) -> RewardResult:
        """Judge structures in parts that begin at some of the places, a mask of shape (B,)."""
        if not len(batch):
            return RewardResult(torch.zeros(0, dtype=torch.float64))
        batch = on_cpu(batch)
        parts = cut(batch, self.n_workers * self.parts_per_worker, begins)
        results: list[RewardResult | None] = [None] * len(parts)
        waiting = deque(range(len(parts)))
        busy: dict[Any, tuple[int, Any]] = {}
        try:
            idle = list(self._started(min(self.n_workers, len(parts))))
            while waiting or busy:
                while waiting and idle:
                    part, worker = waiting.popleft(), idle.pop()
                    busy[worker.judge.remote(batch[parts[part]], group_size)] = part, worker
                (future,), _ = self._ray.wait(list(busy), num_returns=1)
                part, worker = busy.pop(future)
                idle.append(worker)
                try:
                    results[part] = self._get(future)
                except self._lost:
                    pass  # lost, as often as it was tried
        except BaseException:
            self._stop()
            raise
        if all(result is None for result in results):
            raise WorkersLostError(
                f"the workers of all {len(batch)} structures were lost {_TRIES} times; Ray's logs "
                "say why"
            )
        sizes = [part.stop - part.start for part in parts]
        result = joined(results, sizes, self.on_failure)
        if None in results:
            result.info["lost"] = np.repeat([part is None for part in results], sizes)
        return result

    def _ask_one(self, question: str, *content: Any) -> Any:
        """What a worker answers."""
        worker, *_ = self._started(1)
        try:
            return self._get(getattr(worker, question).remote(*content))
        except self._lost as error:
            raise WorkersLostError(f"a Ray worker does not stay alive: {error}") from error

    def _started(self, n: int) -> list[Any]:
        """Workers, of which there are at least n."""
        self._workers += [self._make() for _ in range(n - len(self._workers))]
        return self._workers

    def _stop(self) -> None:
        while self._workers:
            self._ray.kill(self._workers.pop())

    def _get(self, future: Any) -> Any:
        """The answer; errors are raised as the worker raised them."""
        try:
            return self._ray.get(future)
        except self._ray.exceptions.RayTaskError as error:
            raise getattr(error, "cause", None) or error from error


class _Worker:
    """What runs on the cluster."""

    def __init__(self, factory: Callable[[], Any], threads: int) -> None:
        torch.set_num_threads(threads)
        self._factory = factory

    @cached_property
    def _reward(self) -> Reward:
        # Not when the actor is made: the reward's own errors arrive from a call only.
        return as_reward(self._factory())

    def grouping(self) -> tuple[int | None, bool]:
        if self._reward.compares_all:
            raise ValueError(
                f"factory must make a reward that can be asked in parts, but "
                f"{type(self._reward).__name__} compares all structures that are judged together; "
                "make a RayReward of the part that takes long"
            )
        return grouping(self._reward)

    def check(self, compositions: CrystalBatch) -> None:
        self._reward.check(compositions)

    def judge(self, batch: CrystalBatch, group_size: int | None) -> RewardResult:
        if group_size is None:
            return self._reward(batch)
        return self._reward.in_groups(batch, group_size)
