"""What a model makes of numbers of atoms: validity, uniqueness, novelty of its samples."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from itertools import combinations

import numpy as np
import torch

from irlkit.crystals import CrystalBatch, validity
from irlkit.data import CrystalDataset
from irlkit.evaluate.matching import MatchPool
from irlkit.flows.dynamics import Dynamics
from irlkit.networks.flow_model import FlowModel

TOLERANCES = {"stol": 0.3, "ltol": 0.2, "angle_tol": 5.0}
"""Of equal structures: pymatgen's, which MatterGen uses as well."""


def denovo_evaluation(
    training: CrystalDataset, n_structures: int = 256, n_steps: int = 100, seed: int = 0
) -> Callable[[FlowModel], dict[str, float]]:
    """Return an `evaluate` for `pretrain`: shares of samples with the training set's sizes.

    Its numbers: ``valid`` (criteria of Appendix B); of the valid, ``unique`` (the first of equal
    structures), ``novel`` (equal to none of the training set) and ``new_formula``;
    ``valid_composition`` of all, where the package smact is installed.

    Args:
        training: what is not novel.
        n_structures: how many to generate.
        n_steps: integration steps.
        seed: of the samples, the same at every call.
    """

    def compute(model: FlowModel) -> dict[str, float]:
        generator = torch.Generator().manual_seed(seed)
        n_atoms = model.base.sample_n_atoms(n_structures, generator).to(model.device)
        made = Dynamics(model).generate(n_atoms, n_steps, generator=generator, max_batch=128)
        return {f"validation_{k}": v for k, v in sample_quality(made.to("cpu"), training).items()}

    return compute


def sample_quality(structures: CrystalBatch, training: CrystalDataset) -> dict[str, float]:
    """Return the numbers of `denovo_evaluation` for structures."""
    valid = validity.check(structures).valid
    formulas, known = structures.reduced_formulas(), training.batch.reduced_formulas()
    rows, of_training = defaultdict(list), defaultdict(list)
    for i in np.flatnonzero(valid).tolist():
        rows[formulas[i]].append(i)
    for j, formula in enumerate(known):
        of_training[formula].append(j)
    twins = [(j, i) for same in rows.values() for i, j in combinations(same, 2)]
    pairs = [
        (i, j) for formula, same in rows.items() for i in same for j in of_training.get(formula, ())
    ]
    with MatchPool(n_workers=0, **TOLERANCES) as pool:
        repeated = _matched(pool, structures, structures, twins, len(valid))
        seen = _matched(pool, structures, training.batch, pairs, len(valid))
    new = np.array([formula not in of_training for formula in formulas])
    share = {"valid": float(valid.mean())}
    for name, good in (("unique", ~repeated), ("novel", ~seen), ("new_formula", new)):
        share[name] = float(good[valid].mean()) if valid.any() else float("nan")
    if (checked := _valid_compositions(structures)) is not None:
        share["valid_composition"] = checked
    return share


def _matched(
    pool: MatchPool, ours: CrystalBatch, others: CrystalBatch, pairs: list, n: int
) -> np.ndarray:
    """Which of our n structures match one of the others that they are paired with."""
    found = np.zeros(n, dtype=bool)
    if pairs:
        used = sorted({j for _, j in pairs})
        place = {j: k for k, j in enumerate(used)}
        index = np.array([(i, place[j]) for i, j in pairs])
        matched = np.isfinite(pool.rmsd(ours, others.select(torch.tensor(used)), index))
        found[index[matched, 0]] = True
    return found


def _valid_compositions(structures: CrystalBatch) -> float | None:
    """Share of neutral compositions by SMACT's default test; None without the package."""
    try:
        from smact.screening import smact_validity
    except ImportError:
        return None
    results: Mapping[str, bool] = {
        formula: _is_valid(smact_validity, formula)
        for formula in set(structures.reduced_formulas())
    }
    return float(np.mean([results[formula] for formula in structures.reduced_formulas()]))


def _is_valid(test: Callable[[str], bool], formula: str) -> bool:
    try:
        return bool(test(formula))
    except (KeyError, TypeError, ValueError):  # Elements without oxidation states, noble gases.
        return False
