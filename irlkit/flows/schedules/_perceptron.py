"""The small networks that functions of time are made of."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import nn

from irlkit.utils.checks import check_count

MAX_SIZES = {"hidden_dim": 2**14, "n_hidden_layers": 100, "n_frequencies": 10_000}


def check_sizes(**sizes: int) -> dict[str, int]:
    """Return the sizes of a perceptron, or raise a ValueError that names the one that is wrong."""
    for name, size in sizes.items():
        check_count(name, size, least=int(name == "hidden_dim"), most=MAX_SIZES[name])
    return {name: int(size) for name, size in sizes.items()}


def perceptron(sizes: list[int], generator: torch.Generator, zero: bool = True) -> nn.Sequential:
    """Return linear layers of these widths with SiLU between them.

    Args:
        sizes: widths, the inputs' first.
        generator: draws the weights.
        zero: the last layer is zero, and with it the function, which can still be trained.
    """
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(sizes):
        layer = nn.utils.skip_init(nn.Linear, n_in, n_out)
        bound = 1.0 / math.sqrt(n_in)
        for parameter in (layer.weight, layer.bias):
            nn.init.uniform_(parameter, -bound, bound, generator=generator)
        layers += [layer, nn.SiLU()]
    if zero:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers[:-1])
