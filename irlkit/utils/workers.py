"""Foreign code in processes that can be stopped: it may fail, hang or end its process.

The workers are plain Python processes that import nothing of the caller's main module: they start
the same way from a notebook, from papermill and from a script without a main guard. They talk in
pickles over their standard streams, and read none but those of the process that started them.
"""

from __future__ import annotations

import collections
import math
import os
import pickle
import signal
import subprocess
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from irlkit.utils.system import available_cores

_START_SECONDS = 300.0
"""Time a worker has to start; the largest potentials take a minute to load."""
_CODE = """
import os, sys, types
sys.path[:] = {path!r}
package = sys.modules["irlkit"] = types.ModuleType("irlkit")
package.__path__ = [{package!r}]
def load(name):
    if name.startswith("__"):  # what libraries ask of every module
        raise AttributeError(name)
    with open(os.path.join({package!r}, "__init__.py"), encoding="utf-8") as file:
        exec(file.read(), package.__dict__)
    if name not in package.__dict__:
        raise AttributeError(name)
    return package.__dict__[name]
package.__getattr__ = load
from irlkit.utils.workers import serve
serve()
"""
"""What a process runs. The package's own __init__, which loads torch, is run when something needs
it: a calculator may not."""
_MAX_LOSSES = 32
"""Workers that may be lost in a row before it is not the items' fault."""


class WorkersLostError(RuntimeError):
    """Workers cannot be started or do not stay alive, whatever they are given."""


@dataclass(frozen=True)
class Outcome:
    """What became of an item.

    Attributes:
        value: The result, None if there is none.
        error: Why there is none, in words; None if there is one.
    """

    value: Any = None
    error: str | None = None


class WorkerPool:
    """Applies a function to items in worker processes, which stay open between calls.

    An item whose function raises, exceeds the time limit or ends its process has no result; every
    other item has its own.

    Args:
        factory: Called once in each worker, returns the function. Pickled, so it has to be
            importable: defined in a module, not in a notebook or a script.
        n_workers: Processes; None for one per available core.
        timeout: Seconds that an item may take.

    Raises:
        ValueError: n_workers < 1, the time limit is not positive, or the factory cannot be pickled
            or imported by another process.
    """

    def __init__(
        self,
        factory: Callable[[], Callable[[Any], Any]],
        n_workers: int | None = None,
        timeout: float = 60.0,
    ) -> None:
        n_workers = available_cores() if n_workers is None else n_workers
        if n_workers < 1:
            raise ValueError(f"n_workers must be at least 1, got {n_workers}")
        if not (math.isfinite(timeout) and timeout > 0):
            raise ValueError(f"timeout must be positive, in seconds, got {timeout}")
        self.n_workers = n_workers
        self.timeout = float(timeout)
        try:
            self._factory = pickle.dumps(factory)
        except Exception as error:  # pickle raises whatever the object's own methods do
            raise ValueError(
                f"a worker process cannot import {factory!r}: {error}. "
                "Define it in a module, not inside a function"
            ) from error
        if b"__main__" in self._factory:
            raise ValueError(
                f"a worker process cannot import {factory!r}, which is defined in a notebook or "
                "script: move it to a module of its own"
            )
        self._workers: list[_Worker] = []
        self._finalizer = weakref.finalize(self, _stop, self._workers)

    def map(self, items: Sequence[Any]) -> list[Outcome]:
        """The outcome of each item, in order.

        Raises:
            WorkersLostError: workers cannot be started, or were lost many times in a row.
        """
        call = _Call(collections.deque(enumerate(items)), [Outcome()] * len(items))
        while len(self._workers) < min(self.n_workers, len(items)):
            self._workers.append(_Worker(self._factory, self.timeout))
        threads = [
            threading.Thread(target=worker.work, args=(call,), daemon=True)
            for worker in self._workers[: len(items)]
        ]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                # With a timeout, so that Ctrl-C gets through on every system.
                while thread.is_alive():
                    thread.join(timeout=0.5)
        except BaseException:
            call.waiting.clear()
            self.close()
            raise
        if call.fatal is not None:
            self.close()
            raise WorkersLostError(call.fatal)
        return call.outcomes

    def close(self) -> None:
        """Ends the processes; the next call starts new ones."""
        _stop(self._workers)


@dataclass
class _Call:
    """Items that wait, outcomes so far, and what ended the call, shared by its threads."""

    waiting: collections.deque[tuple[int, Any]]
    outcomes: list[Outcome]
    losses: int = 0
    fatal: str | None = None

    def end(self, reason: str) -> None:
        self.fatal = reason
        self.waiting.clear()


class _Worker:
    """A place for one process, which is started when needed and replaced when lost."""

    def __init__(self, factory: bytes, timeout: float) -> None:
        self._factory = factory
        self._timeout = timeout
        self._process: subprocess.Popen[bytes] | None = None

    def work(self, call: _Call) -> None:
        """Takes items until none waits."""
        while True:
            try:
                index, item = call.waiting.popleft()
            except IndexError:
                return
            if self._process is None:
                error = self._start()
                if error is not None:
                    call.end(f"a worker process did not start: {error}")
                    return
            answer = self._ask(item, self._timeout)
            if isinstance(answer, Outcome):
                call.losses = 0
                call.outcomes[index] = answer
                continue
            call.outcomes[index] = Outcome(error=answer)
            call.losses += 1
            if call.losses >= _MAX_LOSSES:
                call.end(f"worker processes were lost {call.losses} times in a row: {answer}")
                return

    def _start(self) -> str | None:
        """Starts a process; returns what went wrong."""
        environment = dict(os.environ)
        # One thread each: the processes themselves are what runs in parallel.
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            environment[name] = "1"
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                _CODE.format(path=sys.path, package=os.path.dirname(os.path.dirname(__file__))),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        answer = self._ask(self._factory, _START_SECONDS)
        if not isinstance(answer, Outcome):
            return answer
        if answer.error is not None:
            self.kill()
        return answer.error

    def _ask(self, content: Any, seconds: float) -> Outcome | str:
        """The process's answer, or how it was lost."""
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        late = threading.Event()

        def stop() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(seconds, stop)
        timer.daemon = True
        timer.start()
        try:
            pickle.dump(content, process.stdin)
            process.stdin.flush()
            return Outcome(*pickle.load(process.stdout))
        except (EOFError, OSError, ValueError, pickle.UnpicklingError):
            self.kill()
            if late.is_set():
                return f"it took more than {seconds:g} s"
            return f"the worker process ended (exit status {process.returncode})"
        finally:
            timer.cancel()

    def kill(self) -> None:
        """Ends the process, if there is one."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except OSError:
                    pass


def _stop(workers: list[_Worker]) -> None:
    while workers:
        workers.pop().kill()


def serve() -> None:
    """What a worker does: answers messages until standard input ends."""
    # Ctrl-C in a notebook is meant for the kernel alone.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.simplefilter("ignore")
    source = sys.stdin.buffer
    # Prints of any library must not end up among the messages.
    sink = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    function: Callable[[Any], Any] | None = None
    try:
        while True:
            content = pickle.load(source)
            try:
                if function is None:
                    function = pickle.loads(content)()
                    answer = pickle.dumps((None, None))
                else:
                    answer = pickle.dumps((function(content), None))
            except Exception as error:
                answer = pickle.dumps((None, f"{type(error).__name__}: {error}"))
            sink.write(answer)
            sink.flush()
    except (EOFError, BrokenPipeError):
        pass
