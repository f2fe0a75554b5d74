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

    A value that is not finite makes the sum not finite, unless its weight is 0.

    The result's `info` holds, for each part, its reward under the part's name and its own
    information under "<name>_<key>".

    Args:
        parts: Rewards, or functions of a `CrystalBatch`, by name.
        weights: By the same names; None for 1 each.

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
        """Raises a ValueError if a part cannot judge structures of these compositions."""
        for part in self.parts.values():
            part.check(compositions)

    @checked
    def __call__(self, batch: CrystalBatch) -> RewardResult:
        """Rewards of all parts and their sum."""
        total = torch.zeros(len(batch), dtype=torch.float64)
        info: dict[str, np.ndarray] = {}
        for name, part in self.parts.items():
            result = part(batch)
            # Not a product with 0, which would keep what is not a number.
            if self.weights[name] != 0:
                total += self.weights[name] * result.values
            info[name] = result.values.numpy()
            info.update({f"{name}_{key}": array for key, array in result.info.items()})
        return RewardResult(total, info)

    def energies(self) -> str:
        """What computes the energies that its parts need."""
        return ", ".join(sorted({part.energies() for part in self.parts.values()} - {""}))

    def close(self) -> None:
        """Closes all parts."""
        for part in self.parts.values():
            part.close()
