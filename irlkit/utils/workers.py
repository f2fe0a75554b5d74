"""Foreign code in processes that can be stopped: it may fail, hang or end its process.

The pool is pebble's; its processes start as loky's do, without the caller's main module, so that
notebooks, papermill and scripts without a main guard are all the same. What a function in a
notebook consists of is sent along (cloudpickle).
"""

from __future__ import annotations

import math
import os
import pickle
import signal
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any

import cloudpickle
from loky.backend.context import LokyContext
from loky.backend.process import LokyProcess
from pebble import ProcessExpired, ProcessPool

from irlkit.utils.system import TimeUp, available_cores, processes_possible, time_limit

_START_SECONDS = 300.0
"""Time a worker has to start; the largest potentials take a minute to load."""
_MAX_LOSSES = 32
"""Workers that may be lost in a row before it is not the items' fault."""
# The processes themselves are what runs in parallel.
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


class WorkersLostError(RuntimeError):
    """Workers cannot be started or do not stay alive, whatever they are given."""


@dataclass(frozen=True)
class Outcome:
    """What became of an item.

    Attributes:
        value: the result, None if there is none.
        error: why there is none, in words; None if there is one.
        late: whether that is the time limit.
        lost: whether its process ended.
        exception: what was raised, if it was raised in this process.
    """

    value: Any = None
    error: str | None = None
    late: bool = False
    lost: bool = False
    exception: Exception | None = None


class WorkerPool:
    """Applies a function to items in worker processes, which stay open between calls.

    An item whose function raises, exceeds the time limit or ends its process has no result; every
    other item has its own.

    Args:
        factory: called once in each worker, returns the function.
        n_workers: processes; None for one per available core, 0 for this process, where a time
            limit holds in the main thread, on systems with timers.
        timeout: seconds that an item may take.

    Raises:
        ValueError: n_workers is negative, the time limit is not positive, or the factory cannot be
            sent to another process.
    """

    def __init__(
        self,
        factory: Callable[[], Callable[[Any], Any]],
        n_workers: int | None = None,
        timeout: float = math.inf,
    ) -> None:
        n_workers = available_cores() if n_workers is None else n_workers
        if n_workers < 0:
            raise ValueError(f"n_workers must be 0 (this process) or more, got {n_workers}")
        if not timeout > 0:
            raise ValueError(f"timeout must be positive, in seconds, got {timeout}")
        self.n_workers = n_workers
        self.timeout = float(timeout)
        self._factory = factory
        self._function: Callable[[Any], Any] | None = None
        self._sent = _pickled(factory) if n_workers else b""
        self._open: list[ProcessPool] = []
        self._opening = threading.Lock()
        self._in_flight: set[Future[bytes]] = set()
        self._finalizer = weakref.finalize(self, _stop, self._open)

    def map(self, items: Sequence[Any]) -> list[Outcome]:
        """Return the outcome of each item, in order; threads may call it at the same time.

        Raises:
            WorkersLostError: workers cannot be started, or were lost many times in a row.
        """
        if not items:
            return []
        pool = self._processes() if self.n_workers else None
        if pool is None:
            if self._function is None:
                self._function = self._factory()
            return [_apply(self._function, item, self.timeout) for item in items]
        futures: list[Future[bytes]] = []
        try:
            timeout = None if math.isinf(self.timeout) else self.timeout
            sent = ((pickle.dumps(item),) for item in items)
            futures += (pool.schedule(_work, one, timeout=timeout) for one in sent)
            self._in_flight.update(futures)
            return self._collect(futures)
        except BaseException:
            self.close()
            raise
        finally:
            self._in_flight.difference_update(futures)

    def close(self) -> None:
        """End the worker processes; the next call starts new ones."""
        _stop(self._open)

    def _processes(self) -> ProcessPool | None:
        """The pool, started if need be; None where the system has no semaphores for it."""
        with self._opening:
            if not self._open:
                if not processes_possible():
                    self.n_workers = 0
                    return None
                begin: Any = {"initializer": _start, "initargs": (self._sent, os.getpid())}
                self._open.append(ProcessPool(self.n_workers, context=_Context(), **begin))
            return self._open[0]

    def _collect(self, futures: Sequence[Future[bytes]]) -> list[Outcome]:
        outcomes: list[Outcome] = []
        losses, alive = 0, time.monotonic()
        for future in futures:
            # With a timeout, so that Ctrl-C gets through on every system.
            while not wait([future], timeout=0.5).done:
                now = time.monotonic()
                if any(other.running() for other in list(self._in_flight)):
                    alive = now
                elif now - alive > _START_SECONDS:
                    raise WorkersLostError(
                        f"worker processes did not start within {_START_SECONDS:g} s"
                    )
            outcome, lost = self._outcome(future)
            alive = time.monotonic()
            losses = losses + 1 if lost else 0
            if losses >= _MAX_LOSSES:
                raise WorkersLostError(
                    f"worker processes were lost {losses} times in a row: {outcome.error}"
                )
            outcomes.append(outcome)
        return outcomes

    def _outcome(self, future: Future[bytes]) -> tuple[Outcome, bool]:
        """What became of an item, and whether its worker was lost."""
        error = future.exception()
        if error is None:
            return pickle.loads(future.result()), False
        if isinstance(error, TimeoutError):
            return _late(self.timeout), False
        if isinstance(error, ProcessExpired):
            return Outcome(
                error=f"the worker process ended (exit status {error.exitcode})", lost=True
            ), True
        reason = error if isinstance(error, WorkersLostError) else "its process ended at once"
        raise WorkersLostError(f"a worker process did not start: {reason}") from error


