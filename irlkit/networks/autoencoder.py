"""Autoencoder of crystals: eight numbers per atom that stand for species, positions and cell.

A transformer maps the atoms of a crystal to a normal distribution of latents per atom, another maps
latents back (Chemeleon2's first stage; written anew, with periodic coordinates). Positions are told
in the frame of the input: a shift of the crystal shifts what is decoded.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from irlkit.crystals import CrystalBatch
from irlkit.crystals.batch import wrap_positions
from irlkit.flows.base_distribution import cell_from_parameters
from irlkit.networks import _files
from irlkit.networks._transformer import Block, Slots
from irlkit.utils.checks import check_count, checked

FORMAT = "irlkit-autoencoder-1"
N_SPECIES = 100


@dataclass(frozen=True, eq=False)
class Decoded:
    """What latents stand for.

    Attributes:
        species: Logits of atomic numbers 1 to 100, shape (n, 100).
        pos: Per coordinate, a vector whose direction is the angle 2 pi x, shape (n, 3, 2).
        lengths: Of the cell's vectors over N^(1/3), Å, shape (B, 3).
        angles: Between them, radians, shape (B, 3).
    """

    species: Tensor
    pos: Tensor
    lengths: Tensor
    angles: Tensor


class Autoencoder(nn.Module):
    """Maps crystals to latents, one vector per atom, and back.

    Args:
        width: Channels of the transformers.
        n_layers: Layers of each of the two.
        n_heads: Heads of their attention.
        latent_dim: Numbers per atom.
        n_freqs: Frequencies by which coordinates enter.
        info: Plain data about training.

    Raises:
        ValueError: a size is below 1, or the heads do not divide the width.
    """

    @checked
    def __init__(
        self,
        width: int = 128,
        n_layers: int = 4,
        n_heads: int = 4,
        latent_dim: int = 8,
        n_freqs: int = 4,
        info: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.sizes = dict(
            width=width, n_layers=n_layers, n_heads=n_heads, latent_dim=latent_dim, n_freqs=n_freqs
        )
        for name, value in self.sizes.items():
            check_count(name, value)
        if width % n_heads:
            raise ValueError(f"n_heads must divide the width of {width}, got {n_heads}")
        self.info = dict(info or {})
        self.species_in = nn.Embedding(N_SPECIES, width)
        self.pos_in = nn.Linear(6 * n_freqs, width)
        self.cell_in = nn.Sequential(nn.Linear(7, width), nn.SiLU(), nn.Linear(width, width))
        self.encoder = nn.ModuleList(Block(width, n_heads) for _ in range(n_layers))
        self.latent_out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * latent_dim))
        self.latent_in = nn.Linear(latent_dim, width)
        self.size_in = nn.Linear(1, width)
        self.decoder = nn.ModuleList(Block(width, n_heads) for _ in range(n_layers))
        self.norm_out = nn.LayerNorm(width)
        self.species_out = nn.Linear(width, N_SPECIES)
        self.pos_out = nn.Linear(width, 6)
        last = nn.Linear(width, 6)
        self.cell_out = nn.Sequential(nn.Linear(width, width), nn.SiLU(), last)
        with torch.no_grad():  # About the middle of what cells there are.
            last.bias.copy_(torch.tensor([3.0] * 3 + [0.5 * math.pi] * 3))

    @property
    def latent_dim(self) -> int:
        """Numbers per atom."""
        return self.sizes["latent_dim"]

    def encode(self, crystals: CrystalBatch) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of the latents of crystals, both (n, latent_dim)."""
        slots = Slots.from_n_atoms(crystals.n_atoms)
        lengths, angles = _cell_parameters(crystals.cell)
        freqs = 2 * math.pi * torch.arange(1, self.sizes["n_freqs"] + 1).to(crystals.pos)
        phases = (crystals.pos[:, :, None] * freqs).flatten(1)
        root = _root(crystals.n_atoms, crystals.cell)
        of_cell = self.cell_in(torch.cat([lengths / root, angles, root], dim=1))
        x = self.species_in(crystals.species - 1)
        x = x + self.pos_in(torch.cat([phases.sin(), phases.cos()], dim=1))
        x = x + of_cell.index_select(0, slots.batch)
        for block in self.encoder:
            x = block(x, slots)
        mean, log_std = self.latent_out(x).chunk(2, dim=1)
        return mean, log_std.clamp(-10, 3).exp()

    def decode(self, latent: Tensor, n_atoms: Tensor) -> Decoded:
        """Return what latents (n, latent_dim) of structures of n_atoms (B,) atoms stand for.

        Raises:
            ValueError: latents of another shape, or atoms more or fewer than there are latents.
        """
        if latent.shape != (int(n_atoms.sum()), self.latent_dim):
            raise ValueError(
                f"latent must have shape ({int(n_atoms.sum())}, {self.latent_dim}): this "
                f"autoencoder has {self.latent_dim} numbers per atom, got {tuple(latent.shape)}"
            )
        slots = Slots.from_n_atoms(n_atoms)
        size = self.size_in(_root(n_atoms, latent))
        x = self.latent_in(latent) + size.index_select(0, slots.batch)
        for block in self.decoder:
            x = block(x, slots)
        x = self.norm_out(x)
        lengths, angles = self.cell_out(slots.mean(x)).chunk(2, dim=1)
        pos = self.pos_out(x).unflatten(1, (3, 2))
        return Decoded(self.species_out(x), pos, lengths, angles)

    @torch.no_grad()
    def crystals(self, latent: Tensor, n_atoms: Tensor) -> CrystalBatch:
        """Return the crystals of latents (n, latent_dim): most likely species, cells from angles.

        Latents far from any crystal's give cells without a volume, which `crystals.validity`
        rejects; none raises.
        """
        decoded = self.decode(latent, n_atoms)
        turns = torch.atan2(decoded.pos[..., 1], decoded.pos[..., 0]) / (2 * math.pi)
        lengths = decoded.lengths * _root(n_atoms, latent)
        cell = cell_from_parameters(lengths, decoded.angles.rad2deg().clamp(1, 179))
        species = decoded.species.argmax(1) + 1
        return CrystalBatch._unchecked(species, wrap_positions(turns), cell, n_atoms)

    @checked
    def save(self, path: str | os.PathLike[str]) -> None:
        """Write weights and sizes to one safetensors file."""
        description = {"format": FORMAT, "sizes": self.sizes, "info": self.info}
        _files.write(path, self, description)

    @classmethod
    @checked
    def load(cls, path: str | os.PathLike[str], device: str | torch.device = "cpu") -> Autoencoder:
        """Read an autoencoder that `save` wrote, in evaluation mode.

        Args:
            path: File, or "chemeleon-vae", which comes with the package.
            device: Where to put the weights.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is no autoencoder of this package, or its tensors do not fit.

        >>> model = Autoencoder.load("chemeleon-vae")
        >>> cell = 4.1 * torch.eye(3)
        >>> crystals = CrystalBatch.from_arrays([[55, 17]], [[[0, 0, 0], [0.5, 0.5, 0.5]]], [cell])
        >>> latent, _ = model.encode(crystals)
        >>> latent.shape, model.crystals(latent, crystals.n_atoms).formulas()
        (torch.Size([2, 8]), ['Cl1 Cs1'])
        """

        def build(description: dict[str, Any]) -> Autoencoder:
            return cls(**description["sizes"], info=description["info"])

        file = _files.shipped(path, "latent")
        return _files.read(file, FORMAT, build, device, "Autoencoder.save")


