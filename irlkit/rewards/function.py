"""Any function as a reward."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from irlkit.crystals import CrystalBatch
from irlkit.rewards._parts import joined, on_cpu
from irlkit.rewards.base import ReturnError, Reward, RewardResult, ask
from irlkit.utils.checks import checked
from irlkit.utils.workers import WorkerPool


class FunctionReward(Reward):
    """Rewards from a function of structures: f(batch) gives one number per structure.

    The function is given copies: it can change no structure and, in this process, none of torch's
    settings. What goes wrong, and what happens then:

    - The function returns a value that is not finite: the structure has failed.
    - It raises: its structures are judged again one by one, and those for which it raises have
      failed. If it raises for all of them, the fault is the function's, and the error is raised.
    - It takes too long: with `timeout`, structures are judged one by one, and those that take
      longer have failed. Without, nothing ends the call but an interrupt.

    Structures that have failed get `on_failure`. While that is nan, a trainer stops with an error
    that names them.

    The result's `info` holds `failed`, `error` (why, in words, if the function raised or took too
    long), and what the function itself returns as `info`; only that, if it returns any and nothing
    has failed.

    >>> reward = FunctionReward(lambda batch: batch.n_atoms)
    >>> reward(CrystalBatch.from_formulas(["Na1 Cl1", "C1"])).values
    tensor([2., 1.], dtype=torch.float64)

    Args:
        function: of a `CrystalBatch` of B structures; returns B numbers (tensor, array, list or
            column of a table, higher is better; None is nan), or an object with `values` and `info`
            like `RewardResult`.
        on_failure: reward of structures that have failed.
        timeout: seconds that a structure may take. In this process it holds in the main thread,
            on systems with timers, and for code that returns to Python now and then; in worker
            processes it always holds.
        n_workers: worker processes to judge structures in, one by one; 0 for this process. What
            the function needs is sent to them. With `timeout=None`, structures have an hour there.

    Raises:
        ValueError: the time limit is not positive, n_workers is negative, or the function cannot
            be sent to worker processes.
    """

    @checked
    def __init__(
        self,
        function: Callable[[CrystalBatch], Any],
        *,
        on_failure: float = math.nan,
        timeout: float | None = None,
        n_workers: int = 0,
    ) -> None:
        if timeout is not None and not (math.isfinite(timeout) and timeout > 0):
            raise ValueError(f"timeout must be positive, in seconds, or None, got {timeout}")
        self.function = function
        self.on_failure = float(on_failure)
        self.timeout = timeout
        limit = timeout or (3600.0 if n_workers else math.inf)
        self._pool = WorkerPool(partial(partial, ask, function), n_workers, limit)
        self.limits_time_here = timeout is not None and not n_workers

    @checked
    def __call__(self, batch: CrystalBatch) -> RewardResult:
        """Judge all structures.

        Raises:
            ValueError: the function returns something else than numbers, or another number of them.
            Exception: what the function raises, if it does so for all structures.
        """
        if not len(batch):
            return RewardResult(torch.zeros(0, dtype=torch.float64))
        error: Exception | None = None
        if self.timeout is None and not self._pool.n_workers:
            try:
                result = ask(self.function, batch)
            except ReturnError:  # whatever the structures are
                raise
            except Exception as raised:
                error = raised
            else:
                if result.info and bool(result.values.isfinite().all()):
                    return result
                return self._with_failures(result, np.full(len(batch), "", dtype=object))
        return self._one_by_one(batch, error)

    def _one_by_one(self, batch: CrystalBatch, error: Exception | None) -> RewardResult:
        outcomes = self._pool.map(list(on_cpu(batch) if self._pool.n_workers else batch))
        errors = np.array([outcome.error or "" for outcome in outcomes], dtype=object)
        if (errors != "").all():
            # Of an error in a worker, only the words arrive.
            error = error or next((o.exception for o in outcomes if o.exception), None)
            if error is not None and math.isnan(self.on_failure):
                raise error
            warnings.warn(
                f"the reward function failed for all {len(batch)} structures: {errors[0]}",
                stacklevel=4,
            )
        result = joined([outcome.value for outcome in outcomes], [1] * len(batch))
        return self._with_failures(result, errors)

    def _with_failures(self, result: RewardResult, errors: np.ndarray) -> RewardResult:
        failed = ~torch.isfinite(result.values)
        values = torch.where(failed, self.on_failure, result.values)
        if math.isnan(self.on_failure):
            values = result.values
        return RewardResult(values, {**result.info, "failed": failed.numpy(), "error": errors})

    def close(self) -> None:
        """End the worker processes, if there are any."""
        self._pool.close()


def as_reward(reward: Reward | Callable[[CrystalBatch], Any]) -> Reward:
    """Return functions (methods, partials) as a `FunctionReward`, and a `Reward` as it is.

    Other objects that can be called are rewards of their own making: what they raise is raised.

    Raises:
        ValueError: not callable.
    """
    if isinstance(reward, Reward):
        return reward
    if not callable(reward):
        raise ValueError(f"a reward must be callable, got {type(reward).__name__}")
    if inspect.isroutine(reward) or isinstance(reward, partial):
        return FunctionReward(reward)
    return _OwnReward(reward)


class _OwnReward(Reward):
    def __init__(self, judge: Callable[[CrystalBatch], Any]) -> None:
        self._judge = judge

    def __call__(self, batch: CrystalBatch) -> RewardResult:
        return ask(self._judge, batch)
