"""How well generated structures reproduce reference structures (section 2.4 of the paper).

One structure is generated for the composition of each reference structure.

- match rate: share of references that the structure generated for them matches;
- RMSE: mean displacement of these matches;
- METRe: share of references that any structure generated for the same composition matches;
- cRMSE: mean over references of the displacement of the best of these matches, with `stol` where
  there is none.

Displacements are root-mean-square distances over (V/N)^(1/3) from `StructureMatcher`'s algorithm.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from irlkit.crystals import CrystalBatch
from irlkit.datasets import CrystalDataset
from irlkit.matching import Matches, MatchPool, References

__all__ = ["MatchPool", "Matches", "Metrics", "References", "evaluate"]


@dataclass(frozen=True)
class Metrics:
    """Metrics of one set of generated structures.

    Attributes:
        metre: Share of references with a match among the structures of their composition.
        crmse: Mean displacement of best matches, `stol` for references without one.
        match_rate: Share of references that the structure generated for them matches.
        rmse: Mean displacement of these matches; nan where there is none.
        best_rmse: Mean displacement of METRe's best matches; nan where there is none.
        valid_rate: Share of generated structures that `validity.check` accepts.
        n_structures: Number of references, and of generated structures.
        n_timeouts: Structures that count as unmatched because their matching took too long.
        n_failed: Structures that count as unmatched because their matching ended with an error.
        table: One row per reference: `material_id` (where known), `formula`, `n_atoms`; `valid`,
            `timed_out` and `rmsd` of the structure generated for it (nan if unmatched);
            `best_rmsd` and `best_generated` of its best match (nan and -1 if there is none).
    """

    metre: float
    crmse: float
    match_rate: float
    rmse: float
    best_rmse: float
    valid_rate: float
    n_structures: int
    n_timeouts: int
    n_failed: int
    table: pd.DataFrame

    def summary(self) -> dict[str, float | int]:
        """All but the table."""
        return {name: value for name, value in vars(self).items() if name != "table"}


def evaluate(
    generated: CrystalBatch,
    references: CrystalDataset | CrystalBatch,
    pool: MatchPool | None = None,
) -> Metrics:
    """Computes all metrics of one generated structure per reference structure.

    Args:
        generated: `generated[i]` was generated for the composition of reference i; composition
            means reduced formula.
        references: B reference structures.
        pool: Workers to match with; None for the ones made for this call, with the paper's
            tolerances.

    Raises:
        ValueError: no references, or another number or other compositions of generated structures.
    """
    batch = references if isinstance(references, CrystalBatch) else references.batch
    if not len(batch):
        raise ValueError("references must hold at least one structure, got none")
    if len(generated) != len(batch):
        raise ValueError(
            f"generated must hold one structure per reference: got {len(generated)} for "
            f"{len(batch)} references"
        )
    formulas = np.array(batch.reduced_formulas())
    other = np.flatnonzero(formulas != np.array(generated.reduced_formulas()))
    if len(other):
        i = int(other[0])
        raise ValueError(
            f"generated[i] must have the composition of reference i, but for i = {i} it is "
            f"{generated[i].reduced_formulas()[0]} instead of {formulas[i]} "
            f"({len(other)} differ in all)"
        )
    if pool is None:
        with MatchPool() as pool:
            return evaluate(generated, references, pool)

    pairs = _pairs_within(formulas)
    prepared = pool.prepare(batch)
    try:
        matches = pool.match(generated, prepared, pairs)
    finally:
        pool.release(prepared)

    own = np.full(len(batch), np.nan)
    diagonal = pairs[:, 0] == pairs[:, 1]
    own[pairs[diagonal, 0]] = matches.rmsd[diagonal]
    best, best_generated = best_per_group(pairs[:, 1], pairs[:, 0], matches.rmsd, len(batch))
    table = pd.DataFrame(
        {
            "formula": formulas,
            "n_atoms": batch.n_atoms.cpu().numpy(),
            "valid": matches.valid,
            "timed_out": matches.timed_out,
            "rmsd": own,
            "best_rmsd": best,
            "best_generated": best_generated,
        }
    )
    if isinstance(references, CrystalDataset):
        table.insert(0, "material_id", references.table["material_id"].to_numpy())
    return Metrics(
        metre=float(np.isfinite(best).mean()),
        crmse=float(np.where(np.isfinite(best), best, pool.stol).mean()),
        match_rate=float(np.isfinite(own).mean()),
        rmse=_mean(own),
        best_rmse=_mean(best),
        valid_rate=float(matches.valid.mean()),
        n_structures=len(batch),
        n_timeouts=int(matches.timed_out.sum()),
        n_failed=int(matches.failed.sum()),
        table=table,
    )


def best_per_group(
    groups: np.ndarray, members: np.ndarray, rmsd: np.ndarray, n_groups: int
) -> tuple[np.ndarray, np.ndarray]:
    """Smallest displacement of each group of pairs, and whose it is.

    Args:
        groups: Group of each pair, shape (n_pairs,).
        members: Number to report for each pair, shape (n_pairs,).
        rmsd: Displacements, nan where unmatched, shape (n_pairs,).
        n_groups: Number of groups.

    Returns:
        Shape (n_groups,): displacements, nan where no pair matches; and members, -1 there.
    """
    best, member = np.full(n_groups, np.nan), np.full(n_groups, -1)
    matched = np.flatnonzero(np.isfinite(rmsd))
    # Of several writes to one place the last one stays: the smallest displacement.
    matched = matched[np.argsort(-rmsd[matched], kind="stable")]
    best[groups[matched]], member[groups[matched]] = rmsd[matched], members[matched]
    return best, member


def _pairs_within(formulas: np.ndarray) -> np.ndarray:
    """All pairs (generated, reference) of equal composition, shape (n_pairs, 2)."""
    _, inverse = np.unique(formulas, return_inverse=True)
    order = np.argsort(inverse, kind="stable")
    groups = np.split(order, np.cumsum(np.bincount(inverse))[:-1])
    return np.concatenate(
        [np.stack(np.meshgrid(group, group, indexing="ij"), -1).reshape(-1, 2) for group in groups]
    )


def _mean(values: np.ndarray) -> float:
    """Mean of what is finite, nan where nothing is."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else float("nan")
