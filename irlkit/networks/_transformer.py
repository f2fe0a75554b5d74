"""Transformer layers over the atoms of structures of different sizes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, eq=False)
class Slots:
    """Places of the atoms of B structures in a table of B rows and as many columns as needed.

    Only attention needs the table; all that acts on atoms alone does so on flat tensors (n, ...),
    where no place is empty.

    Attributes:
        n_atoms: Atoms per structure, shape (B,).
        batch: Structure of each atom, shape (n,).
        places: Place of each atom in the flattened table, shape (n,).
        mask: Where the table is filled, bool, shape (B, columns).
    """

    n_atoms: Tensor
    batch: Tensor
    places: Tensor
    mask: Tensor

    @classmethod
    def from_n_atoms(cls, n_atoms: Tensor) -> Slots:
        """Build the table for numbers of atoms, int64, shape (B,)."""
        columns = torch.arange(int(n_atoms.max()), device=n_atoms.device)
        mask = columns < n_atoms[:, None]
        places = mask.flatten().nonzero().flatten()
        return cls(n_atoms, places // len(columns), places, mask)

    def spread(self, x: Tensor) -> Tensor:
        """Return atoms (n, d) as a table (B, columns, d), 0 where there is none."""
        table = x.new_zeros(self.mask.numel(), x.shape[1]).index_copy(0, self.places, x)
        return table.view(*self.mask.shape, x.shape[1])

    def gather(self, table: Tensor) -> Tensor:
        """Return the atoms (n, d) of a table (B, columns, d)."""
        return table.flatten(0, 1).index_select(0, self.places)

    def mean(self, x: Tensor) -> Tensor:
        """Return the means of atoms (n, d) over each structure, shape (B, d)."""
        total = x.new_zeros(len(self.n_atoms), x.shape[1]).index_add(0, self.batch, x)
        return total / self.n_atoms[:, None].to(x)


class Attention(nn.Module):
    """Self-attention among the atoms of each structure."""

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, slots: Slots) -> Tensor:
        """Map atoms of shape (n, width) to the same."""
        table = slots.spread(self.qkv(x))
        q, k, v = table.unflatten(2, (3, self.n_heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, slots.mask[:, None, None])
        return self.out(slots.gather(mixed.transpose(1, 2).flatten(2)))


class Block(nn.Module):
    """Attention and a perceptron, each after a layer norm and added to its input.

    With a condition, its layer norms are shifted and scaled and its two contributions are gated by
    a map of the condition that begins at zero (adaLN-zero; Peebles and Xie 2023): the block begins
    as the identity.

    Args:
        width: Channels.
        n_heads: Heads, which divide it.
        condition: Channels of the condition; 0: there is none.
    """

    def __init__(self, width: int, n_heads: int, condition: int = 0) -> None:
        super().__init__()
        self.norms = nn.ModuleList(
            nn.LayerNorm(width, elementwise_affine=not condition) for _ in range(2)
        )
        self.attention = Attention(width, n_heads)
        self.perceptron = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width)
        )
        self.modulation = nn.Linear(condition, 6 * width) if condition else None
        if self.modulation is not None:
            nn.init.zeros_(self.modulation.weight)
            nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, slots: Slots, condition: Tensor | None = None) -> Tensor:
        """Map atoms (n, width), with a condition per structure (B, channels), to the same shape."""
        first, second = self.norms
        if self.modulation is None:
            x = x + self.attention(first(x), slots)
            return x + self.perceptron(second(x))
        per_atom = self.modulation(condition).index_select(0, slots.batch)
        shift, scale, gate, shift_2, scale_2, gate_2 = per_atom.chunk(6, dim=1)
        x = x + gate * self.attention(first(x) * (1 + scale) + shift, slots)
        return x + gate_2 * self.perceptron(second(x) * (1 + scale_2) + shift_2)
