"""Pairs of atoms, and the periodic function of their distance that opens an edge network.

The first linear map of an edge network sees the pair (i, j) as a_i + b_j + f(x_j - x_i), where f,
along each axis, is a trigonometric polynomial of degree K - 1 with one coefficient vector per
frequency. Two exact ways to evaluate f for all pairs:

`FourierFeatures`: the sines and cosines themselves, times the coefficients. Dense; unordered pairs
suffice, because the reversed pair only negates the sines.

`InterpolatedFeatures`: the values of f on a regular grid (`grid_basis` times the coefficients, once
per set of weights), read off between the grid points with a window of a few of them, as in a
nonuniform fast Fourier transform. With at least 4 K points and the window

    phi(z) = exp(beta (sqrt(1 - z^2) - 1)),  z in [-1, 1],

whose own transform is divided out of the coefficients, the truncation error is at the rounding of
the number format: 1e-7 of f with 7 points in single, 1e-13 with 15 in double precision, less than
the error of float32 sines at high frequencies. A pair then costs 3 x 7 rows of a small table in
place of 6 K products per channel, and a_i + b_j are two more rows of the same sparse product.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

MAX_EDGES = 8192
WINDOW = {torch.float32: 7, torch.float64: 15}
BETA_PER_POINT = 2.3


def _bag(
    table: Tensor, index: Tensor, offsets: Tensor, weight: Tensor | None = None, mode: str = "sum"
) -> Tensor:
    """Sums (or means) of rows of `table`; a sparse times a dense matrix."""
    return functional.embedding_bag(
        index, table, offsets, mode=mode, per_sample_weights=weight, include_last_offset=True
    )


@dataclass(frozen=True)
class PairPart:
    """All pairs of some consecutive structures, numbered within them.

    Edges come in the order: unordered pairs, the same reversed, each atom with itself.

    Attributes:
        structures: Which structures of the batch.
        atoms: Which atoms of the batch.
        n_atoms: Atoms per structure, shape (b,).
        batch: Structure of each atom, shape (m,).
        first: Smaller atom index of each unordered pair, shape (p,).
        second: Larger atom index of each unordered pair, shape (p,).
        receiver: Atom i of each edge, shape (2 p + m,).
        sender: Atom j of each edge, shape (2 p + m,).
        incoming: The edges sorted by receiver, shape (2 p + m,).
        offsets: Where each receiver's edges start in `incoming`, shape (m + 1,).
    """

    structures: slice
    atoms: slice
    n_atoms: Tensor
    batch: Tensor
    first: Tensor
    second: Tensor
    receiver: Tensor
    sender: Tensor
    incoming: Tensor
    offsets: Tensor

    def mean(self, edges: Tensor) -> Tensor:
        """Average (2 p + m, H) over the edges of each receiver; shape (m, H)."""
        return _bag(edges, self.incoming, self.offsets, mode="mean")

    def spread(self, grad: Tensor) -> Tensor:
        """Apply the transpose of `mean`: (m, H) to (2 p + m, H)."""
        share = self.offsets.diff().to(grad.dtype)[:, None]
        return (grad / share).index_select(0, self.receiver)


@dataclass(frozen=True)
class PairTopology:
    """Which atoms interact, from the numbers of atoms alone.

    Attributes:
        n_atoms: Atoms per structure, shape (B,).
        batch: Structure of each atom, shape (n,).
        parts: The pairs, in parts that are evaluated one after the other.
    """

    n_atoms: Tensor
    batch: Tensor
    parts: tuple[PairPart, ...]

    @classmethod
    def from_n_atoms(cls, n_atoms: Tensor, max_edges: int | None = None) -> PairTopology:
        """Build the topology.

        Args:
            n_atoms: Atoms per structure, shape (B,), positive integers.
            max_edges: A part ends with the structure that brings it to so many edges. None: what
                a CPU's cache holds; one part on other devices.

        Returns:
            Topology on the device of `n_atoms`.

        Raises:
            ValueError: `n_atoms` is empty, not one-dimensional or has entries below 1.
        """
        if n_atoms.ndim != 1 or n_atoms.numel() == 0 or bool((n_atoms < 1).any()):
            raise ValueError(
                f"n_atoms: expected a one-dimensional tensor of positive counts, got {n_atoms}"
            )
        structure = torch.arange(len(n_atoms), device=n_atoms.device)
        batch = structure.repeat_interleave(n_atoms)
        if max_edges is None and n_atoms.device.type != "cpu":
            sizes = [len(n_atoms)]
        else:
            n_edges = n_atoms.square()
            n_before = n_edges.cumsum(0) - n_edges
            number = n_before.div(max_edges or MAX_EDGES, rounding_mode="floor")
            sizes = number.unique_consecutive(return_counts=True)[1].tolist()
        parts: list[PairPart] = []
        structures = atoms = 0
        for counts in n_atoms.split(sizes):
            part = _part(counts, structures, atoms)
            parts.append(part)
            structures, atoms = part.structures.stop, part.atoms.stop
        return cls(n_atoms, batch, tuple(parts))


def _part(n_atoms: Tensor, first_structure: int, first_atom: int) -> PairPart:
    device = n_atoms.device
    batch = torch.arange(len(n_atoms), device=device).repeat_interleave(n_atoms)
    atom = torch.arange(len(batch), device=device)
    start = n_atoms.cumsum(0) - n_atoms
    # Atom i pairs with the atoms after it in its structure.
    n_after = (start + n_atoms)[batch] - atom - 1
    first = atom.repeat_interleave(n_after)
    offset = n_after.cumsum(0) - n_after
    second = torch.arange(len(first), device=device) - offset[first] + first + 1
    receiver = torch.cat([first, second, atom])
    n_edges = n_atoms[batch]
    return PairPart(
        structures=slice(first_structure, first_structure + len(n_atoms)),
        atoms=slice(first_atom, first_atom + len(batch)),
        n_atoms=n_atoms,
        batch=batch,
        first=first,
        second=second,
        receiver=receiver,
        sender=torch.cat([second, first, atom]),
        incoming=receiver.argsort(stable=True),
        offsets=functional.pad(n_edges.cumsum(0), (1, 0)),
    )


@dataclass(frozen=True)
class FourierFeatures:
    """Sines and cosines of 2 pi k (x_second - x_first), each of shape (p, 3 K), axis-major."""

    part: PairPart
    sines: Tensor
    cosines: Tensor

    @classmethod
    def from_positions(cls, pos: Tensor, part: PairPart, n_freqs: int) -> FourierFeatures:
        """Features of the pairs of a part at its positions (m, 3)."""
        difference = pos[part.second] - pos[part.first]
        # The features do not see the nearest integer; without it, large arguments stay accurate.
        difference = difference - difference.round()
        frequencies = 2 * math.pi * torch.arange(n_freqs, device=pos.device, dtype=pos.dtype)
        angles = (difference[:, :, None] * frequencies).flatten(1)
        return cls(part, angles.sin(), angles.cos())

    def edges(self, coefficients: Tensor, receiver: Tensor, sender: Tensor) -> Tensor:
        """Return receiver_i + sender_j + f(x_j - x_i), shape (2 p + m, H).

        Args:
            coefficients: Of sines, then cosines, shape (H, 6 K), axis-major.
            receiver: a_i, shape (m, H).
            sender: b_j, shape (m, H).
        """
        of_sines, of_cosines = coefficients.chunk(2, dim=1)
        odd = self.sines @ of_sines.T
        even = self.cosines @ of_cosines.T
        first, second = self.part.first, self.part.second
        return torch.cat(
            [
                receiver[first] + sender[second] + even + odd,
                receiver[second] + sender[first] + even - odd,
                receiver + sender + of_cosines.sum(1),
            ]
        )


def grid_size(n_freqs: int) -> int:
    """Points of the grid per period: a power of two, so that multiplying by it is exact."""
    return 1 << (4 * n_freqs - 1).bit_length()


@lru_cache(maxsize=16)
def grid_basis(n_freqs: int, dtype: torch.dtype) -> Tensor:
    """Sines, then cosines, on the grid, over the transform of the window.

    Returns:
        Shape (points, 2 K). The grid is continued by a window's width beyond its period.
    """
    n_grid, width = grid_size(n_freqs), WINDOW[dtype]
    nodes, node_weights = np.polynomial.legendre.leggauss(200)
    k = np.arange(n_freqs)
    window = np.exp(BETA_PER_POINT * width * (np.sqrt(1 - nodes**2) - 1))
    waves = np.cos(np.pi * width / n_grid * k[:, None] * nodes)
    transform = width / 2 * waves @ (node_weights * window)
    points = np.arange(n_grid + width) - width // 2
    # Reduced as integers: the angles stay below 2 pi.
    angles = 2 * np.pi / n_grid * (points[:, None] * k % n_grid)
    basis = np.concatenate([np.sin(angles) / transform, np.cos(angles) / transform], axis=1)
    with torch.inference_mode(False):
        return torch.tensor(basis, dtype=dtype)


def grid_values(coefficients: Tensor, n_freqs: int) -> Tensor:
    """Return the three functions of one axis on their grids.

    Args:
        coefficients: Of sines, then cosines, shape (H, 6 K), axis-major.
        n_freqs: Number of frequencies K, k = 0 ... K - 1.

    Returns:
        Shape (3 points, H).
    """
    basis = grid_basis(n_freqs, coefficients.dtype)
    per_axis = coefficients.view(-1, 2, 3, n_freqs).permute(2, 1, 3, 0).reshape(3, 2 * n_freqs, -1)
    return torch.matmul(basis, per_axis).flatten(0, 1)


@dataclass(frozen=True)
class InterpolatedFeatures:
    """Edges as sums of rows of a table: of the grids, of a_i and of b_j, stacked in this order.

    Attributes:
        part: The pairs.
        n_rows: Rows of the table.
        index: Rows of each edge, shape (2 p + m, 3 width + 2).
        weight: What they are multiplied by, same shape.
    """

    part: PairPart
    n_rows: int
    index: Tensor
    weight: Tensor

    @classmethod
    def from_positions(cls, pos: Tensor, part: PairPart, n_freqs: int) -> InterpolatedFeatures:
        """Features of the pairs of a part at its positions (m, 3)."""
        n_grid, width = grid_size(n_freqs), WINDOW[pos.dtype]
        n_points = n_grid + width
        forward = pos.index_select(0, part.second) - pos.index_select(0, part.first)
        difference = torch.cat([forward, -forward, torch.zeros_like(pos)])
        place = (difference - difference.floor()) * n_grid
        nearest = place.round()
        shift = torch.arange(width, dtype=pos.dtype, device=pos.device) - width // 2
        z = ((place - nearest)[:, :, None] - shift) * (2 / width)
        beta = BETA_PER_POINT * width
        window = (z.square().neg_().add_(1).clamp_(min=0).sqrt_().mul_(beta).sub_(beta)).exp_()
        axis = torch.arange(3, dtype=torch.int32, device=pos.device) * n_points
        # Of a lost structure's nan only the weights shall carry on.
        row = nearest.nan_to_num().to(torch.int32) + axis
        rows = row[:, :, None] + torch.arange(width, dtype=torch.int32, device=pos.device)
        n_edges, n_atoms = len(part.receiver), len(pos)
        index = torch.cat(
            [
                rows.view(n_edges, -1),
                (part.receiver[:, None] + 3 * n_points).to(torch.int32),
                (part.sender[:, None] + 3 * n_points + n_atoms).to(torch.int32),
            ],
            dim=1,
        )
        weight = torch.cat([window.view(n_edges, -1), window.new_ones(n_edges, 2)], dim=1)
        return cls(part, 3 * n_points + 2 * n_atoms, index, weight)

    def edges(self, grids: Tensor, receiver: Tensor, sender: Tensor) -> Tensor:
        """Return receiver_i + sender_j + f(x_j - x_i), (2 p + m, H); not differentiable.

        Args:
            grids: `grid_values` of the coefficients.
            receiver: a_i, shape (m, H).
            sender: b_j, shape (m, H).
        """
        table = torch.cat([grids, receiver, sender])
        return functional.embedding_bag(
            self.index, table, mode="sum", per_sample_weights=self.weight
        )

    def edges_transposed(self, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of `edges` with respect to its three arguments."""
        n_atoms = len(self.part.batch)
        edge, offsets, weight = self._by_row
        rows = _bag(grad, edge, offsets, weight)
        return rows.split([self.n_rows - 2 * n_atoms, n_atoms, n_atoms])

    @cached_property
    def _by_row(self) -> tuple[Tensor, Tensor, Tensor]:
        """Edges that use each row, where each row's list starts, and the weights."""
        rows, order = self.index.flatten().sort(stable=True)
        edge = (order // self.index.shape[1]).to(torch.int32)
        wanted = torch.arange(self.n_rows + 1, dtype=torch.int32, device=rows.device)
        offsets = torch.searchsorted(rows, wanted, out_int32=True)
        return edge, offsets, self.weight.flatten()[order]


PartFeatures = FourierFeatures | InterpolatedFeatures


@dataclass(frozen=True)
class PairFeatures:
    """Features of all pairs at some positions, usable by every network with as many frequencies.

    Attributes:
        parts: Per part of the topology.
    """

    parts: tuple[PartFeatures, ...] = field(repr=False)

    @classmethod
    def from_positions(
        cls, pos: Tensor, topology: PairTopology, n_freqs: int, interpolate: bool | None = None
    ) -> PairFeatures:
        """Features of all pairs.

        Args:
            pos: Fractional coordinates, shape (n, 3); only differences modulo 1 enter.
            topology: Pairs.
            n_freqs: Number of frequencies K, k = 0 ... K - 1.
            interpolate: Whether to take `InterpolatedFeatures`; None decides with `interpolates`.
        """
        if interpolate is None:
            interpolate = interpolates(pos)
        kind = InterpolatedFeatures if interpolate else FourierFeatures
        parts: list[PartFeatures] = [
            kind.from_positions(pos[part.atoms], part, n_freqs) for part in topology.parts
        ]
        return cls(tuple(parts))


def interpolates(pos: Tensor) -> bool:
    """Tell whether interpolation is the faster way and can be taken.

    It is on a CPU, in single and double precision; its derivative by positions is not implemented.
    """
    differentiable = torch.is_grad_enabled() and pos.requires_grad
    return pos.device.type == "cpu" and pos.dtype in WINDOW and not differentiable
