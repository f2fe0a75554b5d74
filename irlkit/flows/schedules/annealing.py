"""Velocity annealing: s(t, dt) per field, which multiplies a velocity by 1 + s (Eq. 15)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from irlkit.flows.schedules.grid import (
    FIELD_NAMES,
    initialize,
    perceptron,
    zero_last_layer,
)
from irlkit.utils.checks import checked, is_number


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
    """

    pos: float = 0.0
    cell: float = 0.0

    def __post_init__(self) -> None:
        for field in FIELD_NAMES:
            if not is_number(getattr(self, field)):
                raise ValueError(f"{field} must be a finite slope, got {getattr(self, field)!r}")

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

    Raises:
        ValueError: ``hidden_dim`` < 1, ``n_hidden_layers`` < 0 or ``n_frequencies`` < 0.
    """

    @checked
    def __init__(
        self,
        hidden_dim: int = 64,
        n_hidden_layers: int = 2,
        shared_trunk: bool = True,
        condition_on_dt: bool = False,
        positive: bool = False,
        n_frequencies: int = 0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        sizes_given = (hidden_dim, n_hidden_layers, n_frequencies)
        if not all(isinstance(size, int) for size in sizes_given):
            raise ValueError(
                "hidden_dim, n_hidden_layers and n_frequencies must be whole numbers, "
                f"got {sizes_given}"
            )
        if hidden_dim < 1:
            raise ValueError(f"hidden_dim must be at least 1, got {hidden_dim!r}")
        if n_hidden_layers < 0:
            raise ValueError(f"n_hidden_layers must not be negative, got {n_hidden_layers!r}")
        if hidden_dim > 2**14 or n_hidden_layers > 100 or n_frequencies > 10_000:
            raise ValueError(
                f"hidden_dim, n_hidden_layers and n_frequencies: {hidden_dim}, {n_hidden_layers} "
                f"and {n_frequencies} are more than an annealing can need (16384, 100, 10000)"
            )
        if n_frequencies < 0:
            raise ValueError(f"n_frequencies must not be negative, got {n_frequencies!r}")
        self.hyperparameters = {
            "hidden_dim": hidden_dim,
            "n_hidden_layers": n_hidden_layers,
            "shared_trunk": shared_trunk,
            "condition_on_dt": condition_on_dt,
            "positive": positive,
            "n_frequencies": n_frequencies,
        }
        n_inputs = (2 if condition_on_dt else 1) + 2 * n_frequencies
        sizes = [n_inputs] + [hidden_dim] * (n_hidden_layers + 1)
        if shared_trunk:
            # The trunk ends in a linear layer, and so does each head: OMatG's parameters fit.
            self.trunk: nn.Module = perceptron([*sizes, hidden_dim])
            self.heads = nn.ModuleDict({f: perceptron([hidden_dim, 1]) for f in FIELD_NAMES})
        else:
            self.trunk = nn.Identity()
            self.heads = nn.ModuleDict({f: perceptron([*sizes, 1]) for f in FIELD_NAMES})
        initialize(self, generator)
        for head in self.heads.values():
            zero_last_layer(head)

    def forward(self, t: Tensor, dt: Tensor) -> dict[str, Tensor]:
        """s per field.

        Args:
            t: times, any shape.
            dt: step sizes, a shape that broadcasts to that of ``t``.

        Returns:
            Field -> s, of the shape of ``t``.
        """
        inputs = [t]
        if self.hyperparameters["condition_on_dt"]:
            inputs.append(-0.5 * dt.clamp(1e-4, 1.0).log10().expand_as(t) - 1.0)
        for k in range(1, self.hyperparameters["n_frequencies"] + 1):
            inputs += [torch.sin(math.pi * k * t), torch.cos(math.pi * k * t)]
        features = self.trunk(torch.stack(inputs, dim=-1).to(next(self.parameters())))
        raw = {field: head(features).squeeze(-1) for field, head in self.heads.items()}
        if self.hyperparameters["positive"]:
            return {field: torch.expm1(value) for field, value in raw.items()}
        return raw

    @classmethod
    @checked
    def from_omatg(cls, state_dict: Mapping[str, Tensor]) -> LearnedAnnealing:
        """A schedule from weights under OMatG-IRL's parameter names.

        Args:
            state_dict: ``_trunk.{k}.*`` and ``_{field}_head.*`` (shared trunk), or
                ``_{field}_mlp.{k}.*`` (one perceptron per field).

        Raises:
            ValueError: the names or shapes are not those of such a schedule.
        """
        renamed = {_rename(name): value for name, value in state_dict.items()}
        shared = any(name.startswith("trunk.") for name in renamed)
        layers = sorted(
            {
                int(name.split(".")[-2])
                for name in renamed
                if name.startswith("trunk." if shared else "heads.pos.")
            }
        )
        first = renamed.get("trunk.0.weight" if shared else "heads.pos.0.weight")
        if first is None or first.ndim != 2 or len(layers) < 2:
            raise ValueError(
                "state_dict holds no annealing network: expected _trunk.* with _pos_head.* and "
                f"_cell_head.*, or _pos_mlp.* and _cell_mlp.*; got {sorted(state_dict)[:8]}"
            )
        annealing = cls(first.shape[0], len(layers) - 2, shared, first.shape[1] == 2).to(
            first.dtype
        )
        try:
            annealing.load_state_dict(renamed)
        except RuntimeError as error:
            raise ValueError(f"state_dict does not fit an annealing network: {error}") from error
        return annealing

    def omatg_name(self, name: str) -> str:
        """OMatG-IRL's name of the parameter that is called ``name`` here."""
        if name.startswith("trunk."):
            return f"_{name}"
        _, field, layer, kind = name.split(".")
        if self.hyperparameters["shared_trunk"]:
            return f"_{field}_head.{kind}"
        return f"_{field}_mlp.{layer}.{kind}"


def _rename(name: str) -> str:
    name = re.sub(r"^_(pos|cell)_head\.", r"heads.\1.0.", name)
    name = re.sub(r"^_(pos|cell)_mlp\.", r"heads.\1.", name)
    return re.sub(r"^_trunk\.", "trunk.", name)


def annealing_on_grid(annealing: Annealing, times: Tensor) -> dict[str, Tensor]:
    """s of every step of a time grid.

    Evaluated for the whole grid at once, always: a matrix product over another number of rows may
    round differently, and a rollout and its update must agree to the last bit.

    Args:
        annealing: the schedule.
        times: grid, shape (n_steps + 1,).

    Returns:
        Field -> shape (n_steps,).
    """
    return annealing(times[:-1], times.diff())
