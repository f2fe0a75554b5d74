"""Rewards of a batch from those of its parts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch

from irlkit.crystals import CrystalBatch
from irlkit.rewards.base import Reward, RewardResult


def on_cpu(batch: CrystalBatch) -> CrystalBatch:
    """Return a batch as it can be sent to another process."""
    batch = batch.to("cpu")
    return batch.replace(pos=batch.pos.detach(), cell=batch.cell.detach())


def runs(batch: CrystalBatch) -> np.ndarray:
    """Return where runs of equal compositions begin, a mask of shape (B,)."""
    formulas = np.array(batch.formulas())
    begins = np.ones(len(batch), dtype=bool)
    begins[1:] = formulas[1:] != formulas[:-1]
    return begins


def grouping(reward: Reward) -> tuple[int | None, bool]:
    """Return the size of the groups that a reward compares in, and whether runs are groups to it.

    A run is one of equal compositions; what a reward counts on, all its parts included.
    """
    own = reward.group_size, reward.compares and reward.group_size is None
    found = [own, *map(grouping, reward.parts.values())]
    sizes = [size for size, _ in found if size is not None]
    return (math.lcm(*sizes) if sizes else None), any(by_runs for _, by_runs in found)


def cut(batch: CrystalBatch, n_parts: int, begins: np.ndarray) -> list[slice]:
    """Return consecutive parts of a batch with about as many atoms each.

    Args:
        batch: at least one structure.
        n_parts: how many, at most.
        begins: where a part may begin, a mask of shape (B,), True for the first.
    """
    first = np.flatnonzero(begins)
    atoms_before = (batch.n_atoms.cumsum(0) - batch.n_atoms).cpu().numpy()[first]
    share = atoms_before * n_parts // int(batch.n_atoms.sum())
    bounds = [*first[np.flatnonzero(np.diff(share, prepend=-1))].tolist(), len(batch)]
    return [slice(a, b) for a, b in pairwise(bounds)]


def joined(
    results: Sequence[RewardResult | None], sizes: Sequence[int], on_failure: float = math.nan
) -> RewardResult:
    """Return one result of many.

    Args:
        results: of the parts; None where there is none.
        sizes: structures of each part.
        on_failure: reward where there is no result.

    Returns:
        What only some parts know is nan, False, -1, 0, "" or None elsewhere, by its dtype.
    """
    parts = list(zip(results, sizes, strict=True))
    known = [result for result in results if result is not None]
    values = [
        torch.full((n,), on_failure, dtype=torch.float64) if result is None else result.values
        for result, n in parts
    ]
    info = {}
    for name in {name: None for result in known for name in result.info}:
        kind = np.result_type(*[r.info[name] for r in known if name in r.info])
        absent = {"f": math.nan, "b": False, "i": -1, "u": 0, "U": ""}.get(kind.kind)
        there = [None if result is None else result.info.get(name) for result, _ in parts]
        arrays = [np.full(n, absent) if a is None else a for a, n in zip(there, sizes, strict=True)]
        info[name] = np.concatenate([array.astype(kind) for array in arrays])
    return RewardResult(torch.cat(values), info)