class _Context(LokyContext):
    """How processes start."""

    def Process(self, **options: Any) -> LokyProcess:
        return LokyProcess(env=_ONE_THREAD, **options)


def _pickled(factory: Any) -> bytes:
    try:
        return cloudpickle.dumps(factory)
    except Exception as error:  # pickle raises whatever the object's own methods do
        raise ValueError(
            f"{factory!r} cannot be sent to a worker process: {error}. Let it make what it needs "
            "itself, or work in this process (n_workers=0)"
        ) from error


def _stop(pools: list[ProcessPool]) -> None:
    while pools:
        pool = pools.pop()
        pool.stop()
        pool.join()


def _late(seconds: float) -> Outcome:
    return Outcome(error=f"it took more than {seconds:g} s", late=True)


def _apply(function: Callable[[Any], Any], item: Any, seconds: float) -> Outcome:
    try:
        with time_limit(seconds):
            return Outcome(function(item))
    except TimeUp:
        return _late(seconds)
    except Exception as error:
        return Outcome(error=f"{type(error).__name__}: {error}", exception=error)


# --- what a worker does ---

_function: Callable[[Any], Any] | Exception


def _start(factory: bytes, parent: int) -> None:
    """Runs first in a worker, before anything heavy is imported."""
    global _function
    # As the system does, at once: pebble's own handler waits for compiled code to return.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.dup2(2, 1)  # What libraries print is no result of this program,
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # and its input is not theirs.
    sys.path[:] = [path for path in sys.path if isinstance(path, str)]
    warnings.simplefilter("ignore")
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    try:
        _function = pickle.loads(factory)()
    except Exception as error:
        _function = error


def _end_with(parent: int) -> None:
    """Ends this process with the one that started it, at most a second later."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def _work(item: bytes) -> bytes:
    if isinstance(_function, Exception):
        raise WorkersLostError(f"{type(_function).__name__}: {_function}")
    try:
        outcome = _apply(_function, pickle.loads(item), math.inf)
        return pickle.dumps(Outcome(outcome.value, outcome.error, outcome.late))
    except BaseException as error:  # such as SystemExit, or a result that cannot be sent
        return pickle.dumps(Outcome(error=f"{type(error).__name__}: {error}"))
