"""Matching of many generated structures with references, in processes that live as long as a run.

The workers are plain Python processes that import nothing of the caller's main module: they start
the same way from a notebook, from papermill and from a script without a main guard. References are
sent to each worker once and prepared there when first needed.
"""

from __future__ import annotations

import collections
import itertools
import math
import os
import pickle
import queue
import subprocess
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from irlkit.crystals import CrystalBatch, validity
from irlkit.evaluate._match_worker import (
    DONE,
    FAILED,
    TIMED_OUT,
    Arrays,
    Item,
    MatchSession,
    Result,
)
from irlkit.utils.checks import checked
from irlkit.utils.system import available_cores

if TYPE_CHECKING:
    from pymatgen.core import Structure

_START_SECONDS = 120.0
"""Time a worker has to start, of which it needs a second or two."""
_GRACE_SECONDS = 2.0
"""Time beyond the limit after which a worker that does not stop by itself is killed."""
_MAX_CRASHES = 10
"""Ends of workers that a call survives; one bad structure ends two."""
_CHUNK = 16
"""Structures matched together at most."""
_WORKER_SETUP = ""
"""Code that a worker runs first, for tests."""
_keys = itertools.count()


@dataclass(frozen=True)
class References:
    """Structures to match with, as `MatchPool.prepare` returns them.

    Attributes:
        key: Number that the workers know them by.
        arrays: (numbers, pos, cell) of each structure.
    """

    key: int
    arrays: tuple[Arrays, ...]

    def __len__(self) -> int:
        return len(self.arrays)


@dataclass(frozen=True)
class Matches:
    """Displacements of pairs, and what became of the generated structures.

    Attributes:
        rmsd: Root-mean-square displacement over (V/N)^(1/3), float64, shape (n_pairs,), nan where
            the pair does not match or its structure is invalid, timed out or failed.
        valid: False for structures that were not matched because `validity.check` rejects them,
            shape (n_generated,).
        timed_out: True for structures whose matching took too long, shape (n_generated,).
        failed: True for structures whose matching ended with an error, shape (n_generated,).
    """

    rmsd: np.ndarray
    valid: np.ndarray
    timed_out: np.ndarray
    failed: np.ndarray


