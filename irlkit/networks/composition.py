"""A network that predicts a property from the composition alone (Roost: Goodall and Lee, 2020).

The elements of a formula are nodes, weighted by their shares; each hears from all, by attention
that the shares weigh, and the formula is what attention pools from them.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from irlkit.crystals import CrystalBatch
from irlkit.crystals.compositions import element_counts
from irlkit.utils.checks import checked

ASSETS = Path(__file__).parents[1] / "assets" / "composition"
NETWORKS = ("band-gap",)
WIDTH, HIDDEN, N_LAYERS, N_HEADS = 64, 256, 3, 3


class _Attention(nn.Module):
    """Softmax over nodes of gate + power * log(share), of one head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.power = nn.Parameter(torch.ones(1))
        self.gate = nn.Sequential(nn.Linear(width, HIDDEN), nn.LeakyReLU(), nn.Linear(HIDDEN, 1))
        self.message = nn.Sequential(
            nn.Linear(width, HIDDEN), nn.LeakyReLU(), nn.Linear(HIDDEN, WIDTH)
        )

    def forward(self, x: Tensor, log_shares: Tensor) -> Tensor:
        """Pool nodes (..., E, width) with shares (..., E), -inf where there is no node."""
        gate = self.gate(x)[..., 0] + torch.where(
            log_shares.isfinite(), self.power * log_shares, -torch.inf
        )
        return (gate.softmax(-1)[..., None] * self.message(x)).sum(-2)


class _Residual(nn.Module):
    """A perceptron whose layers add a linear map of what they are given."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        *hidden, last = widths
        pairs = list(pairwise(hidden))
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairs)
        self.skips = nn.ModuleList(nn.Linear(a, b, bias=False) for a, b in pairs)
        self.last = nn.Linear(hidden[-1], last)

    def forward(self, x: Tensor) -> Tensor:
        for layer, skip in zip(self.layers, self.skips, strict=True):
            x = layer(x).relu() + skip(x)
        return self.last(x)


class CompositionNetwork(nn.Module):
    """Predicts one property of compositions.

    Args:
        n_features: numbers that describe an element.

    Attributes:
        features: of the elements by atomic number - 1, nan where unknown, shape (118, n_features).
        scale: mean and standard deviation of the property, shape (2,).
    """

    features: Tensor
    scale: Tensor

    def __init__(self, n_features: int = 200) -> None:
        super().__init__()
        self.register_buffer("features", torch.full((118, n_features), torch.nan))
        self.register_buffer("scale", torch.tensor([0.0, 1.0]))
        self.embed = nn.Linear(n_features, WIDTH - 1)
        self.layers = nn.ModuleList(
            nn.ModuleList(_Attention(2 * WIDTH) for _ in range(N_HEADS)) for _ in range(N_LAYERS)
        )
        self.pool = nn.ModuleList(_Attention(WIDTH) for _ in range(N_HEADS))
        self.trunk = _Residual(WIDTH, 1024, 512, 256)
        self.head = _Residual(256, 128, 64, 2)  # The second output is the spread of the first.

    @checked
    @torch.no_grad()
    def forward(self, batch: CrystalBatch, max_batch: int = 4096) -> Tensor:
        """Predict the property of each structure's composition, shape (B,).

        Args:
            batch: B structures; only their species count.
            max_batch: at most so many formulas at a time; each is computed once.

        Raises:
            ValueError: an element that the network has not seen.
        """
        counts = element_counts(batch)
        shares = (counts / batch.n_atoms[:, None]).to(self.scale)
        unknown = (counts.sum(0) > 0).to(self.features.device) & self.features.isnan().any(1)
        if bool(unknown.any()):
            from ase.data import chemical_symbols

            name = chemical_symbols[int(unknown.nonzero()[0]) + 1]
            raise ValueError(f"batch contains {name}, an element that the network has not seen")
        formulas, row = shares.unique(dim=0, return_inverse=True)
        parts = [self._predict(part) for part in formulas.split(max_batch)]
        return torch.cat([*parts, shares.new_zeros(0)])[row]

    def _predict(self, shares: Tensor) -> Tensor:
        """Of compositions (B, 118)."""
        most = int((shares > 0).sum(1).max())
        share, element = shares.topk(most, dim=1)
        logs = share.log()
        x = torch.cat([self.embed(self.features[element].nan_to_num()), share[..., None]], -1)
        for heads in self.layers:
            both = x[:, :, None].expand(-1, -1, most, -1), x[:, None].expand(-1, most, -1, -1)
            pairs = torch.cat(both, -1)
            heard = [head(pairs, logs[:, None]) for head in cast(nn.ModuleList, heads)]
            x = x + torch.stack(heard).mean(0)
        pooled = torch.stack([head(x, logs) for head in self.pool]).mean(0)
        mean, spread = self.scale
        return self.head(self.trunk(pooled).relu())[:, 0] * spread + mean


@checked
def load(name: str) -> CompositionNetwork:
    """Load a network of the package: "band-gap", in eV (see the cards in `irlkit/assets`).

    >>> network = load("band-gap")
    >>> network(CrystalBatch.from_formulas(["Na1 Cl1", "Si2"])).round(decimals=1)
    tensor([4.9000, 0.0000])

    Raises:
        ValueError: no network of that name.
    """
    if name not in NETWORKS:
        raise ValueError(f"name must be one of {NETWORKS}, got {name!r}")
    state = {k: v.float() for k, v in load_file(ASSETS / f"{name}.safetensors").items()}
    network = CompositionNetwork(state["features"].shape[1])
    network.load_state_dict(state)
    return network.eval().requires_grad_(False)
