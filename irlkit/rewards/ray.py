"""Rewards on the workers of a Ray cluster."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from irlkit.crystals import CrystalBatch
from irlkit.rewards.base import Reward, RewardResult
from irlkit.rewards.function import as_reward
from irlkit.rewards.parts import cut, grouping, joined, on_cpu, runs
from irlkit.utils.checks import check_count, checked
from irlkit.utils.cluster import connect, import_ray
from irlkit.utils.workers import WorkersLostError

_TRIES = 2
"""How often a part is tried whose workers are lost: a node may go; twice is no chance."""


class RayReward(Reward):
    """A reward that every worker has a copy of, and that a batch is shared among.

    Values and information are those of the reward itself, in order; energies of a batch may differ
    by rounding from those of its parts. Groups that the reward compares within (``EnergyReward``)
    stay whole. A worker that is free takes the next part, so that slow parts hold up nobody.

    The structures of a worker that dies (its node goes, or a structure ends its process) are given
    to another one, once. If that dies as well, they have no result: their reward is `on_failure`,
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
        self._ray = import_ray()
        self._owns_cluster = connect(self._ray, address, n_workers, cpus, gpus)
        self.n_workers = n_workers
        self.parts_per_worker = parts_per_worker
        self.on_failure = float(on_failure)
        self._factory = self._ray.put(factory)
        self._threads = max(round(cpus), 1)
        self._actor = self._ray.remote(num_cpus=cpus, num_gpus=gpus)(_Worker)
        self._idle: list[Any] = []
        self._starting: dict[Any, Any] = {}
        self._busy: dict[Any, tuple[int, Any]] = {}
        self._lost_starts = 0
        self._by_runs = True
        try:
            self._idle.append(self._take())
        except BaseException:
            self.close()
            raise

    def check(self, compositions: CrystalBatch) -> None:
        """Raise what the reward raises if it cannot judge structures of these compositions."""
        compositions = on_cpu(compositions)
        for attempt in range(_TRIES):
            actor = self._take()
            try:
                self._get(actor.check.remote(compositions))
            except self._ray.exceptions.RayActorError as error:
                if attempt + 1 == _TRIES:
                    raise WorkersLostError(f"a Ray worker does not stay alive: {error}") from error
            else:
                self._idle.append(actor)
                return

    def __call__(self, batch: CrystalBatch) -> RewardResult:
        """Judge all structures.

        Raises:
            Exception: what the reward raises.
            WorkersLostError: no structure has a result, or no worker stays alive.
        """
        begins = runs(batch) if self._by_runs else np.ones(len(batch), dtype=bool)
        if self.group_size is not None:
            begins &= np.arange(len(batch)) % self.group_size == 0
        return self._judge(batch, begins, None)

    def in_groups(self, batch: CrystalBatch, group_size: int) -> RewardResult:
        """Judge all structures; groups are cut only where the reward does not compare in them."""
        compares = self._by_runs or self.group_size is not None
        begins = np.arange(len(batch)) % (group_size if compares else 1) == 0
        return self._judge(batch, begins, group_size)

    def _judge(
        self, batch: CrystalBatch, begins: np.ndarray, group_size: int | None
    ) -> RewardResult:
        """Judge structures in parts that begin at some of the places, a mask of shape (B,)."""
        if not len(batch):
            return RewardResult(torch.zeros(0, dtype=torch.float64))
        batch = on_cpu(batch)
        parts = cut(batch, self.n_workers * self.parts_per_worker, begins)
        results: list[RewardResult | None] = [None] * len(parts)
        attempts = [0] * len(parts)
        waiting = deque(range(len(parts)))
        try:
            while waiting or self._busy:
                n_alive = len(self._idle) + len(self._starting) + len(self._busy)
                self._start(min(self.n_workers, len(waiting) + len(self._busy)) - n_alive)
                while waiting and self._idle:
                    part, actor = waiting.popleft(), self._idle.pop()
                    attempts[part] += 1
                    self._busy[actor.judge.remote(batch[parts[part]], group_size)] = part, actor
                future = self._wait()
                if future is None:
                    continue
                part, actor = self._busy.pop(future)
                try:
                    results[part] = self._get(future)
                    self._idle.append(actor)
                except self._ray.exceptions.RayActorError:
                    if attempts[part] < _TRIES:
                        waiting.append(part)
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

    def close(self) -> None:
        """End the workers, and the cluster if this reward has started it."""
        self._stop()
        if self._owns_cluster:
            self._ray.shutdown()
            self._owns_cluster = False

    # ----------------------------------------------------------------------------------------------

    def _start(self, n: int) -> None:
        """Starts workers. They get no structures before they are ready, should there be no room."""
        for _ in range(n):
            actor = self._actor.remote(self._factory, self._threads)
            self._starting[actor.prepare.remote()] = actor

    def _stop(self) -> None:
        for actor in [*self._idle, *self._starting.values(), *(a for _, a in self._busy.values())]:
            self._ray.kill(actor)
        self._idle.clear()
        self._starting.clear()
        self._busy.clear()

    def _take(self) -> Any:
        """A worker that is ready, which is waited for."""
        while not self._idle:
            if not self._starting:
                self._start(1)
            self._wait()
        return self._idle.pop()

    def _wait(self) -> Any:
        """What a worker has judged; None if a new one is ready, or lost."""
        (future,), _ = self._ray.wait([*self._busy, *self._starting], num_returns=1)
        if future not in self._starting:
            return future
        actor = self._starting.pop(future)
        try:
            self.group_size, self._by_runs = self._get(future)
        except self._ray.exceptions.RayActorError as error:
            self._lost_starts += 1
            if self._lost_starts > _TRIES * self.n_workers:
                raise WorkersLostError(f"Ray workers do not start: {error}") from error
        else:
            self._lost_starts = 0
            self._idle.append(actor)
        return None

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

    def prepare(self) -> tuple[int | None, bool]:
        # Not when the actor is made: the reward's own errors arrive from a call only.
        self._reward = as_reward(self._factory())
        return grouping(self._reward)

    def check(self, compositions: CrystalBatch) -> None:
        self._reward.check(compositions)

    def judge(self, batch: CrystalBatch, group_size: int | None) -> RewardResult:
        if group_size is None:
            return self._reward(batch)
        return self._reward.in_groups(batch, group_size)
