"""Reward for reproducing known structures (Appendix G of the paper)."""

from __future__ import annotations

import numpy as np
import torch

from irlkit.crystals import CrystalBatch
from irlkit.data import CrystalDataset
from irlkit.evaluate.matching import MatchPool
from irlkit.evaluate.metrics import best_per_group
from irlkit.rewards.base import Reward, RewardResult
from irlkit.utils.checks import checked


class CRMSEReward(Reward):
    """Displacement from the best-matching polymorph: r = stol - cRMSE, with stol = 0.5.

    The polymorphs of a generated structure are the structures of the data set with its reduced
    formula. The reward is 0 where none matches, and for structures that are invalid or whose
    matching exceeds the time limit; it is at most `stol`.

    The result's `info` holds `rmsd` (nan if unmatched), `crmse` (stol if unmatched), `matched`,
    `valid`, `timed_out`, and `reference`, the number of the best match in the data set or -1.

    Args:
        dataset: Known structures.
        pool: Workers to match with, which stay open; or how many to start (None for one per core,
            0 to match in this process), to be ended by `close`.
        stol: Largest displacement of a match, in units of (V/N)^(1/3).
        ltol: Relative tolerance of lattice vector lengths.
        angle_tol: Tolerance of lattice angles, degrees.

    Raises:
        ValueError: the data set is empty, or the pool has other tolerances.
    """

    @checked
    def __init__(
        self,
        dataset: CrystalDataset,
        pool: MatchPool | int | None = None,
        stol: float = 0.5,
        ltol: float = 0.3,
        angle_tol: float = 10.0,
    ) -> None:
        if not len(dataset):
            raise ValueError("dataset must hold at least one structure, got none")
        tolerances = {"stol": stol, "ltol": ltol, "angle_tol": angle_tol}
        self._owns_pool = not isinstance(pool, MatchPool)
        self.pool = pool if isinstance(pool, MatchPool) else MatchPool(pool, **tolerances)
        if self.pool.tolerances != tolerances:
            raise ValueError(
                f"pool has the tolerances {self.pool.tolerances}, the reward {tolerances}; "
                "give both the same"
            )
        self.dataset = dataset
        self.limits_time_here = self.pool.n_workers == 0
        self._references = self.pool.prepare(dataset.batch)

    @checked
    def check(self, compositions: CrystalBatch) -> None:
        """Raise a ValueError that names compositions without a reference structure."""
        self.dataset.references_of(compositions.reduced_formulas())

    @checked
    def __call__(self, batch: CrystalBatch) -> RewardResult:
        """Match each structure with all polymorphs of its composition.

        Raises:
            ValueError: a composition has no reference structure (it is named).
        """
        polymorphs = self.dataset.references_of(batch.reduced_formulas())
        counts = [len(rows) for rows in polymorphs]
        generated = np.repeat(np.arange(len(batch)), counts)
        references = np.concatenate([np.empty(0, dtype=np.int64), *polymorphs])
        pairs = np.stack([generated, references], axis=1)
        matches = self.pool.match(batch, self._references, pairs)
        rmsd, reference = best_per_group(generated, references, matches.rmsd, len(batch))
        matched = np.isfinite(rmsd)
        crmse = np.where(matched, rmsd, self.pool.stol)
        info = {"rmsd": rmsd, "crmse": crmse, "matched": matched, "reference": reference}
        info |= {"valid": matches.valid, "timed_out": matches.timed_out}
        return RewardResult(torch.from_numpy(self.pool.stol - crmse), info)

    def close(self) -> None:
        """End the worker processes if this reward has started them."""
        if self._owns_pool:
            self.pool.close()
