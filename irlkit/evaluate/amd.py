"""Average minimum distances: a fingerprint of crystals in ångströms (Widdowson 2022).

Component i is the distance to the i-th nearest atom, averaged over the atoms of the cell. It is
the same for equal crystals, whatever their cell, origin, orientation and order of atoms, changes
continuously with them, and does not see elements: it tells structures of one formula apart.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from irlkit.crystals import CrystalBatch, validity
from irlkit.utils.checks import check_count, checked

_MAX_DISTANCES = 1 << 22
"""Distances that are held at once."""


@checked
def amd(batch: CrystalBatch, k: int = 100) -> Tensor:
    """Return average minimum distances, Å, float64, shape (B, k).

    >>> from pymatgen.core import Lattice, Structure
    >>> simple = Structure(Lattice.cubic(2.0), ["Po"], [[0, 0, 0]])
    >>> amd(CrystalBatch.from_structures([simple, simple * 2]), k=7).round(decimals=2)
    tensor([[2.0000, 2.0000, 2.0000, 2.0000, 2.0000, 2.0000, 2.8300],
            [2.0000, 2.0000, 2.0000, 2.0000, 2.0000, 2.0000, 2.8300]], dtype=torch.float64)

    Args:
        batch: B structures.
        k: neighbours of each atom.

    Returns:
        On the CPU; nan for structures that are not finite or flat.
    """
    check_count("k", k)
    result = torch.full((len(batch), k), torch.nan, dtype=torch.float64)
    good = validity.check(batch, min_volume=1e-6, min_distance=0.0, min_polar_sine=1e-6).valid
    pos, cell = (x.detach().cpu().double().numpy() for x in (batch.pos, batch.cell))
    n_atoms = batch.n_atoms.cpu().numpy()
    starts = np.cumsum(n_atoms) - n_atoms
    for size in np.unique(n_atoms[good]).tolist():
        rows = np.flatnonzero(good & (n_atoms == size))
        reduced, integers = validity.reduce_lattices(cell[rows])
        x = np.matmul(pos[starts[rows][:, None] + np.arange(size)] % 1.0, np.linalg.inv(integers))
        boxes = _boxes(reduced, size, k)
        # Those with the same box of images go together, a bounded number at a time.
        for box in np.unique(boxes, axis=0):
            same = np.flatnonzero((boxes == box).all(axis=1))
            images = torch.cartesian_prod(*(torch.arange(-n, n + 1.0).double() for n in box))
            step = max(1, _MAX_DISTANCES // (size * size * len(images)))
            for begin in range(0, len(same), step):
                part = same[begin : begin + step]
                near = _nearest(
                    torch.from_numpy(x[part]), torch.from_numpy(reduced[part]), images, k
                )
                result[rows[part]] = near
    return result


def _boxes(reduced: np.ndarray, size: int, k: int) -> np.ndarray:
    """How many images along each axis hold the k nearest of every atom, int64, shape (b, 3).

    The k-th is no farther than the k-th of the lattice itself (along one, two or three of its
    vectors), and than the radius at which a ball, less the covering radius, has room for k + 1.
    """
    lengths = np.linalg.norm(reduced, axis=2)
    volume = np.abs(np.linalg.det(reduced))
    reach = np.cbrt(3 * (k + 1) * volume / (4 * math.pi * size))
    reach += np.sqrt((lengths**2).sum(axis=1)) / 2
    for n in (1, 2, 3):
        along = math.ceil(((k + 1) ** (1 / n) - 1) / 2)
        reach = np.minimum(reach, along * lengths[:, :n].sum(axis=1))
    heights = 1.0 / np.linalg.norm(np.linalg.inv(reduced), axis=1)
    # Differences are wrapped to half a cell; the margin is for rounding.
    return np.floor(reach[:, None] / heights + 0.5 + 1e-6).astype(np.int64)


def _nearest(x: Tensor, cell: Tensor, images: Tensor, k: int) -> Tensor:
    """Average minimum distances of m structures of one size, with images of all axes, (m, k)."""
    m, size, _ = x.shape
    difference = x[:, None] - x[:, :, None]
    difference = ((difference - difference.round()) @ cell[:, None]).flatten(1, 2)
    shifts = images @ cell
    squares = (difference**2).sum(2)[:, :, None] + (shifts**2).sum(2)[:, None]
    squares = torch.baddbmm(squares, difference, shifts.transpose(1, 2), alpha=2)
    squares = squares.view(m, size, size * len(images))
    nearest = squares.topk(k + 1, dim=2, largest=False, sorted=True).values[:, :, 1:]
    return nearest.clamp_min(0).sqrt().mean(1)


def _smallest(a: Tensor, b: Tensor, above: float = -math.inf) -> Tensor:
    """Smallest `amd_distance` above a bound of each of a (m, k) from all of b (n, k), (m,)."""
    found = []
    for part in a.split(max(1, _MAX_DISTANCES // max(b.numel(), 1))):
        distance = amd_distance(part[:, None], b[None])
        found.append(distance.masked_fill(~(distance > above), math.inf).amin(1))
    return torch.cat(found)


@checked
def amd_distance(a: Tensor, b: Tensor) -> Tensor:
    """Return the bounded distance d/(1 + d) with d the largest difference in Å, from 0 to 1.

    >>> amd_distance(torch.tensor([1.0, 2.0]), torch.tensor([[1.0, 2.0], [2.0, 1.0]]))
    tensor([0.0000, 0.5000])

    Args:
        a: Of `amd`, shape (..., k).
        b: Shape (..., k), broadcast with `a`.

    Returns:
        Shape (...), without the last axis; nan where one of the structures has none.

    Raises:
        ValueError: other lengths of the last axis.
    """
    if not a.ndim or not b.ndim or a.shape[-1] != b.shape[-1]:
        raise ValueError(
            "a and b must hold as many neighbours each, shape (..., k), got "
            f"{tuple(a.shape)} and {tuple(b.shape)}"
        )
    difference = (a - b).abs().amax(-1)
    return difference / (1 + difference)
