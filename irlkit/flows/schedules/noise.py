"""Noise schedules sigma(t) of the dynamics (Eqs. 7, 13, 14)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from irlkit.flows.schedules.grid import (
    initialize,
    load_weights,
    perceptron,
    weights_to_dict,
    zero_last_layer,
)
from irlkit.utils.checks import checked, is_number


class NoiseSchedule(Protocol):
    """sigma(t): times of any shape to positive noise scales of the same shape."""

    def __call__(self, t: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class ConstantNoise:
    """sigma(t) = scale."""

    scale: float

    def __post_init__(self) -> None:
        _check_scale(self.scale)

    def __call__(self, t: Tensor) -> Tensor:
        return torch.full_like(t, self.scale)


@dataclass(frozen=True)
class SquareRootNoise:
    """sigma(t) = scale * sqrt((1 - t) / t): strong at the start, zero at the end."""

    scale: float

    def __post_init__(self) -> None:
        _check_scale(self.scale)

    def __call__(self, t: Tensor) -> Tensor:
        return self.scale * torch.sqrt((1.0 - t) / t)


def _check_scale(scale: float) -> None:
    if not (is_number(scale) and scale > 0):
        raise ValueError(f"scale must be a positive finite number, got {scale!r}")


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
        if not (is_number(self.factor) and self.factor > 0):
            raise ValueError(f"factor must be a positive finite number, got {self.factor!r}")

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
        if hidden_dim < 1:
            raise ValueError(f"hidden_dim must be at least 1, got {hidden_dim!r}")
        if n_hidden_layers < 0:
            raise ValueError(f"n_hidden_layers must not be negative, got {n_hidden_layers!r}")
        if not 0 < floor < 1:
            raise ValueError(f"floor must be above 0 and below 1, got {floor!r}")
        self.base = base
        self.hyperparameters = {
            "hidden_dim": hidden_dim,
            "n_hidden_layers": n_hidden_layers,
            "floor": floor,
        }
        self.layers = perceptron([1] + [hidden_dim] * (n_hidden_layers + 1) + [1])
        initialize(self, generator)
        zero_last_layer(self.layers)

    def forward(self, t: Tensor) -> Tensor:
        """sigma at times of any shape."""
        f = self.layers(t[..., None].to(next(self.parameters()))).squeeze(-1).to(t)
        floor = float(self.hyperparameters["floor"])
        return self.base(t) * (floor + (1.0 - floor) * functional.softplus(f) / math.log(2.0))

    def extra_repr(self) -> str:
        """Shown, and compared when a run is continued."""
        return f"base={self.base}, {self.hyperparameters}"


_SIMPLE = {cls.__name__: cls for cls in (ConstantNoise, SquareRootNoise)}


@checked
def noise_to_dict(noise: NoiseSchedule) -> dict[str, Any]:
    """A schedule as JSON can hold it, weights included.

    Raises:
        ValueError: it is none of this module.
    """
    kind = type(noise).__name__
    if isinstance(noise, ConstantNoise | SquareRootNoise):
        return {"kind": kind, **asdict(noise)}
    if kind == "ControlPointNoise":
        return {"kind": kind, "values": list(noise.values)}  # type: ignore[attr-defined]
    if isinstance(noise, ScaledNoise):
        return {"kind": kind, "noise": noise_to_dict(noise.noise), "factor": noise.factor}
    if isinstance(noise, LearnedNoise):
        base = noise_to_dict(noise.base)
        return {
            "kind": kind,
            "arguments": {"base": base, **noise.hyperparameters},
            **weights_to_dict(noise),
        }
    known = sorted([*_SIMPLE, "ControlPointNoise", "LearnedNoise", "ScaledNoise"])
    raise ValueError(f"noise must be one of {known} to be saved, got {kind}")


@checked
def noise_from_dict(data: Mapping[str, Any]) -> NoiseSchedule:
    """Inverse of ``noise_to_dict``.

    Raises:
        ValueError: an unknown kind, or what is there does not make a schedule of it.
    """
    kind = str(data.get("kind"))
    try:
        if kind in _SIMPLE:
            return _SIMPLE[kind](data["scale"])
        if kind == "ControlPointNoise":
            from irlkit.flows.schedules.control_points import (
                ControlPointNoise,  # which needs this module
            )

            return ControlPointNoise(tuple(data["values"]))
        if kind == "ScaledNoise":
            return ScaledNoise(noise_from_dict(data["noise"]), data["factor"])
        if kind == "LearnedNoise":
            arguments = dict(data["arguments"])
            noise = LearnedNoise(noise_from_dict(arguments.pop("base")), **arguments)
            load_weights(noise, data)
            return noise
    except (KeyError, RecursionError, TypeError) as error:
        raise ValueError(f"noise: the description of {kind} is incomplete: {error}") from error
    raise ValueError(f"noise: the data are of an unknown kind of schedule {kind!r}")
