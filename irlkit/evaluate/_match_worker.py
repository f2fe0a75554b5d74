"""What a process that matches structures does; loads neither torch nor the rest of the package.

Messages are pickles on standard input and output, tuples whose first entry names them:

- in: ("settings", dictionary) first, then ("references", key, arrays), ("drop", key) and
  ("match", key, items);
- out: ("ready",), then ("results", [(index, displacements, status), ...]) for each "match", and
  ("alive",) whenever one of its items that is matched alone begins.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from pymatgen.core import Lattice

from irlkit.evaluate.matcher import PreparedStructure, RmsdMatcher
from irlkit.utils.system import TimeUp, time_limit

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Atomic numbers (n,), fractional coordinates (n, 3), cell (3, 3)."""

Item = tuple[int, np.ndarray, np.ndarray, np.ndarray, Sequence[int]]
"""Index that the result is to have, numbers, pos and cell of a structure, its references."""

Result = tuple[int, np.ndarray, int]
"""Index, displacement to each reference (nan without a match), status."""

DONE, TIMED_OUT, FAILED = 0, 1, 2
"""Status of an item: matched or not; stopped at the time limit; stopped by an error."""


_ERRORS = (ArithmeticError, ValueError, np.linalg.LinAlgError, MemoryError)


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

    def match(
        self, key: int, items: Sequence[Item], alive: Callable[[], None] = lambda: None
    ) -> list[Result]:
        """Displacements of some structures, together first, one by one if that takes too long.

        Args:
            key: Of the references.
            items: Structures, faster where those of one composition come together.
            alive: Called when an item that is matched alone begins.
        """
        # References are prepared on their own time: they are no fault of a structure.
        for item in items:
            for index in item[4]:
                self._reference(key, index)
        try:
            with time_limit(self.timeout):
                return self._match(key, items)
        except TimeUp:
            status = TIMED_OUT
        except _ERRORS:
            status = FAILED
        if len(items) == 1:
            return [(items[0][0], np.full(len(items[0][4]), np.nan), status)]
        results = []
        for item in items:
            alive()
            results += self.match(key, [item])
        return results

    def _match(self, key: int, items: Sequence[Item]) -> list[Result]:
        results: list[Result] = []
        # Structures of one composition with one reference: rows of results, places in them.
        groups: dict[tuple[int, bytes], list[tuple[int, int, PreparedStructure]]] = {}
        targets: dict[int, PreparedStructure] = {}
        for index, numbers, pos, cell, references in items:
            result, status = np.full(len(references), np.nan), DONE
            found = [(k, self._reference(key, i)) for k, i in enumerate(references)]
            usable = [(k, reference) for k, reference in found if reference is not None]
            lattice = Lattice(cell)
            try:
                possible = self.matcher.possible(numbers, lattice, [entry[1] for entry in usable])
                if possible:
                    structure = self.matcher.prepare(numbers, pos, lattice)
                    for k, reference in (usable[i] for i in possible):
                        targets[references[k]] = reference
                        group = groups.setdefault((references[k], structure.numbers.tobytes()), [])
                        group.append((len(results), k, structure))
            except _ERRORS:
                # Lattices without a Niggli cell, for which pymatgen raises, match nothing.
                status = FAILED
            results.append((index, result, status))
        for (target, _), group in groups.items():
            values = self.matcher.rmsds([entry[2] for entry in group], targets[target])
            for (row, k, _), value in zip(group, values, strict=True):
                results[row][1][k] = value
        return results

    def _reference(self, key: int, index: int) -> PreparedStructure | None:
        prepared = self._prepared[key]
        if index not in prepared:
            try:
                numbers, pos, cell = self._arrays[key][index]
                prepared[index] = self.matcher.prepare(numbers, pos, Lattice(cell))
            except ValueError:
                prepared[index] = None
        return prepared[index]


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
                send("results", session.match(key, items, alive=lambda: send("alive")))
    except (EOFError, BrokenPipeError):
        pass
