"""Noise schedules sigma(t) of the dynamics (Eqs. 7, 13, 14)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from irlkit.flows.schedules._perceptron import check_sizes, perceptron
from irlkit.utils.checks import check_finite, checked, is_number


class NoiseSchedule(Protocol):
    """sigma(t): times of any shape to positive noise scales of the same shape."""

    def __call__(self, t: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class ConstantNoise:
    """sigma(t) = scale.

    >>> ConstantNoise(0.2)(torch.tensor([0.1, 0.9]))
    tensor([0.2000, 0.2000])
    """

    scale: float

    def __post_init__(self) -> None:
        _check_positive("scale", self.scale)

    def __call__(self, t: Tensor) -> Tensor:
        return torch.full_like(t, self.scale)


@dataclass(frozen=True)
class SquareRootNoise:
    """sigma(t) = scale * sqrt((1 - t) / (t + offset)): strong at the start, zero at the end.

    Args:
        scale: positive.
        offset: 0 in the paper, where the noise diverges towards t = 0, so that the first step has
            nearly all of it; above 0, its largest value is scale / sqrt(offset).
    """

    scale: float
    offset: float = 0.0

    def __post_init__(self) -> None:
        _check_positive("scale", self.scale)
        check_finite("offset", self.offset, least=0.0)

    def __call__(self, t: Tensor) -> Tensor:
        return self.scale * torch.sqrt((1.0 - t) / (t + self.offset))


def _check_positive(name: str, value: object) -> None:
    if not (is_number(value) and value > 0):  # type: ignore[operator]
        raise ValueError(f"{name} must be a positive finite number, got {value!r}")


@checked
@dataclass(frozen=True)
class ScaledNoise:
    """sigma(t) = factor * noise(t).

    Args:
        noise: a schedule.
        factor: positive.
    """

    noise: NoiseSchedule
    factor: float

    def __post_init__(self) -> None:
        _check_positive("factor", self.factor)

    def __call__(self, t: Tensor) -> Tensor:
        return self.factor * self.noise(t)


class LearnedNoise(nn.Module):
    """sigma(t) = base(t) [floor + (1 - floor) softplus(f(t)) / ln 2], f a perceptron, 0 at first.

    It starts as the base schedule and stays above ``floor`` times it, whatever the weights are.

    Args:
        base: schedule before training.
        hidden_dim: width of the hidden layers.
        n_hidden_layers: hidden layers after the first.
        floor: smallest share of the base schedule, above 0 and below 1.
        generator: draws the initial weights (of all but the last layer, which is zero); without
            one they are those of seed 0.

    Raises:
        ValueError: an argument is out of its range.
    """

    @checked
    def __init__(
        self,
        base: NoiseSchedule,
        hidden_dim: int = 32,
        n_hidden_layers: int = 1,
        floor: float = 1e-3,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        sizes = check_sizes(hidden_dim=hidden_dim, n_hidden_layers=n_hidden_layers)
        if not 0 < floor < 1:
            raise ValueError(f"floor must be above 0 and below 1, got {floor!r}")
        self.base = base
        self.floor = floor
        self.arguments = {"base": base, **sizes, "floor": floor}
        generator = generator or torch.Generator().manual_seed(0)
        self.layers = perceptron([1] + [hidden_dim] * (n_hidden_layers + 1) + [1], generator)

    def forward(self, t: Tensor) -> Tensor:
        """Return sigma at times of any shape."""
        f = self.layers(t[..., None].to(next(self.parameters()))).squeeze(-1).to(t)
        share = self.floor + (1.0 - self.floor) * functional.softplus(f) / math.log(2.0)
        return self.base(t) * share

    def extra_repr(self) -> str:
        """Return what is shown, and compared when a run is continued."""
        return str(self.arguments)
