"""CSPNet, the network of DiffCSP and OMatG, evaluated without a per-pair concatenation.

The function is that of OMatG's ``CSPNetFull`` under its parameter names. With LN a layer norm, psi
the Fourier features of the coordinate difference, and all ordered pairs i, j (i = j included)
inside each structure, one layer is

    h_i <- h_i + phi_h(LN(h)_i, mean_j phi_e(LN(h)_i, LN(h)_j, L L^T, psi(x_j - x_i)))

Three identities make it cheap and change nothing:

1. The first linear map of phi_e is a sum of maps of its four arguments, so what depends on one
   atom or on one structure is computed once per atom or structure.
2. psi(x_i - x_j) is psi(x_j - x_i) with the sines negated, so unordered pairs suffice; psi is the
   same in all layers and in every network evaluated at the same positions.
3. Which pairs exist depends on the numbers of atoms alone (`PairTopology`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

HEADS = ("velocity", "denoiser")


@dataclass(frozen=True)
class PairTopology:
    """Which atoms interact, from the numbers of atoms alone.

    Attributes:
        n_atoms: Atoms per structure, shape (B,).
        batch: Structure of each atom, shape (n,).
        first: Smaller atom index of each unordered pair, shape (P,).
        second: Larger atom index of each unordered pair, shape (P,).
        receiver: Receiving atom of each directed edge, shape (2 P + n,): the unordered pairs, the
            same pairs reversed, and the self-edges.
    """

    n_atoms: Tensor
    batch: Tensor
    first: Tensor
    second: Tensor
    receiver: Tensor

    @classmethod
    def from_n_atoms(cls, n_atoms: Tensor) -> PairTopology:
        """Build the topology without a loop over structures.

        Args:
            n_atoms: Atoms per structure, shape (B,), positive integers.

        Returns:
            Topology on the device of `n_atoms`.

        Raises:
            ValueError: `n_atoms` is empty, not one-dimensional or has entries below 1.
        """
        if n_atoms.ndim != 1 or n_atoms.numel() == 0 or bool((n_atoms < 1).any()):
            raise ValueError(
                f"n_atoms: expected a one-dimensional tensor of positive counts, got {n_atoms}"
            )
        device = n_atoms.device
        structure = torch.arange(len(n_atoms), device=device)
        batch = structure.repeat_interleave(n_atoms)
        atom = torch.arange(len(batch), device=device)
        start = n_atoms.cumsum(0) - n_atoms
        # Atom i pairs with the atoms after it in its structure.
        n_after = (start + n_atoms)[batch] - atom - 1
        first = atom.repeat_interleave(n_after)
        offset = n_after.cumsum(0) - n_after
        second = torch.arange(len(first), device=device) - offset[first] + first + 1
        receiver = torch.cat([first, second, atom])
        return cls(n_atoms, batch, first, second, receiver)


@dataclass(frozen=True)
class PairFeatures:
    """Sines and cosines of 2 pi k (x_second - x_first), each of shape (P, 3 K), axis-major."""

    sines: Tensor
    cosines: Tensor

    @classmethod
    def from_positions(cls, pos: Tensor, topology: PairTopology, n_freqs: int) -> PairFeatures:
        """Features of all unordered pairs.

        Args:
            pos: Fractional coordinates, shape (n, 3); only differences modulo 1 enter.
            topology: Pairs.
            n_freqs: Number of frequencies K, k = 0 ... K - 1.
        """
        difference = pos[topology.second] - pos[topology.first]
        # The features do not see the nearest integer; without it, large arguments stay accurate.
        difference = difference - difference.round()
        frequencies = 2 * math.pi * torch.arange(n_freqs, device=pos.device, dtype=pos.dtype)
        angles = (difference[:, :, None] * frequencies).flatten(1)
        return cls(angles.sin(), angles.cos())


@dataclass(frozen=True)
class NetworkOutput:
    """Output per head.

    Attributes:
        velocity: ``{"pos": (n, 3), "cell": (B, 3, 3)}`` or empty.
        denoiser: the same for the denoiser.
    """

    velocity: dict[str, Tensor]
    denoiser: dict[str, Tensor]


class TimeEmbedding(nn.Module):
    """Sines, then cosines, of t exp(-k ln(1e4) / (dim/2 - 1)), k = 0 ... dim/2 - 1."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim < 4 or dim % 2:
            raise ValueError(f"time_dim: expected an even number of at least 4, got {dim}")
        self.dim = dim

    def forward(self, t: Tensor) -> Tensor:
        """Embed times of shape (m,) as (m, dim)."""
        half = self.dim // 2
        k = torch.arange(half, device=t.device, dtype=t.dtype)
        angles = t[:, None] * torch.exp(-k * (math.log(1e4) / (half - 1)))
        return torch.cat([angles.sin(), angles.cos()], dim=1)


