"""Velocity annealing: s(t, dt) per field, which multiplies a velocity by 1 + s (Eq. 15)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from irlkit.flows.schedules._perceptron import check_sizes, perceptron
from irlkit.flows.schedules.grid import FIELD_NAMES
from irlkit.utils.checks import check_finite, checked
from irlkit.utils.settings import torch_settings


class Annealing(Protocol):
    """s(t, dt): times and step sizes (same shape) to one scalar per field, each of that shape."""

    def __call__(self, t: Tensor, dt: Tensor) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class NoAnnealing:
    """s(t) = 0: the velocity as it was learned."""

    def __call__(self, t: Tensor, dt: Tensor) -> dict[str, Tensor]:
        return {field: torch.zeros_like(t) for field in FIELD_NAMES}


@dataclass(frozen=True)
class LinearAnnealing:
    """The handcrafted schedule s(t) = slope * t, one slope per field.

    Args:
        pos: slope for the fractional coordinates.
        cell: slope for the lattice vectors.

    Raises:
        ValueError: a slope is not finite.

    >>> LinearAnnealing(pos=2.0)(torch.tensor([0.5]), torch.tensor([0.1]))
    {'pos': tensor([1.]), 'cell': tensor([0.])}
    """

    pos: float = 0.0
    cell: float = 0.0

    def __post_init__(self) -> None:
        for field in FIELD_NAMES:
            check_finite(field, getattr(self, field))
            object.__setattr__(self, field, float(getattr(self, field)))  # Which can be saved.

    def __call__(self, t: Tensor, dt: Tensor) -> dict[str, Tensor]:
        return {field: getattr(self, field) * t for field in FIELD_NAMES}


class LearnedAnnealing(nn.Module):
    """s(t) as a multilayer perceptron with SiLU, zero before training (section 3.3).

    Everyday arguments are ``hidden_dim`` and ``n_hidden_layers``; the rest says what is shared.

    Args:
        hidden_dim: width of the hidden layers.
        n_hidden_layers: hidden layers after the first.
        shared_trunk: one trunk with a linear head per field, or one perceptron per field.
        condition_on_dt: the input is (t, f(dt)) instead of t, so that one schedule can serve every
            number of steps. f(dt) = -log10(dt) / 2 - 1, with dt held within [1e-4, 1], lies in
            [-1, 1].
        positive: the perceptron gives ln(1 + s) instead of s, so that 1 + s(t) > 0 at all times,
            those between and beyond the times of training included.
        n_frequencies: the input also has sin(pi k t) and cos(pi k t), k = 1 ... n_frequencies.
            Shapes with a bend are then learned in fewer iterations than from t alone.
        generator: draws the initial weights (of all but the last layer, which is zero); without
            one they are those of seed 0.
        rule: schedule whose factor is multiplied by that of the perceptron, and with which the
            training begins, such as ``EndpointAnnealing``; None: no annealing.

    Raises:
        ValueError: ``hidden_dim`` < 1, ``n_hidden_layers`` < 0 or ``n_frequencies`` < 0.
    """

    @checked
    @torch_settings(plain=True)
    def __init__(
        self,
        hidden_dim: int = 64,
        n_hidden_layers: int = 2,
        shared_trunk: bool = True,
        condition_on_dt: bool = False,
        positive: bool = False,
        n_frequencies: int = 0,
        generator: torch.Generator | None = None,
        rule: Annealing | None = None,
    ) -> None:
        super().__init__()
        counts = check_sizes(
            hidden_dim=hidden_dim, n_hidden_layers=n_hidden_layers, n_frequencies=n_frequencies
        )
        switches = {"condition_on_dt": condition_on_dt, "positive": positive}
        self.rule = rule
        self.arguments: dict[str, Any] = {"shared_trunk": shared_trunk, **counts, **switches}
        self.arguments |= {} if rule is None else {"rule": rule}
        n_inputs = (2 if condition_on_dt else 1) + 2 * n_frequencies
        sizes = [n_inputs] + [hidden_dim] * (n_hidden_layers + 1)
        generator = generator or torch.Generator().manual_seed(0)
        self.trunk: nn.Module = nn.Identity()
        if shared_trunk:
            # The trunk ends in a linear layer, and so does each head: OMatG's parameters fit.
            self.trunk = perceptron([*sizes, hidden_dim], generator, zero=False)
            sizes = [hidden_dim]
        self.heads = nn.ModuleDict({f: perceptron([*sizes, 1], generator) for f in FIELD_NAMES})

    def forward(self, t: Tensor, dt: Tensor) -> dict[str, Tensor]:
        """Return s per field.

        Args:
            t: times, any shape.
            dt: step sizes, a shape that broadcasts to that of ``t``.

        Returns:
            Field -> s, of the shape of ``t``.
        """
        inputs = [t]
        if self.arguments["condition_on_dt"]:
            inputs.append(-0.5 * dt.clamp(1e-4, 1.0).log10().expand_as(t) - 1.0)
        for k in range(1, self.arguments["n_frequencies"] + 1):
            inputs += [torch.sin(math.pi * k * t), torch.cos(math.pi * k * t)]
        features = self.trunk(torch.stack(inputs, dim=-1).to(next(self.parameters())))
        s = {field: head(features).squeeze(-1) for field, head in self.heads.items()}
        if self.arguments["positive"]:
            s = {field: torch.expm1(value) for field, value in s.items()}
        if self.rule is None:
            return s
        rule = self.rule(t, dt)
        return {field: (1.0 + rule[field].to(s[field])) * (1.0 + s[field]) - 1.0 for field in s}


def annealing_on_grid(annealing: Annealing, times: Tensor) -> dict[str, Tensor]:
    """Return s of every step of a time grid.

    Evaluated for the whole grid at once, always: a matrix product over another number of rows may
    round differently, and a rollout and its update must agree to the last bit.

    Args:
        annealing: the schedule.
        times: grid, shape (n_steps + 1,).

    Returns:
        Field -> shape (n_steps,).

    Raises:
        ValueError: the annealing sees the state, so it has no values for a grid alone.
    """
    if getattr(annealing, "sees_state", False):
        raise ValueError(
            f"annealing must be a function of t and dt here, got a {type(annealing).__name__}, "
            "which sees the state; it is for Dynamics and StateAnnealingPolicy"
        )
    return annealing(times[:-1], times.diff())
