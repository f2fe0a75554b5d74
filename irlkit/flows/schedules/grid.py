"""Time grids."""

from __future__ import annotations

import torch
from torch import Tensor

from irlkit.flows.interpolants import T_MAX, T_MIN
from irlkit.utils.checks import checked

FIELD_NAMES = ("pos", "cell")


@checked
def time_grid(
    n_steps: int, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
) -> Tensor:
    """Times of an integration, equally spaced from 1e-3 to 1 - 1e-3.

    Args:
        n_steps: number of intervals.
        dtype: the grid is computed in float64 and rounded once.
        device: where the grid lies.

    Returns:
        Shape (n_steps + 1,).

    Raises:
        ValueError: ``n_steps`` is not a positive integer.

    >>> time_grid(2)
    tensor([0.0010, 0.5000, 0.9990], dtype=torch.float64)
    """
    check_n_steps(n_steps)
    return torch.linspace(T_MIN, T_MAX, n_steps + 1, dtype=torch.float64).to(device, dtype)


def check_n_steps(n_steps: int, name: str = "n_steps") -> None:
    """Raise a ValueError, which names the argument, unless ``n_steps`` is a positive integer."""
    if isinstance(n_steps, bool) or not isinstance(n_steps, int) or n_steps < 1:
        raise ValueError(
            f"{name} must be a positive integer (the number of integration intervals), "
            f"got {n_steps!r}"
        )