class MatchPool:
    """Matches structures in parallel, with the results of pymatgen's `StructureMatcher`.

    Args:
        n_workers: Processes; None for one per available core, 0 to match in this process.
        timeout: Seconds that the matchings of one structure may take together; a structure that
            takes longer counts as unmatched and is reported. In this process (`n_workers=0`) the
            limit holds in the main thread on systems with timers.
        stol: Largest displacement of a match, in units of (V/N)^(1/3).
        ltol: Relative tolerance of lattice vector lengths.
        angle_tol: Tolerance of lattice angles, degrees.

    Attributes:
        n_timeouts: Structures that reached the time limit so far.

    Raises:
        ValueError: n_workers is negative, or the timeout or a tolerance is not positive.
    """

    @checked
    def __init__(
        self,
        n_workers: int | None = None,
        timeout: float = 10.0,
        stol: float = 0.5,
        ltol: float = 0.3,
        angle_tol: float = 10.0,
    ) -> None:
        if n_workers is None:
            n_workers = available_cores()
        if n_workers < 0:
            raise ValueError(
                f"n_workers must be 0 (match in this process) or more, got {n_workers}"
            )
        if not (math.isfinite(timeout) and timeout > 0):
            raise ValueError(f"timeout must be positive, in seconds, got {timeout}")
        self.n_workers = n_workers
        self.timeout = float(timeout)
        self.n_timeouts = 0
        self._settings: dict[str, float] = {
            "timeout": self.timeout,
            "stol": stol,
            "ltol": ltol,
            "angle_tol": angle_tol,
        }
        self._session = MatchSession(**self._settings)
        self._references: dict[int, References] = {}
        self._workers: list[_Worker] = []
        self._inbox: queue.SimpleQueue[tuple[_Worker, tuple[Any, ...] | None]] = queue.SimpleQueue()
        self._finalizer = weakref.finalize(self, _stop, self._workers)

    @property
    def tolerances(self) -> dict[str, float]:
        """stol, ltol and angle_tol."""
        return {name: value for name, value in self._settings.items() if name != "timeout"}

    @property
    def stol(self) -> float:
        """Largest displacement of a match, which unmatched structures count with."""
        return self._session.matcher.stol

    def __enter__(self) -> MatchPool:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the worker processes; the next matching starts new ones."""
        _stop(self._workers)

    @checked
    def prepare(self, references: CrystalBatch | Sequence[Structure]) -> References:
        """Hands references over for matching; each worker receives them once.

        Raises:
            ValueError: a structure has a cell that is not finite or has no volume.
        """
        batch = _as_batch(references)
        volume = validity.check(batch).volume
        bad = np.flatnonzero(~(volume > 0))
        if len(bad):
            raise ValueError(
                f"references must have finite cells with a volume, but those at {bad[:10].tolist()}"
                f" have not; remove them from the data set"
            )
        prepared = References(next(_keys), tuple(_arrays(batch)))
        self._references[prepared.key] = prepared
        self._session.add(prepared.key, prepared.arrays)
        return prepared

    def release(self, references: References) -> None:
        """Forgets references that are not needed any more, here and in the workers."""
        del self._references[references.key]
        self._session.drop(references.key)
        for worker in self._workers:
            worker.drop(references.key)

    @checked
    def rmsd(
        self,
        generated: CrystalBatch | Sequence[Structure],
        references: References | CrystalBatch | Sequence[Structure],
        pairs: np.ndarray | Sequence[Any],
    ) -> np.ndarray:
        """Displacements of pairs, shape (n_pairs,), nan where unmatched; see `match`."""
        return self.match(generated, references, pairs).rmsd

    @checked
    def match(
        self,
        generated: CrystalBatch | Sequence[Structure],
        references: References | CrystalBatch | Sequence[Structure],
        pairs: np.ndarray | Sequence[Any],
    ) -> Matches:
        """Matches pairs of generated structures and references.

        Structures that `validity.check` rejects never reach the matcher. The outcome of a pair
        depends on no other pair.

        Args:
            generated: Structures to judge.
            references: From `prepare` where they serve again; else structures.
            pairs: Indices (generated, reference), shape (n_pairs, 2).

        Raises:
            ValueError: pairs has another shape or an index out of range, or references come from
                another pool.
            RuntimeError: worker processes cannot be started or keep ending.
        """
        batch = _as_batch(generated)
        if not isinstance(references, References):
            temporary = self.prepare(references)
            try:
                return self.match(batch, temporary, pairs)
            finally:
                self.release(temporary)
        if self._references.get(references.key) is not references:
            raise ValueError(
                "references were prepared by another pool or released; call prepare of this pool"
            )
        try:
            pairs = np.asarray(pairs) if len(pairs) else np.empty((0, 2), dtype=np.int64)
        except ValueError as error:
            raise ValueError(f"pairs must be an array of integers: {error}") from error
        if pairs.ndim != 2 or pairs.shape[1] != 2 or not np.issubdtype(pairs.dtype, np.integer):
            raise ValueError(
                "pairs must be integers (generated, reference) of shape (n_pairs, 2), "
                f"got {pairs.dtype} of shape {pairs.shape}"
            )
        for column, (name, size) in enumerate(
            (("generated", len(batch)), ("references", len(references)))
        ):
            outside = (pairs[:, column] < 0) | (pairs[:, column] >= size)
            if outside.any():
                raise ValueError(
                    f"pairs must hold indices below {size} for {name}, "
                    f"got {pairs[outside, column][:5].tolist()}"
                )
        valid = validity.check(batch).valid
        rmsd = np.full(len(pairs), np.nan)
        status = np.full(len(batch), DONE)
        # Pairs of one structure go together, so that it is reduced once.
        used = np.flatnonzero(valid[pairs[:, 0]])
        used = used[np.argsort(pairs[used, 0], kind="stable")]
        indices, begins = np.unique(pairs[used, 0], return_index=True)
        rows = dict(zip(indices.tolist(), np.split(used, begins[1:]), strict=False))
        arrays = _arrays(batch)
        items = [(i, *arrays[i], pairs[rows[i], 1].tolist()) for i in rows]
        # Compositions together, which are matched together; large ones first, so that the last
        # chunks are short.
        items.sort(key=lambda item: (-len(item[1]) * len(item[4]), item[1].tobytes()))
        size = max(1, min(_CHUNK, len(items) // (2 * max(1, self.n_workers))))
        chunks = [items[begin : begin + size] for begin in range(0, len(items), size)]
        match_all = self._in_workers if self.n_workers else self._in_process
        for index, result, outcome in match_all(references, chunks):
            rmsd[rows[index]], status[index] = result, outcome
        timed_out = status == TIMED_OUT
        if timed_out.any():
            self.n_timeouts += int(timed_out.sum())
            warnings.warn(
                f"{timed_out.sum()} structures count as unmatched because their matching took "
                f"more than {self.timeout} s: numbers {np.flatnonzero(timed_out)[:10].tolist()}",
                stacklevel=2,
            )
        return Matches(rmsd, valid, timed_out, status == FAILED)

    def _in_process(self, references: References, chunks: list[list[Item]]) -> list[Result]:
        with np.errstate(all="ignore"):
            return [
                result for chunk in chunks for result in self._session.match(references.key, chunk)
            ]

    def _in_workers(self, references: References, chunks: list[list[Item]]) -> list[Result]:
        n_items = sum(map(len, chunks))
        waiting = collections.deque(chunks)
        results: list[Result] = []
        crashes = 0
        try:
            self._fill(references, waiting)
            while len(results) < n_items:
                try:
                    worker, message = self._inbox.get(timeout=0.5)
                except queue.Empty:
                    # Only now: an answer that has arrived but was not read is no delay.
                    for worker in list(self._workers):
                        if worker.stuck(self.timeout):
                            results += self._replace(worker, TIMED_OUT, waiting)
                else:
                    if worker not in self._workers:
                        continue  # The last words of one that was replaced.
                    if message is None:
                        crashes += 1
                        results += self._replace(worker, FAILED, waiting)
                        if crashes > _MAX_CRASHES:
                            raise RuntimeError(
                                f"worker processes for matching ended {crashes} times in one call "
                                f"(the last with exit status {worker.status()}); is there enough "
                                "memory? Use n_workers=0 to match in this process"
                            )
                    else:
                        results += worker.take(message)
                self._fill(references, waiting)
        except BaseException:
            # Whatever is still under way must not disturb the next call.
            for worker in [worker for worker in self._workers if worker.pending]:
                self._workers.remove(worker)
                worker.kill()
            raise
        return results

    def _fill(self, references: References, waiting: collections.deque[list[Item]]) -> None:
        """Gives each worker the chunk it works on and the next one; starts missing workers."""
        while waiting and len(self._workers) < self.n_workers:
            self._workers.append(_Worker(self._settings, self._inbox))
        for depth in range(2):
            for worker in self._workers:
                if waiting and len(worker.pending) <= depth:
                    worker.match(references, waiting.popleft())

    def _replace(
        self, worker: _Worker, status: int, waiting: collections.deque[list[Item]]
    ) -> list[Result]:
        """Removes a dead or hanging worker; gives the result of the structure to blame, if known.

        Where several were matched together, each comes back on its own.
        """
        self._workers.remove(worker)
        worker.kill()
        if not worker.started:
            raise RuntimeError(
                f"a worker process for matching did not start (exit status {worker.status()}); "
                "its messages are on the standard error stream. "
                "Use n_workers=0 to match in this process"
            )
        if not worker.pending:
            return []
        current, *others = worker.pending
        if len(current) > 1:
            waiting.extendleft(reversed([*([item] for item in current), *others]))
            return []
        waiting.extendleft(reversed(others))
        return [(current[0][0], np.full(len(current[0][4]), np.nan), status)]


class _Worker:
    """One process, the thread that reads its answers, and the chunks it has not answered yet."""

    def __init__(
        self,
        settings: dict[str, float],
        inbox: queue.SimpleQueue[tuple[_Worker, tuple[Any, ...] | None]],
    ) -> None:
        environment = dict(os.environ)
        # One thread each: the processes themselves are what runs in parallel.
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            environment[name] = "1"
        # The package without its __init__, which would load torch: a second and 200 MB each.
        code = (
            "import sys, types\n"
            f"sys.path[:] = {sys.path!r}\n"
            "sys.modules['irlkit'] = types.ModuleType('irlkit')\n"
            f"sys.modules['irlkit'].__path__ = [{os.path.dirname(os.path.dirname(__file__))!r}]\n"
            f"{_WORKER_SETUP}\n"
            "from irlkit.evaluate._match_worker import serve\n"
            "serve()"
        )
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        self.pending: collections.deque[list[Item]] = collections.deque()
        self.progress = time.monotonic()
        self.started = False
        self._known: set[int] = set()
        threading.Thread(target=self._read, args=(inbox,), daemon=True).start()
        self._send("settings", settings)

    def _read(self, inbox: queue.SimpleQueue[tuple[_Worker, tuple[Any, ...] | None]]) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as source:
            while True:
                try:
                    message = pickle.load(source)
                except (EOFError, OSError, ValueError, pickle.UnpicklingError):
                    inbox.put((self, None))
                    return
                inbox.put((self, message))

    def _send(self, *message: Any) -> None:
        assert self._process.stdin is not None
        try:
            pickle.dump(message, self._process.stdin)
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError):
            pass  # It has died, which the reading thread notices and reports.

    def match(self, references: References, chunk: list[Item]) -> None:
        """Sends a chunk, after the references if the worker does not have them."""
        if references.key not in self._known:
            self._send("references", references.key, references.arrays)
            self._known.add(references.key)
        if not self.pending:
            self.progress = time.monotonic()
        self.pending.append(chunk)
        self._send("match", references.key, chunk)

    def take(self, message: tuple[Any, ...]) -> list[Result]:
        """Notes that the worker is alive; returns the results if the message holds any."""
        self.progress = time.monotonic()
        self.started = True
        if message[0] != "results":
            return []
        self.pending.popleft()
        return message[1]

    def drop(self, key: int) -> None:
        """Lets the worker forget references."""
        if key in self._known:
            self._known.remove(key)
            self._send("drop", key)

    def stuck(self, timeout: float) -> bool:
        """True if the worker should have answered by now."""
        limit = timeout + _GRACE_SECONDS if self.started else _START_SECONDS
        return bool(self.pending) and time.monotonic() - self.progress > limit

    def status(self) -> int | None:
        """Exit status of the process, None while it runs."""
        return self._process.poll()

    def kill(self) -> None:
        """Ends the process at once."""
        self._process.kill()
        self._process.wait()
        if self._process.stdin is not None:
            try:
                self._process.stdin.close()
            except OSError:
                pass


def _stop(workers: list[_Worker]) -> None:
    while workers:
        workers.pop().kill()


def _as_batch(structures: CrystalBatch | Sequence[Structure]) -> CrystalBatch:
    if isinstance(structures, CrystalBatch):
        return structures
    return CrystalBatch.from_structures(structures, dtype=torch.float64)


def _arrays(batch: CrystalBatch) -> list[Arrays]:
    """(numbers, pos, cell) of each structure, float64."""
    if not len(batch):
        return []
    ends = np.cumsum(batch.n_atoms.cpu().numpy())[:-1]
    return list(
        zip(
            np.split(batch.species.cpu().numpy(), ends),
            np.split(batch.pos.detach().cpu().double().numpy(), ends),
            batch.cell.detach().cpu().double().numpy(),
            strict=True,
        )
    )