class CSPLayer(nn.Module):
    """One message-passing layer; see the module's formula."""

    def __init__(self, hidden_dim: int, n_freqs: int) -> None:
        super().__init__()
        self.edge_mlp = nn.Sequential(
            nn.Linear(2 * hidden_dim + 9 + 6 * n_freqs, hidden_dim),
            nn.SiLU(),
            nn.Linear(hidden_dim, hidden_dim),
            nn.SiLU(),
        )
        self.node_mlp = nn.Sequential(
            nn.Linear(2 * hidden_dim, hidden_dim),
            nn.SiLU(),
            nn.Linear(hidden_dim, hidden_dim),
            nn.SiLU(),
        )
        self.layer_norm = nn.LayerNorm(hidden_dim)

    def forward(
        self, h: Tensor, gram: Tensor, features: PairFeatures, topology: PairTopology
    ) -> Tensor:
        """Update the atoms' features.

        Args:
            h: Atom features, shape (n, H).
            gram: L L^T, flattened, shape (B, 9).
            features: Pair features.
            topology: Pairs.

        Returns:
            New features, shape (n, H).
        """
        width = h.shape[1]
        n_pair = features.sines.shape[1]
        linear, _, second_linear, _ = self.edge_mlp
        assert isinstance(linear, nn.Linear)
        w_i, w_j, w_gram, w_sin, w_cos = linear.weight.split(
            [width, width, 9, n_pair, n_pair], dim=1
        )
        normed = self.layer_norm(h)
        receiver = normed @ w_i.T + functional.linear(gram, w_gram, linear.bias)[topology.batch]
        sender = normed @ w_j.T
        odd = features.sines @ w_sin.T
        even = features.cosines @ w_cos.T
        first, second = topology.first, topology.second
        inplace = not torch.is_grad_enabled()
        edges = torch.cat(
            [
                receiver[first] + sender[second] + even + odd,
                receiver[second] + sender[first] + even - odd,
                receiver + sender + w_cos.sum(1),
            ]
        )
        edges = functional.silu(edges, inplace=inplace)
        edges = functional.silu(second_linear(edges), inplace=inplace)
        message = torch.zeros_like(normed).index_add_(0, topology.receiver, edges.to(normed.dtype))
        message = message / topology.n_atoms[topology.batch].to(h.dtype)[:, None]
        return h + self.node_mlp(torch.cat([normed, message], dim=1))


