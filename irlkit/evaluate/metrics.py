"""How well generated structures reproduce reference structures (section 2.4 of the paper).

One structure is generated for the composition of each reference structure.

- match rate: share of references that the structure generated for them matches;
- RMSE: mean displacement of these matches;
- METRe: share of references that any structure generated for the same composition matches;
- polymorph match rate: share of generated structures that match any reference of their composition,
  which is the match rate where no two references share a composition;
- cRMSE: mean over references of the displacement of the best of these matches, with `stol` where
  there is none.

Displacements are root-mean-square distances over (V/N)^(1/3) from `StructureMatcher`'s algorithm.

- relative energy: mean over generated structures of the energy per atom above that of the
  reference structure, structures without an energy left out;
- invalid-energy rate: share of the structures left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from irlkit.crystals import CrystalBatch
from irlkit.data import CrystalDataset
from irlkit.evaluate.matching import Matches, MatchPool, References
from irlkit.potentials import Energies, Potential
from irlkit.utils.checks import checked

__all__ = [
    "EnergyMetrics",
    "MatchPool",
    "Matches",
    "Metrics",
    "References",
    "evaluate",
    "evaluate_energies",
]


@dataclass(frozen=True)
class Metrics:
    """Metrics of one set of generated structures.

    Attributes:
        metre: Share of references with a match among the structures of their composition.
        crmse: Mean displacement of best matches, `stol` for references without one.
        match_rate: Share of references that the structure generated for them matches.
        rmse: Mean displacement of these matches; nan where there is none.
        best_rmse: Mean displacement of METRe's best matches; nan where there is none.
        polymorph_match_rate: Share of structures that match any reference of their composition.
        polymorph_rmse: Mean displacement from the closest of these; nan where there is none.
        valid_rate: Share of generated structures that `validity.check` accepts.
        n_structures: Number of references, and of generated structures.
        n_timeouts: Structures that count as unmatched because their matching took too long.
        n_failed: Structures that count as unmatched because their matching ended with an error.
        table: One row per reference: `material_id` (where known), `formula`, `n_atoms`; `valid`,
            `timed_out` and `rmsd` of the structure generated for it (nan if unmatched);
            `best_rmsd` and `best_generated` of its best match (nan and -1 if there is none);
            `polymorph_rmsd` from that structure to the closest reference of its composition.
    """

    metre: float
    crmse: float
    match_rate: float
    rmse: float
    best_rmse: float
    polymorph_match_rate: float
    polymorph_rmse: float
    valid_rate: float
    n_structures: int
    n_timeouts: int
    n_failed: int
    table: pd.DataFrame

    def summary(self) -> dict[str, float | int]:
        """Return all but the table."""
        return {name: value for name, value in vars(self).items() if name != "table"}


@checked
def evaluate(
    generated: CrystalBatch,
    references: CrystalDataset | CrystalBatch,
    pool: MatchPool | None = None,
) -> Metrics:
    """Compute all metrics of one generated structure per reference structure.

    Args:
        generated: `generated[i]` was generated for the composition of reference i; composition
            means reduced formula.
        references: B reference structures.
        pool: Workers to match with; None for the ones made for this call, with the paper's
            tolerances.

    Raises:
        ValueError: no references, or another number or other compositions of generated structures.
    """
    batch, formulas = _paired(generated, references)
    if pool is None:
        with MatchPool() as pool:
            return evaluate(generated, references, pool)

    pairs = _pairs_within(formulas)
    matches = pool.match(generated, batch, pairs)
    own = np.full(len(batch), np.nan)
    diagonal = pairs[:, 0] == pairs[:, 1]
    own[pairs[diagonal, 0]] = matches.rmsd[diagonal]
    best, best_generated = best_per_group(pairs[:, 1], pairs[:, 0], matches.rmsd, len(batch))
    closest, _ = best_per_group(pairs[:, 0], pairs[:, 1], matches.rmsd, len(batch))
    table = _table(
        references,
        formulas,
        valid=matches.valid,
        timed_out=matches.timed_out,
        rmsd=own,
        best_rmsd=best,
        best_generated=best_generated,
        polymorph_rmsd=closest,
    )
    return Metrics(
        metre=float(np.isfinite(best).mean()),
        crmse=float(np.where(np.isfinite(best), best, pool.stol).mean()),
        match_rate=float(np.isfinite(own).mean()),
        rmse=_mean(own),
        best_rmse=_mean(best),
        polymorph_match_rate=float(np.isfinite(closest).mean()),
        polymorph_rmse=_mean(closest),
        valid_rate=float(matches.valid.mean()),
        n_structures=len(batch),
        n_timeouts=int(matches.timed_out.sum()),
        n_failed=int(matches.failed.sum()),
        table=table,
    )


@dataclass(frozen=True)
class EnergyMetrics:
    """Energies of generated structures relative to their references.

    Attributes:
        energy_above_reference: Mean energy above the reference that the structure was generated
            for, eV/atom, over structures with an energy; nan where there is none.
        energy_above_lowest: The same above the lowest reference of the composition.
        median_energy_above_reference: Median instead of mean, which few outliers cannot move.
        trimmed_energy_above_reference: Mean without the lowest and the highest tenth.
        invalid_rate: Share of generated structures without an energy: those that
            `validity.check` rejects and those that the potential failed on.
        n_failed: Valid structures that the potential failed on.
        n_structures: Number of references, and of generated structures.
        potential: Name of the potential.
        table: One row per reference: `material_id` (where known), `formula`, `n_atoms`; `valid`,
            `failed` and `energy_per_atom` of the structure generated for it (eV/atom, nan if there
            is none); `reference_energy`, `energy_above_reference` and `energy_above_lowest`.
    """

    energy_above_reference: float
    energy_above_lowest: float
    median_energy_above_reference: float
    trimmed_energy_above_reference: float
    invalid_rate: float
    n_failed: int
    n_structures: int
    potential: str
    table: pd.DataFrame

    def summary(self) -> dict[str, float | int | str]:
        """Return all but the table."""
        return {name: value for name, value in vars(self).items() if name != "table"}


@checked
def evaluate_energies(
    generated: CrystalBatch,
    references: CrystalDataset | CrystalBatch,
    potential: Potential,
    reference_energies: Energies | None = None,
) -> EnergyMetrics:
    """Compute energies of one generated structure per reference structure, relative to it.

    The energies of the references come from the same potential, never from a table of the data
    set, which may be another potential's.

    Args:
        generated: `generated[i]` was generated for the composition of reference i; composition
            means reduced formula.
        references: B reference structures.
        potential: Computes all energies.
        reference_energies: What `potential` returned for the references, where they serve several
            times; None computes them.

    Raises:
        ValueError: no references, another number or other compositions of generated structures, an
            element that the potential does not know, a reference without an energy, or
            `reference_energies` of another potential or number of structures.
    """
    # Takes as long as all else that rewards import, in every process that they start.
    from scipy.stats import trim_mean

    batch, formulas = _paired(generated, references)
    if reference_energies is None:
        reference_energies = potential(batch)
    if reference_energies.potential != potential.name:
        raise ValueError(
            f"reference_energies are of the potential {reference_energies.potential}, but the "
            f"generated structures would get those of {potential.name}, which do not compare; "
            "compute both with one potential"
        )
    reference = reference_energies.energy_per_atom
    if len(reference) != len(batch):
        raise ValueError(
            f"reference_energies must hold one energy per reference: got {len(reference)} for "
            f"{len(batch)} references"
        )
    missing = np.flatnonzero(~np.isfinite(reference))
    if len(missing):
        raise ValueError(
            f"references must have energies, but {potential.name} gives none for those at "
            f"{missing[:10].tolist()}; remove them from the data set"
        )
    result = potential(generated)
    energy = result.energy_per_atom
    _, inverse = np.unique(formulas, return_inverse=True)
    lowest = np.full(inverse.max() + 1, np.inf)
    np.minimum.at(lowest, inverse, reference)
    above, above_lowest = energy - reference, energy - lowest[inverse]
    finite = above[np.isfinite(above)]
    some = len(finite) > 0
    return EnergyMetrics(
        energy_above_reference=_mean(above),
        energy_above_lowest=_mean(above_lowest),
        median_energy_above_reference=float(np.median(finite)) if some else np.nan,
        trimmed_energy_above_reference=float(trim_mean(finite, 0.1)) if some else np.nan,
        invalid_rate=1 - len(finite) / len(batch),
        n_failed=int(result.failed.sum()),
        n_structures=len(batch),
        potential=potential.name,
        table=_table(
            references,
            formulas,
            valid=result.valid,
            failed=result.failed,
            energy_per_atom=energy,
            reference_energy=reference,
            energy_above_reference=above,
            energy_above_lowest=above_lowest,
        ),
    )


def _paired(
    generated: CrystalBatch, references: CrystalDataset | CrystalBatch
) -> tuple[CrystalBatch, np.ndarray]:
    """The reference structures and their reduced formulas, which the generated ones share."""
    if isinstance(references, CrystalDataset) and not references.has_structures:
        raise ValueError(
            f"references: data set {references.name!r} holds compositions alone, nothing to "
            "compare with"
        )
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
            f"generated[i] must have the composition of references[i], but for i = {i} it is "
            f"{generated[i].reduced_formulas()[0]} instead of {formulas[i]} "
            f"({len(other)} differ in all)"
        )
    return batch, formulas


def _table(
    references: CrystalDataset | CrystalBatch, formulas: np.ndarray, **columns: np.ndarray
) -> pd.DataFrame:
    """One row per reference, what is known of the reference first."""
    batch = references if isinstance(references, CrystalBatch) else references.batch
    table = pd.DataFrame({"formula": formulas, "n_atoms": batch.n_atoms.cpu().numpy(), **columns})
    if isinstance(references, CrystalDataset):
        table.insert(0, "material_id", references.table["material_id"].to_numpy())
    return table


def best_per_group(
    groups: np.ndarray, members: np.ndarray, rmsd: np.ndarray, n_groups: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the smallest displacement of each group of pairs, and whose it is.

    >>> best_per_group(np.array([0, 0, 1]), np.array([7, 8, 9]), np.array([0.2, 0.1, np.nan]), 2)
    (array([0.1, nan]), array([ 8, -1]))

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
