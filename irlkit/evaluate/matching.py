"""Matching of many generated structures with references, in several processes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from irlkit.crystals import CrystalBatch, validity
from irlkit.evaluate._match_worker import Arrays, Item, MatchSession
from irlkit.utils.checks import checked
from irlkit.utils.system import Closing
from irlkit.utils.workers import WorkerPool

if TYPE_CHECKING:
    from pymatgen.core import Structure

_GRACE_SECONDS = 2.0
"""Time beyond the limit after which a worker that does not stop by itself is killed."""
_CHUNK = 16
"""Structures matched together at most."""


@dataclass(frozen=True)
class References:
    """Structures to match with, as `MatchPool.prepare` returns them.

    Attributes:
        arrays: (numbers, pos, cell) of each structure.
    """

    arrays: tuple[Arrays, ...]

    def __len__(self) -> int:
        return len(self.arrays)


@dataclass(frozen=True)
class Matches:
    """Displacements of pairs, and what became of the generated structures.

    Attributes:
        rmsd: root-mean-square displacement over (V/N)^(1/3), float64, shape (n_pairs,), nan where
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


class MatchPool(Closing):
    """Matches structures in parallel, with the results of pymatgen's `StructureMatcher`.

    Args:
        n_workers: processes; None for one per available core, 0 to match in this process.
        timeout: seconds that the matchings of one structure may take together; a structure that
            takes longer counts as unmatched and is reported. In this process (`n_workers=0`) the
            limit holds in the main thread on systems with timers.
        stol: largest displacement of a match, in units of (V/N)^(1/3).
        ltol: relative tolerance of lattice vector lengths.
        angle_tol: tolerance of lattice angles, degrees.

    Attributes:
        tolerances: stol, ltol and angle_tol.
        n_timeouts: structures that reached the time limit so far.

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
        if not (math.isfinite(timeout) and timeout > 0):
            raise ValueError(f"timeout must be positive, in seconds, got {timeout}")
        self.timeout = float(timeout)
        self.tolerances = {"stol": stol, "ltol": ltol, "angle_tol": angle_tol}
        self.n_timeouts = 0
        MatchSession(self.timeout, **self.tolerances)  # Which checks them.
        factory = partial(MatchSession, self.timeout, **self.tolerances)
        self._pool = WorkerPool(factory, n_workers, self.timeout + _GRACE_SECONDS)

    @property
    def n_workers(self) -> int:
        """Processes; 0 if structures are matched in this one."""
        return self._pool.n_workers

    @property
    def stol(self) -> float:
        """Largest displacement of a match, which unmatched structures count with."""
        return self.tolerances["stol"]

    def close(self) -> None:
        """End the worker processes; the next matching starts new ones."""
        self._pool.close()

    @checked
    def prepare(self, references: CrystalBatch | Sequence[Structure]) -> References:
        """Return references in the form in which they can be matched with again and again.

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
        return References(tuple(batch._to_arrays()))

    @checked
    def rmsd(
        self,
        generated: CrystalBatch | Sequence[Structure],
        references: References | CrystalBatch | Sequence[Structure],
        pairs: np.ndarray | Sequence[Any],
    ) -> np.ndarray:
        """Return displacements of pairs, shape (n_pairs,), nan where unmatched; see `match`.

        >>> from pymatgen.core import Lattice, Structure
        >>> small, large = (Structure(Lattice.cubic(a), ["Cs"], [[0, 0, 0]]) for a in (6.0, 6.1))
        >>> MatchPool(n_workers=0).rmsd([small], [large], [(0, 0)])
        array([0.])
        """
        return self.match(generated, references, pairs).rmsd

    @checked
    def match(
        self,
        generated: CrystalBatch | Sequence[Structure],
        references: References | CrystalBatch | Sequence[Structure],
        pairs: np.ndarray | Sequence[Any],
    ) -> Matches:
        """Match pairs of generated structures and references.

        Structures that `validity.check` rejects never reach the matcher. The outcome of a pair
        depends on no other pair.

        Args:
            generated: structures to judge.
            references: from `prepare` where they serve again; else structures.
            pairs: indices (generated, reference), shape (n_pairs, 2).

        Raises:
            ValueError: pairs has another shape or an index out of range.
            WorkersLostError: worker processes cannot be started or keep ending.
        """
        batch = _as_batch(generated)
        if not isinstance(references, References):
            references = self.prepare(references)
        pairs = _checked_pairs(pairs, len(batch), len(references))
        valid = validity.check(batch).valid
        rmsd = np.full(len(pairs), np.nan)
        timed_out, failed = np.zeros((2, len(batch)), dtype=bool)
        # Pairs of one structure go together, so that it is reduced once.
        used = np.flatnonzero(valid[pairs[:, 0]])
        used = used[np.argsort(pairs[used, 0], kind="stable")]
        indices, begins = np.unique(pairs[used, 0], return_index=True)
        rows = dict(zip(indices.tolist(), np.split(used, begins[1:]), strict=False))
        arrays = list(batch._to_arrays())
        items: dict[int, Item] = {
            i: (arrays[i], [references.arrays[j] for j in pairs[rows[i], 1]]) for i in rows
        }

        def work(i: int) -> tuple[int, bytes]:
            structure, others = items[i]
            return -len(structure[0]) * len(others), structure[0].tobytes()

        # Compositions together, which are matched together; large ones first, so that the last
        # chunks are short.
        order = sorted(items, key=work)
        size = max(1, min(_CHUNK, len(order) // (2 * max(1, self.n_workers))))
        waiting = [order[begin : begin + size] for begin in range(0, len(order), size)]
        while waiting:
            outcomes = self._pool.map([[items[i] for i in chunk] for chunk in waiting])
            alone: list[list[int]] = []
            for chunk, outcome in zip(waiting, outcomes, strict=True):
                if outcome.error is None:
                    for i, result in zip(chunk, outcome.value, strict=True):
                        rmsd[rows[i]] = np.nan if result is None else result
                        failed[i] = result is None
                elif len(chunk) > 1:  # Whose fault it is shows when each is on its own.
                    alone += [[i] for i in chunk]
                else:
                    timed_out[chunk], failed[chunk] = outcome.late, not outcome.late
            waiting = alone
        if timed_out.any():
            self.n_timeouts += int(timed_out.sum())
            warnings.warn(
                f"{timed_out.sum()} structures count as unmatched because their matching took "
                f"more than {self.timeout} s: numbers {np.flatnonzero(timed_out)[:10].tolist()}",
                stacklevel=2,
            )
        return Matches(rmsd, valid, timed_out, failed)


def _checked_pairs(pairs: Any, n_generated: int, n_references: int) -> np.ndarray:
    try:
        pairs = np.asarray(pairs) if len(pairs) else np.empty((0, 2), dtype=np.int64)
    except ValueError as error:
        raise ValueError(f"pairs must be an array of integers: {error}") from error
    if pairs.ndim != 2 or pairs.shape[1] != 2 or not np.issubdtype(pairs.dtype, np.integer):
        raise ValueError(
            "pairs must be integers (generated, reference) of shape (n_pairs, 2), "
            f"got {pairs.dtype} of shape {pairs.shape}"
        )
    sizes = {"generated": n_generated, "references": n_references}
    for values, (name, size) in zip(pairs.T, sizes.items(), strict=True):
        outside = (values < 0) | (values >= size)
        if outside.any():
            raise ValueError(
                f"pairs must hold indices below {size} for {name}, "
                f"got {values[outside][:5].tolist()}"
            )
    return pairs


def _as_batch(structures: CrystalBatch | Sequence[Structure]) -> CrystalBatch:
    if isinstance(structures, CrystalBatch):
        return structures
    return CrystalBatch.from_structures(structures, dtype=torch.float64)
