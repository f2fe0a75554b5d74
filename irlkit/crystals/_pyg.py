"""Batches from and to torch-geometric's data, which is imported here alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def from_data(data: Any) -> dict[str, Tensor]:
    """Return species, pos, cell and n_atoms of one `Data`, a `Batch` or a list of `Data`.

    Their shapes are (n,), (n, 3), (B, 3, 3) in Å, and (B,), as in `CrystalBatch`.

    Raises:
        ValueError: an attribute is missing or does not fit.
    """
    if isinstance(data, Sequence):
        from torch_geometric.data import Batch

        if not data:
            raise ValueError("data must hold at least one torch-geometric Data, got none")
        data = Batch.from_data_list(list(data))
    if not hasattr(data, "keys"):
        raise ValueError(f"data must be torch-geometric data, got {type(data).__name__}")
    missing = [name for name in ("species", "pos", "cell") if name not in data]
    if missing:
        raise ValueError(
            f"data must have the attributes species, pos and cell; {missing} missing, "
            f"found {sorted(data.keys())}"
        )
    if data["cell"].numel() % 9:
        raise ValueError(f"cell must have shape (B, 3, 3), got {tuple(data['cell'].shape)}")
    species = data["species"].to(torch.int64)
    if "n_atoms" in data:
        n_atoms = torch.as_tensor(data["n_atoms"], device=species.device).to(torch.int64)
    elif "ptr" in data:
        n_atoms = data["ptr"].diff()
    elif "batch" in data:
        n_atoms = torch.bincount(data["batch"])
    else:
        n_atoms = torch.tensor([len(species)], device=species.device)
    cell = data["cell"].reshape(-1, 3, 3)
    return {"species": species, "pos": data["pos"], "cell": cell, "n_atoms": n_atoms.reshape(-1)}


def to_data(species: Tensor, pos: Tensor, cell: Tensor, n_atoms: Tensor) -> Any:
    """Return a `Batch` with attributes `species`, `pos`, `cell`, `n_atoms` and `batch`.

    Args:
        species: atomic numbers, shape (n,).
        pos: fractional, shape (n, 3).
        cell: lattice vectors as rows, Å, shape (B, 3, 3).
        n_atoms: of each structure, shape (B,).
    """
    from torch_geometric.data import Batch, Data

    sizes = n_atoms.tolist()
    parts = zip(
        species.split(sizes), pos.split(sizes), cell.split(1), n_atoms.split(1), strict=True
    )
    return Batch.from_data_list(
        [
            Data(species=species, pos=pos, cell=cell, n_atoms=n, num_nodes=len(species))
            for species, pos, cell, n in parts
        ]
    )
