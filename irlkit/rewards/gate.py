"""Reward that only some structures can earn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from irlkit.crystals import CrystalBatch
from irlkit.rewards.base import Reward, RewardResult
from irlkit.rewards.composite import CompositeReward
from irlkit.utils.checks import check_finite, checked


class GatedReward(CompositeReward):
    """What a reward gives, as far as a structure passes a gate g: least + g (r - least).

    >>> reward = GatedReward(lambda batch: batch.n_atoms, lambda batch: batch.n_atoms > 1)
    >>> reward(CrystalBatch.from_formulas(["Na1 Cl1", "C1"])).values
    tensor([2., 0.], dtype=torch.float64)

    A structure that does not pass, g = 0, earns `least` whatever the reward says, even where that
    is not finite. The result's `info` holds that of the reward, `passes`, which is g, and
    `ungated`, which is r.

    Args:
        reward: a reward, or a function of a `CrystalBatch`.
        gate: another, with values from 0 to 1, such as `CompoundReward` or `RareFormulaReward`.
        least: what is earned behind a closed gate; usually the lowest value of the reward.

    Raises:
        ValueError: ``least`` is not finite; when asked, a value of the gate outside [0, 1].
    """

    @checked
    def __init__(
        self,
        reward: Reward | Callable[[CrystalBatch], Any],
        gate: Reward | Callable[[CrystalBatch], Any],
        least: float = 0.0,
    ) -> None:
        check_finite("least", least)
        super().__init__({"reward": reward, "gate": gate})
        self.least = float(least)

    def _sum(self, results: dict[str, RewardResult]) -> RewardResult:
        result, passes = results["reward"], results["gate"].values
        if not ((passes >= 0) & (passes <= 1)).all():
            raise ValueError(f"gate must give values from 0 to 1, got {passes.tolist()}")
        values = self.least + passes * (result.values - self.least)
        values = torch.where(passes > 0, values, self.least)
        told = {"passes": passes.numpy(), "ungated": result.values.numpy()}
        return RewardResult(values, {**result.info, **told})
