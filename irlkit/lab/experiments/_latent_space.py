"""The latent space of crystals looked at: a map, a line between two, a way from noise."""

from __future__ import annotations

from typing import cast

import pandas as pd
import torch
from ase.data import atomic_numbers
from scipy.optimize import linear_sum_assignment

from irlkit.crystals import CrystalBatch
from irlkit.lab.plots._geometry import _element_data
from irlkit.networks.latent_diffusion import LatentDiffusion
from irlkit.rl.trajectory import Trajectory

_FAMILIES = {
    "oxides": "O",
    "halides": "F Cl Br I",
    "chalcogenides": "S Se Te",
    "pnictides": "N P As Sb Bi",
    "hydrides": "H",
    "borides to germanides": "B C Si Ge",
}
_METALS = "metals alone"


@torch.no_grad()
def latent_map(model: LatentDiffusion, crystals: CrystalBatch) -> pd.DataFrame:
    """Project mean latents of structures on their two principal components.

    Args:
        model: whose autoencoder encodes.
        crystals: B structures.

    Returns:
        A row per structure: first, second, formula, and its class by the most electronegative
        element that is no metal; `attrs["explained"]` has the components' shares of the variance.
    """
    mean, _ = model.autoencoder.encode(crystals.to(next(model.parameters()).device))
    of_atoms = mean.cpu().double()
    sums = of_atoms.new_zeros(len(crystals), mean.shape[1])
    latents = sums.index_add(0, crystals.batch, of_atoms) / crystals.n_atoms[:, None]
    centred = latents - latents.mean(0)
    _, spread, axes = torch.linalg.svd(centred, full_matrices=False)
    first, second = (centred @ axes[:2].T).T.numpy()
    columns = {"first": first, "second": second, "formula": crystals.reduced_formulas()}
    table = pd.DataFrame({**columns, "class": _families(crystals)})
    table.attrs["explained"] = (spread[:2] ** 2 / (spread**2).sum()).tolist()
    return table


def _families(crystals: CrystalBatch) -> list[str]:
    """What chemists call each structure by its most electronegative element (Pauling)."""
    family = {atomic_numbers[s]: name for name, of in _FAMILIES.items() for s in of.split()}
    scale = torch.as_tensor(_element_data()[1]).nan_to_num()
    scale[[z for z in range(len(scale)) if z not in family]] = 0.0
    of_atoms = scale[crystals.species]
    highest = of_atoms.new_zeros(len(crystals)).scatter_reduce(0, crystals.batch, of_atoms, "amax")
    here = of_atoms == highest[crystals.batch]
    best = crystals.species.new_zeros(len(crystals))
    best[crystals.batch[here]] = crystals.species[here]
    return [family.get(z, _METALS) for z in best.tolist()]


@torch.no_grad()
def interpolate(
    model: LatentDiffusion, first: CrystalBatch, second: CrystalBatch, n_points: int = 6
) -> CrystalBatch:
    """Decode points on the line between the latents of two crystals.

    Atoms of the second go to those of the first so that the line is shortest.

    Args:
        model: whose autoencoder encodes and decodes.
        first, second: one structure each, of equally many atoms.
        n_points: with both ends, at least 2.

    Raises:
        ValueError: other numbers of structures or atoms, or fewer points.
    """
    if not len(first) == len(second) == 1 or not torch.equal(first.n_atoms, second.n_atoms):
        raise ValueError(
            "first and second must be one structure each, of equally many atoms, got "
            f"{first.n_atoms.tolist()} and {second.n_atoms.tolist()}"
        )
    if n_points < 2:
        raise ValueError(f"n_points must be at least 2, got {n_points}")
    ends = (crystals.to(next(model.parameters()).device) for crystals in (first, second))
    start, end = (model.autoencoder.encode(crystals)[0] for crystals in ends)
    _, order = linear_sum_assignment(torch.cdist(start, end).cpu().numpy())
    weights = torch.linspace(0, 1, n_points)[:, None, None].to(start)
    line = torch.lerp(start, end[torch.as_tensor(order)], weights)
    n_atoms = first.n_atoms.repeat(n_points).to(start.device)
    return model.autoencoder.crystals(line.flatten(0, 1), n_atoms).to("cpu")


def decoded_path(
    model: LatentDiffusion, trajectory: Trajectory, structure: int, n_frames: int = 13
) -> list[CrystalBatch]:
    """Decode the latents of one structure on its way from noise.

    Args:
        model: that generated.
        trajectory: with its states.
        structure: which.
        n_frames: states, spread over all.
    """
    path = trajectory.select(torch.tensor([structure])).states["latent"]
    kept = torch.linspace(0, len(path) - 1, min(n_frames, len(path))).round().long()
    n_atoms = cast(torch.Tensor, trajectory.request.n_atoms)[[structure]]
    return [model.latents_to_crystals(path[i], n_atoms).to("cpu") for i in kept]
