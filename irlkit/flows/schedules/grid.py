"""Time grids, and the small networks that functions of time are made of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

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


def perceptron(sizes: list[int]) -> nn.Sequential:
    """Linear layers of these widths with SiLU between them, weights not yet set."""
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(sizes):
        layers += [nn.utils.skip_init(nn.Linear, n_in, n_out), nn.SiLU()]
    return nn.Sequential(*layers[:-1])


def initialize(module: nn.Module, generator: torch.Generator | None) -> None:
    """Draw the weights of all linear layers; without a generator, those of seed 0."""
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            bound = 1.0 / math.sqrt(layer.in_features)
            nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
            nn.init.uniform_(layer.bias, -bound, bound, generator=generator)


def zero_last_layer(layers: nn.Module) -> None:
    """Make a perceptron the zero function, which can still be trained."""
    for parameter in list(layers.children())[-1].parameters():
        nn.init.zeros_(parameter)


def weights_to_dict(module: nn.Module) -> dict[str, Any]:
    """Return the weights of a small network as JSON can hold them, exactly."""
    weights = {name: value.tolist() for name, value in module.state_dict().items()}
    dtype = str(next(module.parameters()).dtype).removeprefix("torch.")
    return {"dtype": dtype, "weights": weights}


def load_weights(module: nn.Module, data: Mapping[str, Any]) -> None:
    """Inverse of ``weights_to_dict``.

    Raises:
        ValueError: the weights are not those of the module.
    """
    dtypes = {"float32": torch.float32, "float64": torch.float64}
    try:
        dtype = dtypes[data["dtype"]]
        weights = {k: torch.tensor(v, dtype=dtype) for k, v in data["weights"].items()}
        module.to(dtype).load_state_dict(weights)
    except (AttributeError, KeyError, RuntimeError, TypeError) as error:
        raise ValueError(f"weights do not fit {type(module).__name__}: {error}") from error
