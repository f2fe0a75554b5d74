"""Forces and stresses of energies that depend on the vectors between neighbours alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from irlkit.crystals import CrystalBatch
from irlkit.potentials._neighbors import Neighbors
from irlkit.potentials.base import Computed


def differentiate(
    energies: Callable[[Tensor], Tensor],
    batch: CrystalBatch,
    neighbors: Neighbors,
    forces: bool,
    stress: bool,
) -> Computed:
    """Compute energies and, if asked for, their derivatives.

    Args:
        energies: Gives energies, eV, float64, shape (B,), for the vectors of all pairs, shape
            (P, 3). Called once.
        batch: Structures, float64.
        neighbors: Their P pairs.
        forces: Compute forces.
        stress: Compute stresses.
    """
    first, second = neighbors.first, neighbors.second
    structure = batch.batch[first]
    with torch.set_grad_enabled(forces or stress):
        offsets = batch.pos[second] + neighbors.shift - batch.pos[first]
        vectors = torch.einsum("pi,pij->pj", offsets, batch.cell[structure])
        energy = energies(vectors.requires_grad_(forces or stress))
        if not (forces or stress):
            return Computed(energy / batch.n_atoms)
        slopes = torch.zeros_like(vectors)
        if energy.requires_grad:  # which it does not where no atom has a neighbour
            (slopes,) = torch.autograd.grad(energy.sum(), vectors)
    vectors = vectors.detach()
    force = torch.zeros_like(batch.pos).index_add(0, first, slopes).index_add(0, second, -slopes)
    strain = torch.einsum("pi,pj->pij", vectors, slopes)
    virial = torch.zeros_like(batch.cell).index_add(0, structure, strain)
    return Computed(energy.detach() / batch.n_atoms, force, virial / batch.volume[:, None, None])