def _cell_parameters(cell: Tensor) -> tuple[Tensor, Tensor]:
    """Lengths, Å, and angles alpha, beta, gamma, radians, of cells (B, 3, 3); (B, 3) each."""
    lengths = cell.norm(dim=2)
    unit = cell / lengths[:, :, None]
    cosines = (unit[:, [1, 0, 0]] * unit[:, [2, 2, 1]]).sum(2)
    return lengths, cosines.clamp(-1, 1).acos()


def _circles(pos: Tensor) -> Tensor:
    """Cosine and sine of 2 pi x of each coordinate, (n, 3) to (n, 6)."""
    angles = 2 * math.pi * pos
    return torch.stack([angles.cos(), angles.sin()], dim=2).flatten(1)


def _root(n_atoms: Tensor, like: Tensor) -> Tensor:
    """N^(1/3) of structures, shape (B, 1)."""
    return n_atoms.to(like)[:, None] ** (1 / 3)


def shifted(crystals: CrystalBatch, generator: torch.Generator) -> CrystalBatch:
    """Return crystals moved as a whole, each by a random vector: the same crystals."""
    shift = torch.rand(len(crystals), 3, generator=generator).to(crystals.pos)
    return crystals.replace(pos=wrap_positions(crystals.pos + shift[crystals.batch]))


def reconstruction_losses(
    model: Autoencoder,
    crystals: CrystalBatch,
    generator: torch.Generator,
    *,
    periodic: bool = True,
) -> dict[str, Tensor]:
    """Return the parts of the autoencoder's loss, at latents drawn for the crystals.

    Args:
        model: With gradient.
        crystals: Data, cells in the standard orientation.
        generator: Draws the latents; on the CPU.
        periodic: Compare coordinates on the circle: the squared distance of vectors over (2 pi)^2,
            which for small errors is that of fractional coordinates; else in [0, 1), as Chemeleon2,
            where 0.01 and 0.99 are far apart.

    Returns:
        Scalars. "species": cross-entropy per atom; "pos", "lengths", "angles": mean squared errors
        of coordinates, of lengths over N^(1/3), Å, and of angles, radians; "kl": KL divergence from
        a standard normal, summed over an atom's latents, mean over atoms.
    """
    mean, std = model.encode(crystals)
    noise = torch.randn(mean.shape, generator=generator).to(mean)
    decoded = model.decode(mean + std * noise, crystals.n_atoms)
    lengths, angles = _cell_parameters(crystals.cell)
    lengths = lengths / _root(crystals.n_atoms, lengths)
    if periodic:
        errors = decoded.pos.flatten(1) - _circles(crystals.pos)
        pos = 2 * errors.square().mean() / (2 * math.pi) ** 2
    else:
        turns = torch.atan2(decoded.pos[..., 1], decoded.pos[..., 0]) / (2 * math.pi)
        pos = (turns % 1 - crystals.pos).square().mean()
    return {
        "species": functional.cross_entropy(decoded.species, crystals.species - 1),
        "pos": pos,
        "lengths": (decoded.lengths - lengths).square().mean(),
        "angles": (decoded.angles - angles).square().mean(),
        "kl": (0.5 * (mean.square() + std.square() - 1) - std.log()).sum(1).mean(),
    }
