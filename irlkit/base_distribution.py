"""Base distributions: uniform positions, log-normal lengths and uniform angles."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

# Angles near the corners of the allowed cube give flat cells; those are drawn again.
MIN_POLAR_SINE = 0.05
ANGLE_RANGE = (60.0, 120.0)


def cell_from_parameters(lengths: Tensor, angles: Tensor) -> Tensor:
    """Cells in the standard orientation: first vector along x, second in the xy plane.

    Args:
        lengths: a, b, c in Å, shape (B, 3).
        angles: alpha, beta, gamma in degrees, shape (B, 3); they must span a cell.

    Returns:
        Shape (B, 3, 3), lattice vectors as rows, positive volume.
    """
    cos_alpha, cos_beta, cos_gamma = torch.deg2rad(angles).cos().unbind(1)
    sin_gamma = torch.sqrt(1 - cos_gamma**2)
    c_y = (cos_alpha - cos_beta * cos_gamma) / sin_gamma
    c_z = torch.sqrt((1 - cos_beta**2 - c_y**2).clamp(min=0))
    zero = torch.zeros_like(c_y)
    rows = [
        torch.stack([torch.ones_like(c_y), zero, zero], 1),
        torch.stack([cos_gamma, sin_gamma, zero], 1),
        torch.stack([cos_beta, c_y, c_z], 1),
    ]
    return lengths[:, :, None] * torch.stack(rows, 1)


@dataclass(frozen=True)
class BaseDistribution:
    """Where generation starts.

    Positions are uniform in [0, 1); cells have log-normal lengths per lattice vector and angles
    uniform in 60° to 120°.

    Attributes:
        log_length_mean: Mean of ln(length / Å) of each lattice vector.
        log_length_std: Standard deviation of the same.
    """

    log_length_mean: tuple[float, float, float]
    log_length_std: tuple[float, float, float]

    @classmethod
    def fit(cls, cell: Tensor) -> BaseDistribution:
        """Fit the lengths of a training set's cells, shape (B, 3, 3), B at least 2.

        Raises:
            ValueError: fewer than two cells.
        """
        if len(cell) < 2:
            raise ValueError(f"cell: a base distribution needs two cells or more, got {len(cell)}")
        log_lengths = cell.double().norm(dim=2).log()
        mean, std = log_lengths.mean(0), log_lengths.std(0)
        return cls(tuple(mean.tolist()), tuple(std.tolist()))

    def sample_pos(self, n: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        """Uniform fractional positions, shape (n, 3), on the generator's device."""
        return torch.rand(n, 3, generator=generator, device=generator.device, dtype=dtype)

    def sample_cell(self, n: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        """Cells of shape (n, 3, 3), always with a polar sine above `MIN_POLAR_SINE`."""
        device = generator.device
        low, high = ANGLE_RANGE
        mean = torch.tensor(self.log_length_mean, device=device, dtype=torch.float64)
        std = torch.tensor(self.log_length_std, device=device, dtype=torch.float64)
        normal = torch.randn(n, 3, generator=generator, device=device, dtype=torch.float64)
        lengths = (mean + std * normal).exp()
        angles = torch.full((n, 3), math.nan, device=device, dtype=torch.float64)
        todo = torch.arange(n, device=device)
        while len(todo):
            draw = torch.rand(len(todo), 3, generator=generator, device=device, dtype=torch.float64)
            angles[todo] = low + (high - low) * draw
            cosines = torch.deg2rad(angles[todo]).cos()
            square = 1 - (cosines**2).sum(1) + 2 * cosines.prod(1)
            todo = todo[square <= MIN_POLAR_SINE**2]
        return cell_from_parameters(lengths, angles).to(dtype)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `BaseDistribution(**data)`."""
        return asdict(self)
