"""Several rewards as one."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from irlkit.crystals import CrystalBatch
from irlkit.rewards.base import Reward, RewardResult
from irlkit.rewards.function import as_reward
from irlkit.utils.checks import checked


class CompositeReward(Reward):
    """Weighted sum of rewards; those of weight 0 are only monitored.

    >>> reward = CompositeReward({"atoms": lambda batch: batch.n_atoms}, {"atoms": -0.5})
    >>> reward(CrystalBatch.from_formulas(["Na1 Cl1", "C1"])).values
    tensor([-1.0000, -0.5000], dtype=torch.float64)

    Parts that are normalised are scaled to [0, 1] by their lowest and highest value among all
    structures judged together (in training, those of an iteration); a part whose values are all
    equal then adds 0. A value that is not finite makes the sum not finite, unless its weight is 0.

    The result's `info` holds, for each part, its reward under the part's name, its own information
    under "<name>_<key>", and what normalising made of it under "<name>_normalized".

    Args:
        parts: rewards, or functions of a `CrystalBatch`, by name.
        weights: by the same names; None for 1 each.
        normalized: names of the parts that are scaled to [0, 1].

    Raises:
        ValueError: no parts, other names among weights or ``normalized``, or a weight that is not
            finite.
    """

    @checked
    def __init__(
        self,
        parts: Mapping[str, Reward | Callable[[CrystalBatch], Any]],
        weights: Mapping[str, float] | None = None,
        normalized: Collection[str] = (),
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
        if isinstance(normalized, str) or not set(normalized) <= set(parts):
            raise ValueError(f"normalized must name parts of {sorted(parts)}, got {normalized!r}")
        self.parts = {name: as_reward(part) for name, part in parts.items()}
        self.weights = weights
        self.normalized = frozenset(normalized)
        self.compares_all = bool(normalized) or any(p.compares_all for p in self.parts.values())

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
            values = result.values
            info[name] = values.numpy()
            if name in self.normalized:
                values = scaled(values)
                info[f"{name}_normalized"] = values.numpy()
            # Not a product with 0, which would keep what is not a number.
            if self.weights[name] != 0:
                total += self.weights[name] * values
            info.update({f"{name}_{key}": array for key, array in result.info.items()})
        return RewardResult(total, info)

    def energies(self) -> str:
        """Return what computes the energies that its parts need."""
        return ", ".join(sorted({part.energies() for part in self.parts.values()} - {""}))

    def close(self) -> None:
        """Close all parts."""
        for part in self.parts.values():
            part.close()


def scaled(values: Tensor) -> Tensor:
    """Return (v - min)/(max - min) over the finite values, shape (B,); 0 where all are equal.

    >>> scaled(torch.tensor([1.0, 3.0, torch.nan, 2.0]))
    tensor([0.0000, 1.0000,    nan, 0.5000])
    """
    finite = values[values.isfinite()]
    if not len(finite) or finite.min() == finite.max():
        return values - values
    return (values - finite.min()) / (finite.max() - finite.min())
