"""What de novo generation makes: validity, uniqueness, novelty, stability, distributions.

| | of a structure |
|---|---|
| `valid` | volume, distances and polar sine are possible (`validity.check`) |
| `valid_composition` | SMACT's test passes; nan where the package smact is not installed |
| `unique` | valid, and the first of a group of equal structures |
| `novel` | valid, and equal to no structure of the training set |
| `new_formula` | no structure of the training set has its reduced formula |
| `covered` | the hull has what it takes to judge its chemical system |
| `stable`, `metastable` | covered, and at most 0, at most 0.1 eV/atom above the hull |
| `sun`, `msun` | stable, metastable, and unique and novel |

A structure that was relaxed is stable, unique and novel as what it relaxed to: structures that fall
into one minimum count once. What has no energy, or is not covered by the hull, is not stable.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch

from irlkit.crystals import CrystalBatch, validity
from irlkit.crystals.compositions import element_counts
from irlkit.data import CrystalDataset
from irlkit.evaluate.diversity import composition_diversity
from irlkit.evaluate.evidence import Bootstrap, Estimate
from irlkit.evaluate.hull import METASTABLE, Hull
from irlkit.evaluate.matching import MatchPool
from irlkit.evaluate.novelty import TOLERANCES, KnownStructures, is_unique, is_valid_composition
from irlkit.potentials import Potential
from irlkit.potentials import relax as relax_structures
from irlkit.utils.checks import checked

_OF_ALL = (
    "valid valid_composition covered stable metastable sun msun msun_only judge_covered "
    "judge_stable judge_metastable judge_sun judge_msun"
).split()
_OF_THE_VALID = ("unique", "novel", "new_formula")
_MEDIANS = ("e_above_hull", "relaxed_e_above_hull", "judge_e_above_hull")
_DISTRIBUTIONS = ("density", "n_atoms", "n_elements")


@dataclass(frozen=True)
class DeNovoMetrics:
    """Outcome of `denovo`.

    Attributes:
        table: One row per structure: `material_id` (where known), `formula`, `n_atoms`,
            `n_elements`, `density` (g/cm³), what the table above says, `amd_distance` from the
            nearest structure of the training set with its formula (nan: there is none). With a
            potential: `energy_per_atom` (eV), `e_above_hull` (eV/atom) and, of what it relaxed to,
            `relaxed_energy_per_atom`, `relaxed_e_above_hull`, `relaxed_unique`, `relaxed_novel`,
            `converged` and `reason` (why it has none). `msun_only` are the metastable that are not
            stable, as LeMat-GenBench splits them. With a judge: `judge_energy_per_atom` of the
            last structure, and `judge_...` of the above. Records of the file that gave no
            structure are rows as well, with their `reason`: they fail every test.
        training: Columns `density`, `n_atoms` and `n_elements` of the training set.
        structures: Those of the first rows of the table, as given.
        relaxed: The same, relaxed where that succeeded; None without relaxation.
        potential: Name of the potential, and of the judge, None without.
        judge: See `potential`.
    """

    table: pd.DataFrame
    training: pd.DataFrame
    structures: CrystalBatch
    relaxed: CrystalBatch | None = None
    potential: str | None = None
    judge: str | None = None

    @checked
    def summary(
        self, generator: torch.Generator | None = None, n_samples: int = 1000
    ) -> dict[str, Estimate]:
        """Return shares, medians, distances and diversities, each with its 95 % interval.

        Structures of one formula are drawn together; a share of none or all has the interval of as
        many independent formulas (Clopper and Pearson, 1934). `unique`, `novel` and `new_formula`
        are shares of the valid structures, all others of all rows; medians are of the structures
        that have the number; `wasserstein_...` is the distance of a valid structure's property from
        its distribution in the training set; `composition_diversity` is `diversity`'s.

        Args:
            generator: Of the resamples; None: seed 0.
            n_samples: How many.
        """
        table, valid = self.table, self.table["valid"].to_numpy(dtype=bool)
        unread = table["formula"].isna()
        named = table["formula"].where(~unread, [f"?{i}" for i in range(len(table))])
        formulas = named.to_numpy(dtype=str)
        draw = Bootstrap(formulas, generator, n_samples)
        shares, found = {}, {}
        for name in (*_OF_ALL, *_OF_THE_VALID):
            if name in table:
                values = table[name].to_numpy(dtype=float)
                values = np.where(valid, values, np.nan) if name in _OF_THE_VALID else values
                n = len(set(formulas[np.isfinite(values)]))
                shares[name] = _widened(Estimate.of(draw.mean(values)), n)
        for name in _MEDIANS:
            if name in table:
                found[f"median_{name}"] = draw.median(table[name].to_numpy(dtype=float))
        for name in _DISTRIBUTIONS:
            values = np.where(valid, table[name].to_numpy(dtype=float), np.nan)
            known = self.training[name].to_numpy(dtype=float)
            distance = draw.centred(partial(_wasserstein, values, known))
            found[f"wasserstein_{name}"] = distance.clip(0)
        n = len(self.structures)
        diversity = draw.centred(lambda w: composition_diversity(self.structures, w[:, :n]))
        found["composition_diversity"] = diversity.clip(1)
        return shares | {name: Estimate.of(values) for name, values in found.items()}


@checked
def denovo(
    structures: CrystalBatch | CrystalDataset,
    training_set: CrystalDataset | KnownStructures,
    *,
    potential: Potential | None = None,
    hull: Hull | None = None,
    judge: Potential | None = None,
    judge_hull: Hull | None = None,
    relax: bool = True,
    max_steps: int = 200,
    max_batch: int | None = 128,
    pool: MatchPool | None = None,
    progress: bool = False,
) -> DeNovoMetrics:
    """Judge generated structures one by one.

    >>> from irlkit import data
    >>> known = data.load("prototypes", "train", progress=False)
    >>> again = denovo(known[:3], known, pool=MatchPool(n_workers=0, **TOLERANCES))
    >>> again.table[["valid", "novel", "new_formula"]].mean().tolist()
    [1.0, 0.0, 0.0]

    Args:
        structures: B structures; a data set as `irlkit.data.load` reads it also counts its skipped
            records.
        training_set: What is not novel.
        potential: Computes energies, and relaxes; None: no energies.
        hull, judge_hull: Of the energies of `potential`, and of `judge`; None: no stability.
        judge: Another potential, which computes the structures as `potential` relaxed them.
        relax: Relax positions and cells.
        max_steps: Of the relaxation of a structure.
        max_batch: Structures relaxed together.
        pool: Workers to match with, and the tolerances of equal structures; None for the ones made
            for this call, with `novelty.TOLERANCES`.
        progress: Show a bar of the relaxation.

    Raises:
        ValueError: no structures, an empty training set or one of compositions alone, a hull
            without its potential or of another one.
    """
    dataset = structures if isinstance(structures, CrystalDataset) else None
    batch = (structures.batch if isinstance(structures, CrystalDataset) else structures).to("cpu")
    if not len(batch):
        raise ValueError("structures must hold at least one structure, got none")
    if dataset is not None and not dataset.has_structures:
        raise ValueError(f"structures: {dataset.name!r} holds compositions without structures")
    _check_hull("hull", hull, "potential", potential)
    _check_hull("judge_hull", judge_hull, "judge", judge)
    if isinstance(training_set, CrystalDataset):
        training_set = KnownStructures(training_set)
    table, last = _properties(batch), batch
    table.insert(0, "formula", batch.reduced_formulas())
    table["valid"] = validity.check(batch).valid
    try:
        table["valid_composition"] = is_valid_composition(batch)
    except ImportError:
        table["valid_composition"] = np.nan
    with nullcontext(pool) if pool is not None else MatchPool(**TOLERANCES) as matcher:
        table["unique"] = is_unique(batch, matcher)
        table["novel"] = training_set.is_novel(batch, matcher)
        table["new_formula"] = ~training_set.has_formula(batch)
        table["amd_distance"] = training_set.distance(batch)
        if potential is not None:
            table["energy_per_atom"] = _energies(batch, potential)
        if potential is not None and relax:
            options = {"max_steps": max_steps, "max_batch": max_batch, "progress": progress}
            last = _relax(table, batch, potential, options)
            table["relaxed_unique"] = is_unique(last, matcher)
            table["relaxed_novel"] = training_set.is_novel(last, matcher)
    if judge is not None:
        table["judge_energy_per_atom"] = _energies(last, judge)
    _stability(table, batch, last, hull, judge_hull)
    return DeNovoMetrics(
        table if dataset is None else _with_records(table, dataset),
        _properties(training_set.structures),
        batch,
        None if last is batch else last,
        None if potential is None else potential.name,
        None if judge is None else judge.name,
    )


def _properties(batch: CrystalBatch) -> pd.DataFrame:
    """Numbers of atoms and elements, and densities."""
    return pd.DataFrame(
        {
            "n_atoms": batch.n_atoms.numpy(),
            "n_elements": (element_counts(batch) > 0).sum(1).numpy(),
            "density": batch.to(dtype=torch.float64).density.numpy(),
        }
    )


def _energies(batch: CrystalBatch, potential: Potential) -> np.ndarray:
    """Energies per atom, nan where there is none."""
    energy = np.full(len(batch), np.nan)
    rows = np.flatnonzero(potential.knows(batch))
    energy[rows] = potential(batch.select(rows)).energy_per_atom
    return energy


def _relax(
    table: pd.DataFrame, batch: CrystalBatch, potential: Potential, options: dict[str, Any]
) -> CrystalBatch:
    """The relaxed structures, those that failed as they are; columns of the table."""
    known, valid = potential.knows(batch), table["valid"].to_numpy()
    rows = np.flatnonzero(known & valid)
    result = relax_structures(batch.select(rows), potential, **options)
    reason = np.where(valid, f"{potential.name} does not know an element of it", "it is not valid")
    reason = np.where(known & valid, "", reason).astype(object)
    for i, text in result.reasons.items():
        reason[rows[i]] = text
    energy, converged = np.full(len(batch), np.nan), np.zeros(len(batch), dtype=bool)
    energy[rows], converged[rows] = result.energy_per_atom, result.converged
    table["relaxed_energy_per_atom"], table["converged"] = energy, converged
    table["reason"] = reason
    others = np.flatnonzero(~(known & valid))
    joined = CrystalBatch.concatenate([result.crystals, batch.select(others)])
    return joined.select(np.argsort(np.concatenate([rows, others])))


def _check_hull(name: str, hull: Hull | None, of: str, potential: Potential | None) -> None:
    if hull is None:
        return
    if potential is None:
        raise ValueError(f"{name} needs {of}, whose energies are compared with it, got None")
    hull._check_potential(potential.name, name)


def _stability(
    table: pd.DataFrame,
    batch: CrystalBatch,
    last: CrystalBatch,
    hull: Hull | None,
    judge_hull: Hull | None,
) -> None:
    """Columns of the energy above hulls, and of what is stable and, as it is last, new."""
    begins = "" if last is batch else "relaxed_"
    new = table["valid"] & table[f"{begins}unique"] & table[f"{begins}novel"]
    for prefix, of, by in (("", hull, begins), ("judge_", judge_hull, "judge_")):
        if of is None:
            continue
        for name, structures in {prefix: batch, by: last}.items():
            result = of.energy_above_hull(structures, table[f"{name}energy_per_atom"].to_numpy())
            table[f"{name}e_above_hull"], table[f"{prefix}covered"] = result.value, result.covered
        for kind, limit in (("stable", 0.0), ("metastable", METASTABLE)):
            # On the hull, but for rounding.
            good = table[f"{prefix}covered"] & (table[f"{by}e_above_hull"] <= limit + 1e-6)
            table[f"{prefix}{kind}"] = good
            table[f"{prefix}{'sun' if kind == 'stable' else 'msun'}"] = new & good
        table[f"{prefix}msun_only"] = table[f"{prefix}msun"] & ~table[f"{prefix}stable"]


def _with_records(table: pd.DataFrame, dataset: CrystalDataset) -> pd.DataFrame:
    """The table with names, and rows of records that gave no structure, which fail every test."""
    table.insert(0, "material_id", dataset.table["material_id"].to_numpy())
    if not dataset.skipped:
        return table
    failed = {name: False if values.dtype == bool else np.nan for name, values in table.items()}
    rows = pd.DataFrame(failed, index=range(len(dataset.skipped)))
    rows["formula"] = None
    rows["material_id"] = [entry.record for entry in dataset.skipped]
    rows["reason"] = [entry.reason for entry in dataset.skipped]
    return pd.concat([table, rows], ignore_index=True)


def _widened(share: Estimate, n: int) -> Estimate:
    """A share of none or all, which resamples do not spread, with the interval of n outcomes."""
    if share.value not in (0.0, 1.0):
        return share
    reach = 1 - 0.025 ** (1 / n)
    return Estimate(share.value, max(share.value - reach, 0.0), min(share.value + reach, 1.0))


def _wasserstein(values: np.ndarray, known: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Distances of weighted values, nan left out, from known ones: the area between the two
    distribution functions, shape (m,)."""
    there = np.isfinite(values)
    values, weights, known = values[there], weights[:, there], np.sort(known[np.isfinite(known)])
    if not len(values):
        return np.full(len(weights), np.nan)
    order = np.argsort(values, kind="stable")
    values, share = values[order], weights[:, order].cumsum(axis=1)
    grid = np.unique(np.concatenate([values, known]))
    with np.errstate(invalid="ignore"):  # Of a resample that holds none of them.
        below = np.pad(share / share[:, -1:], ((0, 0), (1, 0)))
    ours = below[:, np.searchsorted(values, grid[:-1], side="right")]
    theirs = np.searchsorted(known, grid[:-1], side="right") / len(known)
    return np.abs(ours - theirs) @ np.diff(grid)
