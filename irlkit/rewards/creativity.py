"""Reward for structures that are new: neither in a training set nor made twice."""

from __future__ import annotations

import numpy as np
import torch

from irlkit.crystals import CrystalBatch, validity
from irlkit.data import CrystalDataset
from irlkit.evaluate.amd import _smallest, amd
from irlkit.evaluate.matching import MatchPool
from irlkit.evaluate.novelty import TOLERANCES, KnownStructures, _by_formula, is_unique
from irlkit.rewards.base import Reward, RewardResult
from irlkit.utils.checks import checked


class CreativityReward(Reward):
    """1 for a structure that is unique and novel, 0 for one that is neither, else a distance.

    The distance is the smallest one, of average minimum distances (Å), from the other structures of
    its formula, among those judged together and in the training set: d/(1 + d), at most 1.
    Unbounded, as in Chemeleon2, a polymorph that differs much earns more than a new one. An invalid
    structure earns 0. It judges the structures it is asked about together, so the whole of an
    iteration; the first of equal ones is the unique one.

    The result's `info` holds `unique`, `novel` and `valid`.

    Args:
        training_set: what is not novel.
        bounded: d/(1 + d) rather than d.
        n_workers: processes that compare structures; None for one per core, 0 for none.

    Raises:
        ValueError: an empty training set, or one without structures.
    """

    compares_all = True

    @checked
    def __init__(
        self, training_set: CrystalDataset, bounded: bool = True, n_workers: int | None = 0
    ) -> None:
        self._known = KnownStructures(training_set)
        self._pool = MatchPool(n_workers, **TOLERANCES)
        self.limits_time_here = self._pool.n_workers == 0
        self.bounded = bounded

    @checked
    def __call__(self, batch: CrystalBatch) -> RewardResult:
        """Compare all structures with one another and with the training set."""
        batch = batch.to("cpu")
        valid = validity.check(batch).valid
        unique, novel = is_unique(batch, self._pool), self._known.is_novel(batch, self._pool)
        values = (unique & novel).astype(np.float64)
        between = np.flatnonzero(valid & (unique ^ novel))
        if len(between):
            values[between] = self._distance(batch, between, valid)
        info = {"unique": unique, "novel": novel, "valid": valid}
        return RewardResult(torch.from_numpy(values), info)

    def _distance(self, batch: CrystalBatch, rows: np.ndarray, valid: np.ndarray) -> np.ndarray:
        """Smallest positive distances of some structures, shape (len(rows),)."""
        away = np.nan_to_num(self._known.distance(batch.select(rows)), nan=np.inf)
        place = {int(i): k for k, i in enumerate(rows)}
        for members in _by_formula(batch.reduced_formulas(), valid).values():
            asked = [i for i in members if i in place]
            if asked and len(members) > 1:
                of_all = amd(batch.select(members))
                near = _smallest(of_all[[members.index(i) for i in asked]], of_all, 1e-9).numpy()
                at = [place[i] for i in asked]
                away[at] = np.minimum(away[at], near)
        away[~np.isfinite(away)] = 0.0
        return away if self.bounded else away / (1 - away)

    def close(self) -> None:
        """End the worker processes."""
        self._pool.close()
