"""The annealing that goes where the velocity points, which needs no learning."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from irlkit.flows.schedules.grid import FIELD_NAMES
from irlkit.utils.checks import check_finite


@dataclass(frozen=True)
class EndpointAnnealing:
    """1 + s(t, dt) = min(m, (1 - t) / dt), with one largest factor m per field.

    A velocity that points at the final structure reaches it in one step of the factor (1 - t) / dt.
    The bound keeps early steps, whose velocities point at averages, from going all the way; below 1
    it slows a field down, up to its last step.

    Args:
        pos: largest factor of the fractional coordinates.
        cell: of the lattice vectors.

    Raises:
        ValueError: a factor is not positive and finite.

    >>> EndpointAnnealing(pos=3.0, cell=1.0)(torch.tensor([0.0, 0.5]), torch.tensor(0.25))
    {'pos': tensor([2., 1.]), 'cell': tensor([0., 0.])}
    """

    pos: float = 8.0
    cell: float = 1.1

    def __post_init__(self) -> None:
        for field in FIELD_NAMES:
            check_finite(field, getattr(self, field), above=0.0)
            object.__setattr__(self, field, float(getattr(self, field)))  # Which can be saved.

    def __call__(self, t: Tensor, dt: Tensor) -> dict[str, Tensor]:
        left = torch.as_tensor((1.0 - t) / dt)
        return {field: left.clamp(max=getattr(self, field)) - 1.0 for field in FIELD_NAMES}