class CSPNet(nn.Module):
    """Velocity (and denoiser) of positions and cell.

    Args:
        hidden_dim: Channels H.
        n_layers: Message-passing layers.
        n_freqs: Frequencies K of the pair features.
        time_dim: Size of the time embedding.
        n_species: Largest atomic number.
        denoiser: Whether the network has the second pair of heads.

    Raises:
        ValueError: a size is not positive.
    """

    def __init__(
        self,
        hidden_dim: int = 512,
        n_layers: int = 6,
        n_freqs: int = 128,
        time_dim: int = 256,
        n_species: int = 100,
        denoiser: bool = False,
    ) -> None:
        super().__init__()
        for name, value in (
            ("hidden_dim", hidden_dim),
            ("n_layers", n_layers),
            ("n_freqs", n_freqs),
            ("n_species", n_species),
        ):
            if value < 1:
                raise ValueError(f"{name}: expected a positive number, got {value}")
        self.sizes = {
            "hidden_dim": hidden_dim,
            "n_layers": n_layers,
            "n_freqs": n_freqs,
            "time_dim": time_dim,
            "n_species": n_species,
            "denoiser": denoiser,
        }
        self.n_freqs = n_freqs
        self.n_layers = n_layers
        self.heads = HEADS if denoiser else HEADS[:1]
        self.time_embedding = TimeEmbedding(time_dim)
        self.node_embedding = nn.Embedding(n_species, hidden_dim)
        self.atom_latent_emb = nn.Linear(hidden_dim + time_dim, hidden_dim)
        for k in range(n_layers):
            self.add_module(f"csp_layer_{k}", CSPLayer(hidden_dim, n_freqs))
        self.final_layer_norm = nn.LayerNorm(hidden_dim)
        self.coord_out = nn.Linear(hidden_dim, 3, bias=False)
        self.lattice_out = nn.Linear(hidden_dim, 9, bias=False)
        if denoiser:
            self.coord_out_2 = nn.Linear(hidden_dim, 3, bias=False)
            self.lattice_out_2 = nn.Linear(hidden_dim, 9, bias=False)

    def forward(
        self,
        t: Tensor,
        species: Tensor,
        pos: Tensor,
        cell: Tensor,
        topology: PairTopology,
        features: PairFeatures | None = None,
        heads: Sequence[str] = ("velocity",),
    ) -> NetworkOutput:
        """Evaluate the network.

        Args:
            t: Time, shape (B,) or () for one time for all.
            species: Atomic numbers 1 ... n_species, shape (n,).
            pos: Fractional coordinates, shape (n, 3).
            cell: Lattice vectors as rows in Å, shape (B, 3, 3).
            topology: Pairs of these structures.
            features: Pair features at `pos`, if already computed.
            heads: Which of "velocity" and "denoiser" to compute.

        Returns:
            One entry per requested head; per field, positions' velocities are fractional, cells'
            in Å.

        Raises:
            ValueError: a requested head does not exist.
        """
        missing = [head for head in heads if head not in self.heads]
        if missing:
            raise ValueError(f"heads: this network has {self.heads}, asked for {missing}")
        if features is None:
            features = PairFeatures.from_positions(pos, topology, self.n_freqs)
        w_species, w_time = self.atom_latent_emb.weight.split(
            [self.node_embedding.embedding_dim, self.time_embedding.dim], dim=1
        )
        time = functional.linear(
            self.time_embedding(t.reshape(-1).to(pos.dtype)), w_time, self.atom_latent_emb.bias
        )
        h = (self.node_embedding.weight @ w_species.T)[species - 1]
        # Under autocast, what is summed over layers and atoms keeps the precision of positions.
        h = h.to(pos.dtype) + (time if len(time) == 1 else time[topology.batch])
        gram = (cell @ cell.transpose(1, 2)).flatten(1)
        for k in range(self.n_layers):
            h = self.get_submodule(f"csp_layer_{k}")(h, gram, features, topology)
        h = self.final_layer_norm(h)
        pooled = h.new_zeros(len(cell), h.shape[1]).index_add_(0, topology.batch, h)
        pooled = pooled / topology.n_atoms.to(h.dtype)[:, None]
        outputs: dict[str, dict[str, Tensor]] = {head: {} for head in HEADS}
        for head in heads:
            suffix = "" if head == "velocity" else "_2"
            strain = self.get_submodule(f"lattice_out{suffix}")(pooled).view(-1, 3, 3)
            outputs[head] = {
                "pos": self.get_submodule(f"coord_out{suffix}")(h),
                "cell": strain @ cell,
            }
        return NetworkOutput(outputs["velocity"], outputs["denoiser"])
