"""CSPNet, the network of DiffCSP and OMatG, evaluated without a per-pair concatenation.

The function is that of OMatG's ``CSPNetFull`` under its parameter names. With LN a layer norm, psi
the Fourier features of the coordinate difference, and all ordered pairs i, j (i = j included)
inside each structure, one layer is

    h_i <- h_i + phi_h(LN(h)_i, mean_j phi_e(LN(h)_i, LN(h)_j, L L^T, psi(x_j - x_i)))

What makes it cheap changes nothing:

1. The first linear map of phi_e is a sum of maps of its four arguments, so what depends on one
   atom or on one structure is computed once per atom or structure.
2. What depends on x_j - x_i is, along each axis, a periodic function of one variable that the
   weights alone determine; ``networks._pairs`` interpolates it to rounding (on a CPU) or uses its
   symmetry (elsewhere). Its features serve all layers and all networks at the same positions.
3. Which pairs exist depends on the numbers of atoms alone (`PairTopology`).
4. Structures do not see each other, so parts of a batch whose edges fit into the cache go through
   all layers one after the other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from irlkit.networks._pairs import (
    FourierFeatures,
    InterpolatedFeatures,
    PairFeatures,
    PairTopology,
    PartFeatures,
    grid_values,
    interpolates,
)
from irlkit.utils.checks import check_count, checked

HEADS = ("velocity", "denoiser")


@dataclass(frozen=True)
class NetworkOutput:
    """Output per head.

    Attributes:
        velocity: ``{"pos": (n, 3), "cell": (B, 3, 3)}`` or empty.
        denoiser: the same for the denoiser.
        species: ``{"species": (n, n_species)}``, logits of the final species (class j is atomic
            number j + 1), or empty.
    """

    velocity: dict[str, Tensor]
    denoiser: dict[str, Tensor]
    species: dict[str, Tensor] = field(default_factory=dict)


class TimeEmbedding(nn.Module):
    """Sines, then cosines, of t exp(-k ln(1e4) / (dim/2 - 1)), k = 0 ... dim/2 - 1."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        if not isinstance(dim, int) or dim < 4 or dim % 2:
            raise ValueError(f"time_dim: expected an even number of at least 4, got {dim}")
        self.dim = dim

    def forward(self, t: Tensor) -> Tensor:
        """Embed times of shape (m,) as (m, dim)."""
        half = self.dim // 2
        k = torch.arange(half, device=t.device, dtype=t.dtype)
        angles = t[:, None] * torch.exp(-k * (math.log(1e4) / (half - 1)))
        return torch.cat([angles.sin(), angles.cos()], dim=1)


def _perceptron(n_in: int, n_out: int) -> nn.Sequential:
    maps = nn.Linear(n_in, n_out), nn.Linear(n_out, n_out)
    return nn.Sequential(maps[0], nn.SiLU(), maps[1], nn.SiLU())


def _maps(mlp: nn.Sequential) -> tuple[nn.Linear, nn.Linear]:
    """The two linear maps of an edge or node network."""
    return cast(nn.Linear, mlp[0]), cast(nn.Linear, mlp[2])


