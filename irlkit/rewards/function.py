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
from torch import Tensor

from irlkit.crystals import CrystalBatch
from irlkit.rewards.base import Reward, RewardResult
from irlkit.utils.checks import checked
from irlkit.utils.system import TimeUp, time_limit
from irlkit.utils.workers import Outcome, WorkerPool


class FunctionReward(Reward):
    """Rewards from a function of structures: f(batch) gives one number per structure.

    What goes wrong, and what happens then:

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

    Args:
        function: Of a `CrystalBatch` of B structures; returns B numbers (tensor, array or list,
            higher is better), or an object with `values` and `info` like `RewardResult`.
        on_failure: Reward of structures that have failed.
        timeout: Seconds that a structure may take. In this process it holds in the main thread,
            on systems with timers, and for code that returns to Python now and then; in worker
            processes it always holds.
        n_workers: Worker processes to judge structures in, one by one; 0 for this process. For
            worker processes the function has to be importable: defined in a module, not in a
            notebook or script. With `timeout=None`, structures have an hour there.

    Raises:
        ValueError: the time limit is not positive, n_workers is negative, or a worker process
            cannot import the function.
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
        if not callable(function):
            raise ValueError(f"function must be callable, got {type(function).__name__}")
        if timeout is not None and not (math.isfinite(timeout) and timeout > 0):
            raise ValueError(f"timeout must be positive, in seconds, or None, got {timeout}")
        if n_workers < 0:
            raise ValueError(f"n_workers must be 0 (this process) or more, got {n_workers}")
        self.function = function
        self.on_failure = float(on_failure)
        self.timeout = timeout
        self._pool = None
        if n_workers:
            self._pool = WorkerPool(partial(_prepare, function), n_workers, timeout or 3600.0)

    @property
    def limits_time_here(self) -> bool:
        """Whether there is a time limit, and no worker process that it holds in."""
        return self.timeout is not None and self._pool is None

    @checked
    def __call__(self, batch: CrystalBatch) -> RewardResult:
        """Judges all structures.

        Raises:
            ValueError: the function returns another number of values.
            Exception: what the function raises, if it does so for all structures.
        """
        if not len(batch):
            return RewardResult(torch.zeros(0, dtype=torch.float64))
        if self._pool is not None:
            # The error itself stays in the worker; only its words arrive.
            return self._join(batch, self._pool.map([_on_cpu(part) for part in batch]), None)
        if self.timeout is None:
            try:
                returned = self.function(batch)
            except Exception as error:
                return self._one_by_one(batch, error)
            values, info = _checked(returned, batch)
            if info and torch.isfinite(values).all():
                return RewardResult(values, info)
            return self._result(values, info, np.full(len(batch), "", dtype=object))
        return self._one_by_one(batch, None)

    def _one_by_one(self, batch: CrystalBatch, error: Exception | None) -> RewardResult:
        outcomes = []
        for part in batch:
            try:
                with time_limit(self.timeout or math.inf):
                    outcomes.append(Outcome(_judge(self.function, part)))
            except TimeUp:
                outcomes.append(Outcome(error=f"it took more than {self.timeout:g} s"))
            except Exception as own:
                error = own if error is None else error
                outcomes.append(Outcome(error=f"{type(own).__name__}: {own}"))
        return self._join(batch, outcomes, error)

    def _join(
        self, batch: CrystalBatch, outcomes: list[Outcome], error: Exception | None
    ) -> RewardResult:
        """One result from structures judged one by one."""
        errors = np.array([outcome.error or "" for outcome in outcomes], dtype=object)
        if (errors != "").all():
            if error is not None and math.isnan(self.on_failure):
                raise error
            warnings.warn(
                f"the reward function failed for all {len(batch)} structures: {errors[0]}",
                stacklevel=5,
            )
        parts = [outcome.value for outcome in outcomes]
        values = torch.cat(
            [torch.full((1,), math.nan).double() if part is None else part[0] for part in parts]
        )
        # Numbers are nan where there are none, all else is None.
        info = {}
        for name in {name: None for part in parts if part for name in part[1]}:
            column = [part[1].get(name, [None])[0] if part else None for part in parts]
            numeric = all(v is None or isinstance(v, int | float | np.number) for v in column)
            info[name] = np.array(column, dtype=np.float64 if numeric else object)
        return self._result(values, info, errors)

    def _result(
        self, values: Tensor, info: dict[str, np.ndarray], errors: np.ndarray
    ) -> RewardResult:
        failed = ~torch.isfinite(values)
        if not math.isnan(self.on_failure):
            values = torch.where(failed, self.on_failure, values)
        return RewardResult(values, {**info, "failed": failed.numpy(), "error": errors})

    def close(self) -> None:
        """Ends the worker processes, if there are any."""
        if self._pool is not None:
            self._pool.close()


def as_reward(reward: Reward | Callable[[CrystalBatch], Any]) -> Reward:
    """Functions (and methods, and their partials) as a `FunctionReward`; rewards as they are.

    Other objects that can be called are rewards of their own making: they return a `RewardResult`.

    Raises:
        ValueError: not callable.
    """
    if inspect.isroutine(reward) or isinstance(reward, partial):
        return FunctionReward(reward)
    if not callable(reward):
        raise ValueError(f"a reward must be callable, got {type(reward).__name__}")
    return reward  # type: ignore[return-value]


def _judge(
    function: Callable[[CrystalBatch], Any], batch: CrystalBatch
) -> tuple[Tensor, dict[str, np.ndarray]]:
    return _checked(function(batch), batch)


def _checked(returned: Any, batch: CrystalBatch) -> tuple[Tensor, dict[str, np.ndarray]]:
    """Values, float64 on the CPU, and information, from whatever a function returns."""
    info: dict[str, np.ndarray] = {}
    if not isinstance(returned, Tensor | np.ndarray) and hasattr(returned, "values"):
        info = {name: np.asarray(array) for name, array in (returned.info or {}).items()}
        returned = returned.values
    values = torch.as_tensor(returned).detach().to(device="cpu", dtype=torch.float64)
    if values.shape != (len(batch),):
        raise ValueError(
            f"the reward function must return one value per structure, shape ({len(batch)},), "
            f"got {tuple(values.shape)}"
        )
    return values, {name: array for name, array in info.items() if array.shape == values.shape}


def _prepare(
    function: Callable[[CrystalBatch], Any],
) -> Callable[[CrystalBatch], tuple[Tensor, dict[str, np.ndarray]]]:
    return partial(_judge, function)


def _on_cpu(batch: CrystalBatch) -> CrystalBatch:
    batch = batch.to("cpu")
    return batch.replace(pos=batch.pos.detach(), cell=batch.cell.detach())
