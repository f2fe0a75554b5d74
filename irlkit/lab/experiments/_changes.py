"""What training has changed in structures: atoms that moved, and structures that differ."""

from __future__ import annotations

import numpy as np
import pandas as pd
from pymatgen.core import Element, Structure
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from irlkit.crystals import CrystalBatch, validity
from irlkit.evaluate.matching import MatchPool


def atom_changes(
    before: CrystalBatch, after: CrystalBatch, references: CrystalBatch
) -> pd.DataFrame:
    """How each atom moved, and how far its nearest neighbour is.

    Returns:
        One row per atom: structure (its number), formula, atom (number in it), element, moved
        (Å, in the cell as it is now; what all atoms have in common is no move), the distances (Å)
        to the nearest atom "nearest before", "nearest after" and "nearest in reference" (the mean
        over atoms of the element), and the volumes per atom "volume before" and "volume after"
        (Å^3) of the structure.
    """
    tables = []
    formulas = references.reduced_formulas()
    structures = zip(formulas, before, after, references, strict=True)
    for number, (formula, old, new, reference) in enumerate(structures, start=1):
        shift = (new.pos - old.pos).double().numpy()
        shift -= np.round(shift)
        # On the circle the mean of shifts is that of their directions.
        common = np.angle(np.exp(2j * np.pi * shift).mean(axis=0)) / (2 * np.pi)
        shift -= common
        shift -= np.round(shift)
        moved = np.linalg.norm(shift @ new.cell[0].double().numpy(), axis=1)
        of_reference = pd.Series(nearest_distances(reference)).groupby(reference.species.numpy())
        expected = of_reference.mean()
        n = len(old.species)
        tables.append(
            pd.DataFrame(
                {
                    "structure": number,
                    "formula": formula,
                    "atom": np.arange(1, n + 1),
                    "element": [Element.from_Z(int(z)).symbol for z in old.species],
                    "moved": moved,
                    "nearest before": nearest_distances(old),
                    "nearest after": nearest_distances(new),
                    "nearest in reference": [expected[int(z)] for z in old.species],
                    "volume before": float(old.volume[0]) / n,
                    "volume after": float(new.volume[0]) / n,
                }
            )
        )
    return pd.concat(tables, ignore_index=True)


def nearest_distances(crystal: CrystalBatch) -> np.ndarray:
    """The distance (Å) of each atom of one structure to the nearest one, images too, shape (n,)."""
    structure: Structure = crystal.to_structures()[0]
    lattice = structure.lattice
    distances = lattice.get_all_distances(structure.frac_coords, structure.frac_coords)
    # To its own image: the shortest of the reduced cell's vectors.
    np.fill_diagonal(distances, min(lattice.get_lll_reduced_lattice().abc))
    return distances.min(axis=1)


def count_distinct(generated: CrystalBatch, group_size: int, pool: MatchPool) -> pd.DataFrame:
    """How many structures of each group differ: those that match count as one.

    Groups have one composition and are adjacent. There is a row for each: formula, n_generated,
    n_valid and n_distinct (of the valid ones).
    """
    valid = validity.check(generated).valid
    kept = np.flatnonzero(valid)
    groups = kept // group_size
    first, second = np.triu_indices(len(kept), 1)
    same = groups[first] == groups[second]
    pairs = np.stack([first[same], second[same]], axis=1)
    n = len(kept)
    linked = pairs
    if len(pairs):
        structures = generated[kept]
        linked = pairs[np.isfinite(pool.rmsd(structures, structures, pairs))]
    graph = coo_array((np.ones(len(linked)), (linked[:, 0], linked[:, 1])), shape=(n, n))
    _, cluster = connected_components(graph, directed=False)
    formulas = generated.reduced_formulas()[::group_size]
    return pd.DataFrame(
        {
            "formula": formulas,
            "n_generated": group_size,
            "n_valid": valid.reshape(-1, group_size).sum(axis=1),
            "n_distinct": [len(np.unique(cluster[groups == k])) for k in range(len(formulas))],
        }
    )