class _EdgeMessages(torch.autograd.Function):
    """Mean of the edge network's output over each atom's edges, from interpolated features.

    Of everything the size of the edges, only the second linear map's output is kept for the
    backward pass; what comes before it is cheaper to recompute than to store.
    """

    @staticmethod
    def forward(
        ctx: Any,
        features: InterpolatedFeatures,
        grids: Tensor,
        receiver: Tensor,
        sender: Tensor,
        weight: Tensor,
        bias: Tensor,
        keep: bool,
    ) -> Tensor:
        hidden = functional.silu(features.edges(grids, receiver, sender), inplace=True)
        before = functional.linear(hidden, weight, bias)
        if keep:
            ctx.features = features
            ctx.save_for_backward(grids, receiver, sender, weight, before)
        return features.part.mean(functional.silu(before, inplace=not keep).to(grids.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        features: InterpolatedFeatures = ctx.features
        grids, receiver, sender, weight, before = ctx.saved_tensors
        dtype = before.dtype  # of autocast, if that was on
        grad = features.part.spread(grad).to(dtype)
        grad = torch.ops.aten.silu_backward(grad, before)
        hidden = features.edges(grids, receiver, sender)
        grad_hidden = (grad @ weight.to(dtype)).to(hidden.dtype)
        grad_edges = torch.ops.aten.silu_backward(grad_hidden, hidden)
        grad_weight = grad.T @ functional.silu(hidden, inplace=True).to(dtype)
        grad_bias = grad.sum(0)
        return (
            None,
            *features.edges_transposed(grad_edges),
            grad_weight.to(weight.dtype),
            grad_bias.to(weight.dtype),
            None,
        )


class CSPLayer(nn.Module):
    """One message-passing layer; see the module's formula."""

    def __init__(self, hidden_dim: int, n_freqs: int) -> None:
        super().__init__()
        self.n_freqs = n_freqs
        self.edge_mlp = _perceptron(2 * hidden_dim + 9 + 6 * n_freqs, hidden_dim)
        self.node_mlp = _perceptron(2 * hidden_dim, hidden_dim)
        self.layer_norm = nn.LayerNorm(hidden_dim)
        self._frozen_grids: tuple[Tensor, Tensor] | None = None

    def pair_coefficients(self) -> Tensor:
        """Return the pair features' coefficients in the first edge map, shape (H, 6 K)."""
        return _maps(self.edge_mlp)[0].weight[:, -6 * self.n_freqs :]

    def grids(self) -> Tensor:
        """Return `grid_values` of the coefficients, shape (3 points, H), kept while frozen.

        The weights themselves are compared: a version counter misses what goes through ``.data``.
        """
        weight = _maps(self.edge_mlp)[0].weight
        if torch.is_grad_enabled() and weight.requires_grad:
            with torch.autocast(weight.device.type, enabled=False):
                return grid_values(self.pair_coefficients(), self.n_freqs)
        kept = self._frozen_grids
        if kept is None or kept[0].dtype != weight.dtype or not torch.equal(kept[0], weight):
            # Also of use outside inference mode, should this be inside.
            with (
                torch.inference_mode(False),
                torch.no_grad(),
                torch.autocast(weight.device.type, enabled=False),
            ):
                values = grid_values(self.pair_coefficients(), self.n_freqs)
                self._frozen_grids = kept = (weight.detach().clone(), values)
        return kept[1]

    def forward(
        self, h: Tensor, gram: Tensor, features: PartFeatures, grids: Tensor | None
    ) -> Tensor:
        """Update the atoms' features.

        Args:
            h: Atom features, shape (m, H).
            gram: L L^T, flattened, shape (b, 9).
            features: Pair features of these structures.
            grids: Of `grids`, for interpolated features.

        Returns:
            New features, shape (m, H).
        """
        inplace = not torch.is_grad_enabled()
        width = h.shape[1]
        part = features.part
        first, second = _maps(self.edge_mlp)
        w_i, w_j, w_gram, w_pair = first.weight.split([width, width, 9, 6 * self.n_freqs], dim=1)
        normed = self.layer_norm(h)
        of_structure = functional.linear(gram, w_gram, first.bias).index_select(0, part.batch)
        receiver = torch.addmm(of_structure, normed, w_i.T)
        sender = normed @ w_j.T
        if isinstance(features, InterpolatedFeatures):
            message = _EdgeMessages.apply(
                features,
                grids,
                receiver.to(h.dtype),
                sender.to(h.dtype),
                second.weight,
                second.bias,
                torch.is_grad_enabled(),
            )
        else:
            edges = features.edges(w_pair, receiver, sender)
            edges = second(functional.silu(edges, inplace=inplace))
            message = part.mean(functional.silu(edges, inplace=inplace).to(h.dtype))
        first, second = _maps(self.node_mlp)
        w_normed, w_message = first.weight.split(width, dim=1)
        node = torch.addmm(functional.linear(normed, w_normed, first.bias), message, w_message.T)
        node = second(functional.silu(node, inplace=inplace))
        return h + functional.silu(node, inplace=inplace)


MAX_WEIGHTS = 500_000_000
"""Ten times the largest published network has fewer."""


class CSPNet(nn.Module):
    """Velocity (and denoiser) of positions and cell, and logits of species that are not given.

    Args:
        hidden_dim: Channels H.
        n_layers: Message-passing layers.
        n_freqs: Frequencies K of the pair features.
        time_dim: Size of the time embedding.
        n_species: Largest atomic number.
        denoiser: Whether the network has the second pair of heads.
        species_head: Whether it predicts the final species of atoms.
        mask_token: Whether atoms may have the species 0: not known yet.

    Raises:
        ValueError: a size is not positive.
    """

    @checked
    def __init__(
        self,
        hidden_dim: int = 512,
        n_layers: int = 6,
        n_freqs: int = 128,
        time_dim: int = 256,
        n_species: int = 100,
        denoiser: bool = False,
        species_head: bool = False,
        mask_token: bool = False,
    ) -> None:
        super().__init__()
        self.sizes = {
            "hidden_dim": hidden_dim,
            "n_layers": n_layers,
            "n_freqs": n_freqs,
            "time_dim": time_dim,
            "n_species": n_species,
            "denoiser": denoiser,
        }
        for name in ("hidden_dim", "n_layers", "n_freqs", "n_species"):
            check_count(name, self.sizes[name])
        time_embedding = TimeEmbedding(time_dim)
        # What a damaged file asks for must not fill the memory.
        n_weights = n_layers * hidden_dim * (6 * hidden_dim + 6 * n_freqs)
        n_weights += hidden_dim * (hidden_dim + time_dim + n_species)
        if n_weights > MAX_WEIGHTS or n_layers > 1000:
            raise ValueError(
                f"hidden_dim, n_layers, ...: a network of {n_layers} layers and about {n_weights} "
                f"weights is more than the {MAX_WEIGHTS} that are expected at most"
            )
        if species_head or mask_token:
            self.sizes |= {"species_head": species_head, "mask_token": mask_token}
        self.first_species = 0 if mask_token else 1
        self.n_freqs = n_freqs
        self.n_layers = n_layers
        self.heads = (HEADS if denoiser else HEADS[:1]) + (("species",) if species_head else ())
        self.time_embedding = time_embedding
        self.node_embedding = nn.Embedding(n_species + mask_token, hidden_dim)
        self.atom_latent_emb = nn.Linear(hidden_dim + time_dim, hidden_dim)
        for k in range(n_layers):
            self.add_module(f"csp_layer_{k}", CSPLayer(hidden_dim, n_freqs))
        self.final_layer_norm = nn.LayerNorm(hidden_dim)
        self.coord_out = nn.Linear(hidden_dim, 3, bias=False)
        self.lattice_out = nn.Linear(hidden_dim, 9, bias=False)
        if denoiser:
            self.coord_out_2 = nn.Linear(hidden_dim, 3, bias=False)
            self.lattice_out_2 = nn.Linear(hidden_dim, 9, bias=False)
        if species_head:
            self.type_out = nn.Linear(hidden_dim, n_species)

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
            species: Atomic numbers 1 ... n_species, shape (n,); 0 where masked.
            pos: Fractional coordinates, shape (n, 3).
            cell: Lattice vectors as rows in Å, shape (B, 3, 3).
            topology: Pairs of these structures.
            features: Pair features at `pos`, if already computed.
            heads: Which of "velocity", "denoiser" and "species" to compute.

        Returns:
            One entry per requested head; per field, positions' velocities are fractional, cells'
            in Å.

        Raises:
            ValueError: a requested head does not exist.
        """
        missing = [head for head in heads if head not in self.heads]
        if missing:
            raise ValueError(f"heads: this network has {self.heads}, asked for {missing}")
        layers = [
            cast(CSPLayer, self.get_submodule(f"csp_layer_{k}")) for k in range(self.n_layers)
        ]
        kind = InterpolatedFeatures if interpolates(pos) else FourierFeatures
        if features is not None:
            kind = type(features.parts[0])
        grids = [layer.grids() if kind is InterpolatedFeatures else None for layer in layers]
        w_species, w_time = self.atom_latent_emb.weight.split(
            [self.node_embedding.embedding_dim, self.time_embedding.dim], dim=1
        )
        time = functional.linear(
            self.time_embedding(t.reshape(-1).to(pos.dtype)), w_time, self.atom_latent_emb.bias
        )
        time = time.expand(len(cell), -1)
        of_species = self.node_embedding.weight @ w_species.T
        gram = (cell @ cell.transpose(1, 2)).flatten(1)
        atoms, structures = [], []
        # Part by part through all layers: what the size of the edges is stays in the cache.
        for k, where in enumerate(topology.parts):
            if features is not None:
                part = features.parts[k]
            else:
                part = kind.from_positions(pos[where.atoms], where, self.n_freqs)
            # Under autocast, what is summed over layers and atoms keeps the precision of positions.
            h = of_species.index_select(0, species[where.atoms] - self.first_species).to(pos.dtype)
            h = h + time[where.structures].index_select(0, where.batch)
            for layer, grid in zip(layers, grids, strict=True):
                h = layer(h, gram[where.structures], part, grid)
            h = self.final_layer_norm(h)
            total = h.new_zeros(len(where.n_atoms), h.shape[1]).index_add_(0, where.batch, h)
            atoms.append(h)
            structures.append(total / where.n_atoms.to(h.dtype)[:, None])
        h, pooled = torch.cat(atoms), torch.cat(structures)
        outputs: dict[str, dict[str, Tensor]] = {head: {} for head in (*HEADS, "species")}
        with torch.autocast(pos.device.type, enabled=False):
            for head in heads:
                if head == "species":
                    outputs[head] = {"species": self.type_out(h)}
                    continue
                suffix = "" if head == "velocity" else "_2"
                strain = self.get_submodule(f"lattice_out{suffix}")(pooled).view(-1, 3, 3)
                outputs[head] = {
                    "pos": self.get_submodule(f"coord_out{suffix}")(h),
                    "cell": strain @ cell,
                }
        return NetworkOutput(**outputs)
