"""Graphs of skeletons, and a small network on them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from irlkit.envs.skeletons import Skeletons

N_GAUSSIANS = 16
_LONGEST = 6.0


@dataclass(frozen=True, eq=False)
class Graphs:
    """Neighbours (CrystalNN's) of the sites of skeletons, padded.

    Attributes:
        edges: site and neighbour, -1 where there is none, int64, shape (S, m, 2).
        distances: Å, 0 where there is none, float32, shape (S, m).
    """

    edges: np.ndarray
    distances: np.ndarray

    @classmethod
    def of(cls, skeletons: Skeletons) -> Graphs:
        """Return the graphs of skeletons, by their prototypes' species."""
        from pymatgen.analysis.local_env import CrystalNN

        found = []
        strategy = CrystalNN(distance_cutoffs=None, x_diff_weight=0)
        for structure in skeletons.crystals.to_structures():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                neighbors = strategy.get_all_nn_info(structure)
            coords = structure.cart_coords
            found.append(
                [
                    (i, entry["site_index"], np.linalg.norm(entry["site"].coords - coords[i]))
                    for i, entries in enumerate(neighbors)
                    for entry in entries
                ]
            )
        most = max(map(len, found))
        edges = np.full((len(found), most, 2), -1, dtype=np.int64)
        distances = np.zeros((len(found), most), dtype=np.float32)
        for s, rows in enumerate(found):
            for e, (i, j, d) in enumerate(rows):
                edges[s, e], distances[s, e] = (i, j), d
        return cls(edges, distances)

    @cached_property
    def gaussians(self) -> np.ndarray:
        """Distances on Gaussians, 0 where there is no edge, float32, (S, m, N_GAUSSIANS)."""
        centers = np.linspace(1.0, _LONGEST, N_GAUSSIANS)
        width = centers[1] - centers[0]
        values = np.exp(-(((self.distances[..., None] - centers) / width) ** 2) / 2)
        return (values * (self.edges[..., :1] >= 0)).astype(np.float32)

    def dense(self, n_sites: int) -> Tensor:
        """Return the Gaussians summed per pair of sites, shape (S, n, n, N_GAUSSIANS)."""
        table = np.zeros((len(self.edges), n_sites, n_sites, N_GAUSSIANS), dtype=np.float32)
        skeleton, edge = np.nonzero(self.edges[..., 0] >= 0)
        i, j = self.edges[skeleton, edge].T
        np.add.at(table, (skeleton, i, j), self.gaussians[skeleton, edge])
        return torch.from_numpy(table)


class SiteNetwork(nn.Module):
    """Messages between neighbouring sites, read out at the site in focus.

    Args:
        skeletons: that it will see; others of the same width can be given later (`look_at`).
        n_elements: that a site can be filled with.
        n_outputs: numbers per structure; None for one per element.
        width: of the messages.
        n_layers: of messages.
    """

    def __init__(
        self,
        skeletons: Skeletons,
        n_elements: int,
        n_outputs: int | None = None,
        width: int = 64,
        n_layers: int = 3,
    ) -> None:
        super().__init__()
        self.look_at(skeletons)
        self.species = nn.Embedding(n_elements + 1, width)
        self.focus = nn.Parameter(0.1 * torch.randn(width))
        self.target = nn.Linear(1, width)
        self.filters = nn.ModuleList(
            nn.Linear(N_GAUSSIANS, width, bias=False) for _ in range(n_layers)
        )
        self.updates = nn.ModuleList(
            nn.Sequential(nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, width))
            for _ in range(n_layers)
        )
        n_outputs = n_elements if n_outputs is None else n_outputs
        self.out = nn.Sequential(
            nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, n_outputs)
        )

    def look_at(self, skeletons: Skeletons) -> None:
        """Take other skeletons' graphs: what was learned does not depend on them."""
        n = int(skeletons.n_atoms.max())
        bonds = Graphs.of(skeletons).dense(n)
        real = torch.arange(n) < skeletons.crystals.n_atoms[:, None]
        self.register_buffer("bonds", bonds, persistent=False)
        self.register_buffer("real", real, persistent=False)

    def forward(self, skeleton: Tensor, species: Tensor, focus: Tensor, target: Tensor) -> Tensor:
        """Return the outputs of b structures with n sites at most, shape (b, n_outputs).

        Args:
            skeleton: numbers of the skeletons, shape (b,).
            species: 0 for an empty site, or the number of an element from 1, shape (b, n).
            focus: the site to be filled, shape (b,).
            target: of the property, of the order of 1, shape (b,).
        """
        real = self.real[skeleton][..., None].to(self.focus)  # type: ignore[index]
        bonds = self.bonds[skeleton]  # type: ignore[index]
        h = self.species(species) + self.target(target[:, None].to(self.focus))[:, None]
        # Sums over one-hot vectors: gradients through indices are several times slower on a CPU.
        here = nn.functional.one_hot(focus, h.shape[1])[..., None].to(h)
        h = h + here * self.focus
        for bond, update in zip(self.filters, self.updates, strict=True):
            messages = (bond(bonds) * (h * real)[:, None]).sum(2)
            h = h + update(torch.cat([h, messages / 4], -1))
        mean = (h * real).sum(1) / real.sum(1)
        return self.out(torch.cat([(h * here).sum(1), mean], -1))
