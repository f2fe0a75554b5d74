"""All pairs of atoms within a cut-off, for many periodic structures at once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from irlkit.crystals import CrystalBatch
from irlkit.crystals.validity import reduce_lattices

_MAX_CANDIDATES = 1 << 20
"""Pairs tried at once; bounds the memory to some 100 MB."""


@dataclass(frozen=True)
class Neighbors:
    """Pairs of atoms closer than a cut-off, each pair once, by structure in order.

    The vector of pair p leads from atom `first[p]` to an image of atom `second[p]`:
    (pos[second] + shift - pos[first]) @ cell, shorter than the cut-off. The pair's other direction
    is its negative.

    Attributes:
        first: Atom numbers in the batch, int64, shape (n_pairs,).
        second: Atom numbers in the batch, int64, shape (n_pairs,).
        shift: Lattice translations, of the dtype of `pos`, shape (n_pairs, 3).
    """

    first: Tensor
    second: Tensor
    shift: Tensor


def reduced(batch: CrystalBatch) -> CrystalBatch:
    """Return the same crystals, unrotated, with Minkowski-reduced cells, wrapped, float64.

    Few images have to be searched for neighbours in such a cell, however skewed it was.

    Args:
        batch: Structures that `validity.check` accepts.
    """
    batch = batch.to(dtype=torch.float64)
    cell, integers = reduce_lattices(batch.cell.cpu().numpy())
    inverse = torch.linalg.inv(torch.from_numpy(integers)).round().to(batch.device)
    pos = torch.einsum("ni,nij->nj", batch.pos, inverse[batch.batch])
    return batch.replace(pos=pos, cell=torch.from_numpy(cell).to(batch.device)).wrap()


def find_neighbors(batch: CrystalBatch, cutoff: float) -> Neighbors:
    """Find all pairs of atoms closer than the cut-off, periodic images included.

    Args:
        batch: Structures with regular cells, as `reduced` returns them: for skewed cells the
            result is right as well, but slow.
        cutoff: Largest distance, Å.

    Raises:
        ValueError: the cut-off is not positive.
    """
    if not (math.isfinite(cutoff) and cutoff > 0):
        raise ValueError(f"cutoff must be positive and finite, in Å, got {cutoff}")
    device = batch.device
    ends = batch.n_atoms.cumsum(0)[batch.batch]
    atoms = torch.arange(len(batch.species), device=device)
    partners = ends - atoms
    first = torch.repeat_interleave(atoms, partners)
    second = first + count_up(partners)
    # A lattice plane is height away from the next: no image further than cutoff/height counts.
    heights = 1.0 / torch.linalg.inv(batch.cell).norm(dim=1)
    reach = (cutoff / heights)[batch.batch[first]]
    difference = batch.pos[second] - batch.pos[first]
    lowest = torch.ceil(-reach - difference)
    sizes = (torch.floor(reach - difference) - lowest + 1).clamp_min(0).long()
    counts = sizes.prod(dim=1)

    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for part in slices(counts, _MAX_CANDIDATES):
        pair = torch.arange(part.start, part.stop, device=device)
        pair = torch.repeat_interleave(pair, counts[part])
        rank = count_up(counts[part])
        size = sizes[pair]
        shift = torch.stack(
            [
                rank // (size[:, 1] * size[:, 2]),
                (rank // size[:, 2]) % size[:, 1],
                rank % size[:, 2],
            ],
            dim=1,
        )
        shift = shift + lowest[pair]
        vectors = torch.einsum(
            "pi,pij->pj", difference[pair] + shift, batch.cell[batch.batch[first[pair]]]
        )
        near = (vectors**2).sum(dim=1) < cutoff**2
        # Of an atom's own images one half-space: the other holds the same pairs once more.
        sign = torch.where(shift[:, 1] != 0, shift[:, 1], shift[:, 2])
        sign = torch.where(shift[:, 0] != 0, shift[:, 0], sign)
        near &= (first[pair] != second[pair]) | (sign > 0)
        found.append((first[pair[near]], second[pair[near]], shift[near]))
    if not found:
        return Neighbors(first, second, difference)
    return Neighbors(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def select_structures(
    batch: CrystalBatch, neighbors: Neighbors, rows: Tensor
) -> tuple[CrystalBatch, Neighbors]:
    """Return some structures of a batch with their pairs.

    Args:
        batch: All structures.
        neighbors: Their pairs.
        rows: Numbers of the chosen structures, increasing, int64, shape (k,).
    """
    chosen = torch.zeros(len(batch), dtype=torch.bool, device=batch.device)
    chosen[rows] = True
    number = chosen[batch.batch].cumsum(0) - 1
    keep = chosen[batch.batch[neighbors.first]]
    pairs = Neighbors(
        number[neighbors.first[keep]], number[neighbors.second[keep]], neighbors.shift[keep]
    )
    return batch[rows], pairs


def count_up(counts: Tensor) -> Tensor:
    """Return 0 ... c - 1 for each count c, one after the other."""
    starts = torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    return torch.arange(len(starts), device=counts.device) - starts


def slices(costs: Tensor, limit: int) -> list[slice]:
    """Return consecutive ranges of items that cost at most `limit` together, or hold one item.

    Args:
        costs: Cost of each item, not negative, int64, shape (n,).
        limit: Largest cost of a range.
    """
    total = costs.cumsum(0).cpu()
    ranges, begin, spent = [], 0, 0
    while begin < len(total):
        end = int(torch.searchsorted(total, spent + limit, right=True))
        end = max(end, begin + 1)
        ranges.append(slice(begin, end))
        begin, spent = end, int(total[end - 1])
    return ranges
