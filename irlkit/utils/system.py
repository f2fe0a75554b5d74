"""What is asked of the operating system: whole files, time limits, cores and processes."""

from __future__ import annotations

import math
import multiprocessing
import os
import secrets
import signal
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file aside, sync it and rename it, so that `path` is never half-written.

    Missing folders are made. If anything fails, what was at `path` stays, and nothing else.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Random: in a folder that containers share, processes of one number may write at once.
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(aside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    if hasattr(os, "O_DIRECTORY"):  # elsewhere, folders cannot be synced
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            # The new name outlives a crash of the machine only once it is in the folder.
            os.fsync(folder)
        except OSError:  # on file systems that cannot; the file itself is whole in any case
            pass
        finally:
            os.close(folder)


class Closing:
    """A context manager that is closed at the end of its block."""

    def close(self) -> None:
        """End processes and free memory."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class FileWriter:
    """Writes files as `write_atomically` does, in a thread, one after the other.

    A context manager: at its end everything is on the disk.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="irlkit-writer")
        self._writing: Future[None] | None = None

    def write(self, path: str | os.PathLike[str], data: bytes) -> None:
        """Begin to write a file once the one before is on the disk.

        Raises:
            OSError: the one before could not be written.
        """
        self.wait()
        self._writing = self._thread.submit(write_atomically, path, data)

    def wait(self) -> None:
        """Return once everything is on the disk.

        Raises:
            OSError: it could not be written.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def __enter__(self) -> FileWriter:
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        try:
            self.wait()
        except OSError:
            if kind is None:  # else that error is the one to tell
                raise
        finally:
            self._thread.shutdown()


def make_folder(path: str | os.PathLike[str]) -> Path:
    """Make a folder for results now rather than after minutes of work, and return its path.

    Raises:
        ValueError: it cannot be made.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"out_dir: the folder {str(path)!r} cannot be made: {error}") from None
    return Path(path)


def remove_leftovers(folder: Path) -> None:
    """Remove what `write_atomically` has left aside in a folder because its process was killed."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """Make a folder and a file in it, and remove the file: to know before hours of work.

    Raises:
        OSError: the folder cannot be made, or nothing can be written in it (says why).
    """
    probe = folder / f".probe.{secrets.token_hex(4)}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"?")
        probe.unlink()
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(
            error.errno, f"out_dir cannot be written to ({reason})", str(folder)
        ) from error


def available_cores() -> int:
    """CPU cores that this process may use, which can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processes_possible() -> bool:
    """Return whether worker processes can be started; warn where what they share is missing."""
    try:
        multiprocessing.get_context("spawn").Lock()
    except (ImportError, OSError) as error:
        warnings.warn(
            f"worker processes need shared memory (/dev/shm), which is missing here ({error}); "
            "all is done in this process, where time limits hold in the main thread only",
            stacklevel=2,
        )
        return False
    return True


class TimeUp(BaseException):
    """The time limit of a block has passed; no handler on the way may swallow it."""


@contextmanager
def time_limit(seconds: float, *, busy: bool = False) -> Iterator[None]:
    """Raises `TimeUp` in its block after some seconds (never for math.inf), where the system can.

    With `busy`, seconds count in which this process computes: others do not change what is done.

    Signals reach the main thread only, and Windows has no timers: elsewhere the block runs on, and
    a limit is kept only by another process.
    """
    if (
        math.isinf(seconds)
        or not hasattr(signal, "setitimer")
        or threading.current_thread() is not threading.main_thread()
    ):
        yield
        return

    def stop(number: int, frame: Any) -> None:
        raise TimeUp

    number, timer = signal.SIGALRM, signal.ITIMER_REAL
    if busy:
        number, timer = signal.SIGPROF, signal.ITIMER_PROF
    handler = signal.signal(number, stop)
    previous, _ = signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        signal.setitimer(timer, 0)
        signal.signal(number, handler)
        if previous:
            signal.setitimer(timer, previous)
