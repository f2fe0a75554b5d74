"""Schedules by linear interpolation between control points, for editing by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from irlkit.flows.schedules.annealing import Annealing
from irlkit.flows.schedules.grid import FIELD_NAMES
from irlkit.flows.schedules.noise import NoiseSchedule
from irlkit.utils.checks import check_count


@dataclass(frozen=True)
class ControlPointAnnealing:
    """s(t) by linear interpolation between values at equally spaced times from 0 to 1.

    Args:
        pos: values for the fractional coordinates, two or more.
        cell: values for the lattice vectors, two or more.

    Raises:
        ValueError: fewer than two values, or one that is not finite.

    >>> s = ControlPointAnnealing(pos=(0.0, 2.0), cell=(1.0, 1.0))
    >>> s(torch.tensor([0.25]), torch.tensor([0.1]))
    {'pos': tensor([0.5000]), 'cell': tensor([1.])}
    """

    pos: tuple[float, ...]
    cell: tuple[float, ...]

    def __post_init__(self) -> None:
        for field in FIELD_NAMES:
            object.__setattr__(self, field, _checked(field, getattr(self, field)))

    def __call__(self, t: Tensor, dt: Tensor) -> dict[str, Tensor]:
        return {field: _interpolate(getattr(self, field), t) for field in FIELD_NAMES}

    @classmethod
    def from_annealing(cls, annealing: Annealing, n_points: int, n_steps: int) -> Self:
        """Return the points of another schedule, whose step size is that of `n_steps`."""
        check_count("n_points", n_points, least=2)
        check_count("n_steps", n_steps)
        with torch.no_grad():
            t = torch.linspace(0, 1, n_points)
            s = annealing(t, torch.full_like(t, 1.0 / n_steps))
        return cls(*(tuple(s[field].tolist()) for field in FIELD_NAMES))


@dataclass(frozen=True)
class ControlPointNoise:
    """sigma(t) by linear interpolation between values at equally spaced times from 0 to 1.

    Args:
        values: two or more, none negative, not all zero.

    Raises:
        ValueError: the values are not like that.
    """

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        values = _checked("values", self.values)
        object.__setattr__(self, "values", values)
        if min(values) < 0 or max(values) == 0:
            raise ValueError(f"values must not be negative, nor all zero, got {values}")

    def __call__(self, t: Tensor) -> Tensor:
        return _interpolate(self.values, t)

    @classmethod
    def from_noise(cls, noise: NoiseSchedule, n_points: int) -> Self:
        """Return points of another schedule; the first lies at t = 0.01, where roots are finite."""
        check_count("n_points", n_points, least=2)
        with torch.no_grad():
            return cls(tuple(noise(torch.linspace(0, 1, n_points).clamp(0.01, 0.99)).tolist()))


def _checked(name: str, values: Sequence[float]) -> tuple[float, ...]:
    try:
        values = tuple(float(value) for value in values)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be numbers, got {values!r}") from None
    if len(values) < 2:
        raise ValueError(f"{name} must have two or more values, got {values}")
    if not all(map(math.isfinite, values)):
        raise ValueError(f"{name} must be finite, got {values}")
    return values


def _interpolate(points: tuple[float, ...], t: Tensor) -> Tensor:
    values = torch.tensor(points, dtype=t.dtype, device=t.device)
    place = t.clamp(0, 1) * (len(values) - 1)
    left = place.floor().long().clamp(max=len(values) - 2)
    return torch.lerp(values[left], values[left + 1], place - left)
