"""Reward for what makes generated structures, together, more like a reference set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from irlkit.crystals import CrystalBatch
from irlkit.crystals.compositions import element_counts
from irlkit.data import CrystalDataset
from irlkit.evaluate.diversity import fingerprints
from irlkit.rewards.base import Reward, RewardResult
from irlkit.utils.checks import check_count, checked


def composition_features(batch: CrystalBatch) -> Tensor:
    """Return √118 times the share of each element, float64, shape (B, 118).

    >>> composition_features(CrystalBatch.from_formulas(["Na1 Cl1"]))[0, [10, 16]] ** 2 / 118
    tensor([0.2500, 0.2500], dtype=torch.float64)
    """
    shares = element_counts(batch).double() / batch.n_atoms[:, None]
    return shares.cpu() * 118**0.5


def _structure_features(batch: CrystalBatch) -> Tensor:
    """Return `fingerprints`, 0 where a structure has none, float64, shape (B, 24)."""
    return torch.from_numpy(np.nan_to_num(fingerprints(batch)))


FEATURES: Mapping[str, Callable[[CrystalBatch], Tensor]] = {
    "composition": composition_features,
    "structure": _structure_features,
}


@checked
def mmd_contributions(features: Tensor, reference: Tensor) -> Tensor:
    """Return by how much each sample lowers the squared maximum mean discrepancy.

    MMD²(G without m) - MMD²(G) for all m, with the kernel k(x, y) = (x·y/d + 1)³ and the
    biased estimate (means over all pairs), as Chemeleon2 rewards diversity with.

    Args:
        features: of the samples G, shape (B, d).
        reference: of the reference sample, shape (R, d).

    Returns:
        Float64, shape (B,); 0 for a sample that is alone.

    Raises:
        ValueError: other numbers of features, or an empty reference.

    >>> x = torch.tensor([[1.0], [1.0], [1.0], [-1.0]])
    >>> (mmd_contributions(x, torch.tensor([[1.0], [-1.0]])) > 0).tolist()
    [False, False, False, True]
    """
    if features.ndim != 2 or reference.shape[1:] != features.shape[1:] or not len(reference):
        raise ValueError(
            "features and reference must have shapes (B, d) and (R, d), R at least 1, got "
            f"{tuple(features.shape)} and {tuple(reference.shape)}"
        )
    x, y = features.double(), reference.double()
    n, d = x.shape
    if n < 2:
        return torch.zeros(n, dtype=torch.float64)
    among = (x @ x.T / d + 1) ** 3
    to_reference = ((x @ y.T / d + 1) ** 3).mean(1)
    whole = among.sum() / n**2 - 2 * to_reference.sum() / n
    left = (among.sum() - 2 * among.sum(1) + among.diagonal()) / (n - 1) ** 2
    return left - 2 * (to_reference.sum() - to_reference) / (n - 1) - whole


class DiversityReward(Reward):
    """What each structure adds to the likeness of all to a reference set (`mmd_contributions`).

    Judges the structures that it is asked about together, so the whole of an iteration.

    Args:
        reference: what a diverse sample looks like.
        features: "composition", the shares of elements; "structure", distances of neighbours; or
            a function of structures that returns (B, d). The named ones are scaled so that the
            mean of x·x/d over the reference is 1 ("structure": after subtracting the mean).
        size: of the reference, at most.
        seed: of which ones.

    Raises:
        ValueError: an empty reference, one without the structures that features need, or unknown
            features.
    """

    compares_all = True

    @checked
    def __init__(
        self,
        reference: CrystalDataset,
        features: str | Callable[[CrystalBatch], Any] = "composition",
        size: int = 2000,
        seed: int = 0,
    ) -> None:
        check_count("size", size)
        if not len(reference):
            raise ValueError("reference must hold at least one structure, got none")
        if isinstance(features, str) and features not in FEATURES:
            raise ValueError(f"features must be one of {sorted(FEATURES)}, got {features!r}")
        if features != "composition" and not reference.has_structures:
            raise ValueError(
                "reference has compositions alone, whose features would say nothing: give a data "
                'set with structures, or features="composition"'
            )
        chosen = reference.subset(min(size, len(reference)), seed).batch
        self._compute = FEATURES[features] if isinstance(features, str) else features
        try:
            known = torch.as_tensor(self._compute(chosen)).double()
        except Exception as error:  # whatever a function of the user's does
            raise ValueError(
                f"features must be a function of structures that returns numbers, shape (B, d); "
                f"asked about {len(chosen)}, it fails: {type(error).__name__}: {error}"
            ) from error
        self._shift, self._scale = torch.zeros(()), torch.ones(())
        if features == "structure":
            self._shift = known.mean(0)
        if isinstance(features, str):
            self._scale = ((known - self._shift) ** 2).mean().sqrt().clamp(min=1e-12)
        self._reference = (known - self._shift) / self._scale

    @checked
    def __call__(self, batch: CrystalBatch) -> RewardResult:
        """Compare all structures, together, with the reference."""
        features = (torch.as_tensor(self._compute(batch)).double() - self._shift) / self._scale
        # One wild structure must not make the others look alike.
        return RewardResult(mmd_contributions(features.clamp(-10.0, 10.0), self._reference))
