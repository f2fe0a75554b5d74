"""Several rewards as one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from irlkit.crystals import CrystalBatch
from irlkit.rewards.base import Reward, RewardResult
from irlkit.rewards.function import as_reward
from irlkit.utils.checks import checked


class CompositeReward(Reward):
    """Weighted sum of rewards; those of weight 0 are only monitored.

    >>> reward = CompositeReward({"atoms": lambda batch: batch.n_atoms}, {"atoms": -0.5})
    >>> reward(CrystalBatch.from_formulas(["Na1 Cl1", "C1"])).values
    tensor([-1.0000, -0.5000], dtype=torch.float64)

    A value that is not finite makes the sum not finite, unless its weight is 0.

    The result's `info` holds, for each part, its reward under the part's name and its own
    information under "<name>_<key>".

    Args:
        parts: rewards, or functions of a `CrystalBatch`, by name.
        weights: by the same names; None for 1 each.

    Raises:
        ValueError: no parts, other names among the weights, or a weight that is not finite.
    """

    @checked
    def __init__(
        self,
        parts: Mapping[str, Reward | Callable[[CrystalBatch], Any]],
        weights: Mapping[str, float] | None = None,
    ) -> None:
        if not parts:
            raise ValueError("parts must hold at least one reward, got none")
        weights = dict.fromkeys(parts, 1.0) if weights is None else dict(weights)
        if set(weights) != set(parts):
            raise ValueError(
                f"weights must have the names of the parts {sorted(parts)}, got {sorted(weights)}"
            )
        for name, weight in weights.items():
            if not math.isfinite(weight):
                raise ValueError(f"weights[{name!r}] must be finite, got {weight}")
        self.parts = {name: as_reward(part) for name, part in parts.items()}
        self.weights = weights

    def check(self, compositions: CrystalBatch) -> None:
        """Raise a ValueError if a part cannot judge structures of these compositions."""
        for part in self.parts.values():
            part.check(compositions)

    @checked
    def __call__(self, batch: CrystalBatch) -> RewardResult:
        """Ask all parts, and sum their rewards."""
        return self._sum({name: part(batch) for name, part in self.parts.items()})

    def in_groups(self, batch: CrystalBatch, group_size: int) -> RewardResult:
        """Ask all parts about groups, and sum their rewards."""
        return self._sum(
            {name: part.in_groups(batch, group_size) for name, part in self.parts.items()}
        )

    def _sum(self, results: dict[str, RewardResult]) -> RewardResult:
        total = torch.zeros(len(next(iter(results.values()))), dtype=torch.float64)
        info: dict[str, np.ndarray] = {}
        for name, result in results.items():
            # Not a product with 0, which would keep what is not a number.
            if self.weights[name] != 0:
                total += self.weights[name] * result.values
            info[name] = result.values.numpy()
            info.update({f"{name}_{key}": array for key, array in result.info.items()})
        return RewardResult(total, info)

    def energies(self) -> str:
        """Return what computes the energies that its parts need."""
        return ", ".join(sorted({part.energies() for part in self.parts.values()} - {""}))

    def close(self) -> None:
        """Close all parts."""
        for part in self.parts.values():
            part.close()
