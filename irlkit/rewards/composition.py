"""Rewards that need no more than the formula: band gaps, chemical validity, rare formulas."""

from __future__ import annotations

import numpy as np
import torch

from irlkit.crystals import CrystalBatch
from irlkit.crystals.compositions import element_counts
from irlkit.evaluate.novelty import is_valid_composition
from irlkit.networks import composition
from irlkit.rewards.base import Reward, RewardResult
from irlkit.utils.checks import check_count, check_finite, checked


class BandGapReward(Reward):
    """Negative squared distance of the predicted band gap from a target, r = -(gap - target)².

    The gap is that of a network that sees the composition alone
    (`irlkit.networks.composition.load`), so that any structure of a formula earns the same.

    The result's `info` holds `band_gap` (eV) and `on_target` (within 0.5 eV).

    Args:
        target: eV.

    Raises:
        ValueError: the target is negative or no number.
    """

    @checked
    def __init__(self, target: float = 3.0) -> None:
        check_finite("target", target, least=0)
        self.target = float(target)
        self._network = composition.load("band-gap")

    @checked
    def __call__(self, batch: CrystalBatch) -> RewardResult:
        """Predict the gaps of all structures."""
        gap = self._network(batch).double().cpu()
        away = gap - self.target
        info = {"band_gap": gap.numpy(), "on_target": (away.abs() <= 0.5).numpy()}
        return RewardResult(-(away**2), info)


class ValidCompositionReward(Reward):
    """1 for formulas that pass SMACT's test of charges and electronegativities, else 0.

    Raises:
        ImportError: the package smact is not installed.
    """

    @checked
    def __call__(self, batch: CrystalBatch) -> RewardResult:
        """Test the formulas of all structures."""
        return RewardResult(torch.from_numpy(is_valid_composition(batch).astype(np.float64)))


class CompoundReward(Reward):
    """1 for structures of at least so many elements, else 0.

    >>> CompoundReward()(CrystalBatch.from_formulas(["Na1 Cl1", "C4"])).values
    tensor([1., 0.], dtype=torch.float64)

    Args:
        least_elements: 2 for compounds, 3 for ternary ones and beyond.
    """

    @checked
    def __init__(self, least_elements: int = 2) -> None:
        check_count("least_elements", least_elements)
        self.least_elements = least_elements

    @checked
    def __call__(self, batch: CrystalBatch) -> RewardResult:
        """Count the elements of all structures."""
        n_elements = (element_counts(batch) > 0).sum(1).cpu()
        return RewardResult((n_elements >= self.least_elements).double())


class RareFormulaReward(Reward):
    """1 for the first structures of a formula, falling to 0 for the later ones (MatInvent).

    MatInvent counts formulas over a whole run; this counts among the structures it is asked about
    together, in their order, so that a run continues with the same numbers.

    Args:
        free: so many of one formula earn 1.
        most: from so many on, a structure earns 0; in between, it falls linearly.

    Raises:
        ValueError: ``most`` is not above ``free``.

    >>> batch = CrystalBatch.from_formulas(["Na1 Cl1"] * 4 + ["C1"])
    >>> RareFormulaReward(free=1, most=4)(batch).values
    tensor([1.0000, 0.6667, 0.3333, 0.0000, 1.0000], dtype=torch.float64)
    """

    compares_all = True

    @checked
    def __init__(self, free: int = 3, most: int = 6) -> None:
        check_count("free", free)
        check_count("most", most, least=free + 1)
        self.free, self.most = free, most

    @checked
    def __call__(self, batch: CrystalBatch) -> RewardResult:
        """Count the formulas of all structures."""
        seen: dict[str, int] = {}
        values = np.empty(len(batch))
        for i, formula in enumerate(batch.reduced_formulas()):
            seen[formula] = seen.get(formula, 0) + 1
            values[i] = (self.most - seen[formula]) / (self.most - self.free)
        return RewardResult(torch.from_numpy(values.clip(0.0, 1.0)))
