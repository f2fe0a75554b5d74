"""What a process that matches structures does; loads neither torch nor the rest of the package.

Messages are pickles on standard input and output, tuples whose first entry names them:

- in: ("references", key, arrays), ("drop", key), ("match", key, items), each item being
  (index, numbers, pos, cell, reference indices); the first message is ("settings", dictionary);
- out: ("ready",), then ("result", index, displacements, status) for each item, in order.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from irlkit.matcher import PreparedStructure, RmsdMatcher

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Atomic numbers (n,), fractional coordinates (n, 3), cell (3, 3)."""

DONE, TIMED_OUT, FAILED = 0, 1, 2
"""Status of an item: matched or not; stopped at the time limit; stopped by an error."""


class MatchSession:
    """Matches structures with references that are prepared when they are first needed.

    Args:
        timeout: Seconds that all matchings of one structure may take together.
        tolerances: Of `RmsdMatcher`.
    """

    def __init__(self, timeout: float, **tolerances: float) -> None:
        self.timeout = timeout
        self.matcher = RmsdMatcher(**tolerances)
        self._arrays: dict[int, Sequence[Arrays]] = {}
        self._prepared: dict[int, dict[int, PreparedStructure | None]] = {}

    def add(self, key: int, references: Sequence[Arrays]) -> None:
        """Keeps references under a key."""
        self._arrays[key], self._prepared[key] = references, {}

    def drop(self, key: int) -> None:
        """Forgets references."""
        del self._arrays[key], self._prepared[key]

    def match(self, key: int, arrays: Arrays, references: Sequence[int]) -> tuple[np.ndarray, int]:
        """Displacements between one structure and references, nan without a match, and status."""
        result = np.full(len(references), np.nan)
        try:
            # A fresh reference is prepared on its own time: it is no fault of the structure.
            prepared = [self._reference(key, i) for i in references]
            usable = [k for k, entry in enumerate(prepared) if entry is not None]
            with _time_limit(self.timeout):
                result[usable] = self.matcher.rmsds(*arrays, [prepared[k] for k in usable])
        except _TimeUp:
            return result, TIMED_OUT
        except (ArithmeticError, ValueError, np.linalg.LinAlgError, MemoryError):
            # Lattices without a Niggli cell, for which pymatgen raises, match nothing.
            return result, FAILED
        return result, DONE

    def _reference(self, key: int, index: int) -> PreparedStructure | None:
        prepared = self._prepared[key]
        if index not in prepared:
            try:
                prepared[index] = self.matcher.prepare(*self._arrays[key][index])
            except ValueError:
                prepared[index] = None
        return prepared[index]


class _TimeUp(BaseException):
    """The time limit of a structure has passed; no handler on the way may swallow it."""


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raises `_TimeUp` in its block after some seconds, where the system can.

    Signals reach the main thread only, and Windows has no timers: elsewhere the block runs on, and
    the limit is kept by the process that waits for this one.
    """
    if not hasattr(signal, "setitimer") or (
        threading.current_thread() is not threading.main_thread()
    ):
        yield
        return

    def stop(number: int, frame: Any) -> None:
        raise _TimeUp

    handler = signal.signal(signal.SIGALRM, stop)
    previous, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if previous:
            signal.setitimer(signal.ITIMER_REAL, previous)


def serve() -> None:
    """Answers messages until standard input ends."""
    # Ctrl-C in a notebook is meant for the kernel alone.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.simplefilter("ignore")
    np.seterr(all="ignore")
    source = sys.stdin.buffer
    # Prints of any library must not end up among the messages.
    sink = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)

    def send(*message: Any) -> None:
        pickle.dump(message, sink)
        sink.flush()

    try:
        session = MatchSession(**pickle.load(source)[1])
        send("ready")
        while True:
            kind, *content = pickle.load(source)
            if kind == "references":
                session.add(*content)
            elif kind == "drop":
                session.drop(*content)
            else:
                key, items = content
                for index, numbers, pos, cell, references in items:
                    result, status = session.match(key, (numbers, pos, cell), references)
                    send("result", index, result, status)
    except (EOFError, BrokenPipeError):
        pass
