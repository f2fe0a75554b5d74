"""Rewards of a batch from those of its parts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from irlkit.crystals import CrystalBatch
from irlkit.rewards.base import RewardResult


def parts_of(reward: Any) -> tuple[Any, ...]:
    """The rewards in a reward's mapping ``parts``; none if it has no such mapping."""
    parts = getattr(reward, "parts", None)
    return tuple(parts.values()) if isinstance(parts, Mapping) else ()


def grouping(reward: Any) -> tuple[int | None, bool]:
    """Structures per group that a reward counts on; and whether runs of compositions are groups."""
    if hasattr(reward, "group_size"):
        return reward.group_size, reward.group_size is None
    found = [grouping(part) for part in parts_of(reward)]
    sizes = [size for size, _ in found if size is not None]
    # Groups of a size are cut by their places, and a run of equal compositions in a trainer's batch
    # consists of such groups.
    return (math.lcm(*sizes) if sizes else None), any(runs for _, runs in found)


def starts(batch: CrystalBatch, group_size: int | None, whole_runs: bool) -> np.ndarray:
    """Where a part of a batch may begin: indices, ascending, with 0.

    Args:
        batch: At least one structure.
        group_size: Only between groups of so many structures; None: anywhere.
        whole_runs: Only between different compositions.
    """
    allowed = np.ones(len(batch), dtype=bool)
    if whole_runs:
        formulas = np.array(batch.formulas())
        allowed[1:] = formulas[1:] != formulas[:-1]
    if group_size is not None:
        allowed &= np.arange(len(batch)) % group_size == 0
    return np.flatnonzero(allowed)


def cut(batch: CrystalBatch, n_parts: int, group_size: int | None, whole_runs: bool) -> list[slice]:
    """Consecutive parts of a batch with about as many atoms each.

    Args:
        batch: At least one structure.
        n_parts: How many, at most.
        group_size: Only between groups of so many structures; None: anywhere.
        whole_runs: Only between different compositions.
    """
    first = starts(batch, group_size, whole_runs)
    atoms_before = (batch.n_atoms.cumsum(0) - batch.n_atoms).cpu().numpy()[first]
    share = atoms_before * n_parts // int(batch.n_atoms.sum())
    bounds = [*first[np.flatnonzero(np.diff(share, prepend=-1))].tolist(), len(batch)]
    return [slice(a, b) for a, b in pairwise(bounds)]


def joined(
    results: Sequence[RewardResult | None], sizes: Sequence[int], on_failure: float = math.nan
) -> RewardResult:
    """One result of many.

    Args:
        results: Of the parts; None where there is none.
        sizes: Structures of each part.
        on_failure: Reward where there is no result, which ``info["lost"]`` then tells.

    Returns:
        What only some parts know is nan, False, -1, 0, "" or None elsewhere, by its dtype.
    """
    known = [result for result in results if result is not None]
    values = torch.cat(
        [
            torch.full((n,), on_failure, dtype=torch.float64) if result is None else result.values
            for result, n in zip(results, sizes, strict=True)
        ]
    )
    info = {}
    for name in {name: None for result in known for name in result.info}:
        kind = np.result_type(*[r.info[name] for r in known if name in r.info])
        info[name] = np.concatenate(
            [
                np.full(n, _absent(kind), dtype=kind)
                if result is None or name not in result.info
                else result.info[name].astype(kind)
                for result, n in zip(results, sizes, strict=True)
            ]
        )
    if len(known) < len(results):
        info["lost"] = np.repeat([result is None for result in results], sizes)
    return RewardResult(values, info)


def _absent(kind: np.dtype[Any]) -> Any:
    """What stands where nothing is known."""
    return {"f": math.nan, "b": False, "i": -1, "u": 0, "U": ""}.get(kind.kind)
