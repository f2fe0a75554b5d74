"""Whether a gain in the rewarded energy is real: a judge that was not rewarded, and relaxation.

Of the judge's energies, means are trimmed: it may give single structures millions of eV, where the
rewarded potential gives a few. Before the first measurement, plain means were to be
claimed, which say nothing then (docs/results.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
import torch

from irlkit.crystals import CrystalBatch
from irlkit.evaluate.evidence import Bootstrap, Estimate
from irlkit.lab.experiments.claims import Claim, Kind
from irlkit.potentials import Potential, relax
from irlkit.rewards import EnergyReward, Reward, RewardResult

REWARDED, JUDGE, RELAXED = "rewarded", "judge", "relaxed"
JUDGE_RELAXED = "judge, relaxed"
BEFORE, AFTER = "before", "after"


LIMIT = 10.0
"""What a single structure counts at most in validations, eV/atom above or below its reference.

A network may give atoms that nearly touch any energy, far below all others as well.
"""


class WatchedEnergy(Reward):
    """Rewards nothing, and notes energies of a potential, after relaxation if that is asked for.

    The result's `info` holds `energy_above_reference` (eV/atom, within `LIMIT`, nan for
    structures that are left out).

    Args:
        energy: gives energies above a reference.
        n_structures: so many of the first ones; None: all.
        max_steps: of relaxation.
    """

    def __init__(
        self, energy: EnergyReward, n_structures: int | None = None, max_steps: int = 0
    ) -> None:
        self.energy, self.n_structures, self.max_steps = energy, n_structures, max_steps

    def check(self, compositions: CrystalBatch) -> None:
        self.energy.check(compositions)

    def __call__(self, batch: CrystalBatch) -> RewardResult:
        first = batch[: self.n_structures]
        if self.max_steps:
            first = relax(first, self.energy.potential, max_steps=self.max_steps).crystals
        above = np.full(len(batch), np.nan)
        found = self.energy(first).info["energy_above_reference"]
        above[: len(first)] = found.clip(-LIMIT, LIMIT)
        nothing = torch.zeros(len(batch), dtype=torch.float64)
        return RewardResult(nothing, {"energy_above_reference": above})


def energies_of(
    structures: CrystalBatch, potential: Potential, judge: Potential | None, max_steps: int
) -> dict[str, np.ndarray]:
    """Energies per atom (eV) by both potentials, as generated and relaxed with the rewarded one.

    Those of a structure that failed to relax are nan.
    """
    found = relax(structures, potential, max_steps=max_steps)
    energies = {REWARDED: potential(structures).energy_per_atom, RELAXED: found.energy_per_atom}
    if judge is not None:
        relaxed = np.where(found.failed, np.nan, judge(found.crystals).energy_per_atom)
        energies |= {JUDGE: judge(structures).energy_per_atom, JUDGE_RELAXED: relaxed}
    return energies


class Gains:
    """Energies of the same structures before and after training.

    Args:
        table: a row per structure, policy, training seed (nan before training) and `when`, with a
            column for each kind of energy; structures in one order.
    """

    def __init__(self, table: pd.DataFrame) -> None:
        self.table = table
        self.kinds = [k for k in (REWARDED, JUDGE, RELAXED, JUDGE_RELAXED) if k in table]
        first = table[(table["when"] == BEFORE) & (table["policy"] == table["policy"].iloc[0])]
        self.draw = Bootstrap(first["formula"].to_numpy())
        self.n_structures = len(first)

    def energies(self, policy: str, when: str) -> dict[str, np.ndarray]:
        """Kind -> energies, shape (n_training, 1, n_structures), 1 training before it."""
        rows = self.table[(self.table["policy"] == policy) & (self.table["when"] == when)]
        return {k: rows[k].to_numpy().reshape(-1, 1, self.n_structures) for k in self.kinds}

    def pairs(self, policy: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Energies before and after, nan for structures that lack one of any kind.

        Shape (n_training, 1, n_structures).
        """
        before, after = self.energies(policy, BEFORE), self.energies(policy, AFTER)
        both = np.broadcast_arrays(*before.values(), *after.values())
        there = np.isfinite(both).all(0)
        kept = [np.where(there, values, np.nan) for values in both]
        first, last = kept[: len(self.kinds)], kept[len(self.kinds) :]
        return dict(zip(self.kinds, first, strict=True)), dict(zip(self.kinds, last, strict=True))

    def gains(self, policy: str) -> dict[str, np.ndarray]:
        """Energies before minus after, of what has all, shape (n_training, 1, n_structures)."""
        before, after = self.pairs(policy)
        return {kind: before[kind] - after[kind] for kind in self.kinds}

    def in_words(self, policies: Iterable[str]) -> pd.DataFrame:
        """What each kind of energy has gained, for people."""
        rows = {}
        for policy in policies:
            before, after = self.pairs(policy)
            for kind in self.kinds:
                gain = before[kind] - after[kind]
                rows[policy, kind] = {
                    "median before": f"{np.nanmedian(before[kind]):.3f}",
                    "median after": f"{np.nanmedian(after[kind]):.3f}",
                    "gain, mean": str(Estimate.of(self.draw.mean(gain))),
                    "gain, trimmed mean": str(Estimate.of(self.draw.trimmed_mean(gain))),
                    "gain, median": str(Estimate.of(self.draw.median(gain))),
                    "pairs": int(np.isfinite(gain).sum()),
                }
        table = pd.DataFrame.from_dict(rows, orient="index")
        table.index = pd.MultiIndex.from_tuples(rows, names=["policy", "energy, eV/atom"])
        return table

    def claims(self, policies: Mapping[str, str]) -> list[Claim]:
        """Whether the judge and relaxation confirm the gain of policies, name -> for people."""
        return [claim for name, text in policies.items() for claim in self._claims_of(name, text)]

    def _claims_of(self, policy: str, text: str) -> list[Claim]:
        gains, draw = self.gains(policy), self.draw
        claims = []

        def share(kind: str, what: str, target: str, of: Kind, statistic: str = "mean") -> None:
            value = Estimate.of(draw._ratio(gains[kind], gains[REWARDED], statistic))
            how = statistic.replace("_", " ")
            name = f"share of the gain in rewarded energy ({how}) that {what}, {text}"
            claims.append(Claim.check(name, value, target, of))

        if JUDGE in gains:
            for statistic in ("trimmed_mean", "median"):
                share(JUDGE, "the judge sees", ">= 0.5", "claim", statistic)
            value = Estimate.of(draw.rank_correlation(gains[REWARDED], gains[JUDGE]))
            what = "rank correlation of the gains in rewarded energy and the judge's"
            claims.append(Claim.check(f"{what}, {text}", value, ">= 0.5"))
            before, after = (
                Estimate.of(draw.rank_correlation(energies[REWARDED], energies[JUDGE]))
                for energies in self.pairs(policy)
            )
            what = "rank correlation of rewarded energies and the judge's after training"
            claims.append(Claim.check(f"{what}, {text}", after, ">= 0.5", "guard", before))
        for kind, whose, statistic in (
            (RELAXED, "", "mean"),
            (JUDGE_RELAXED, ", by the judge", "trimmed_mean"),
        ):
            if kind in gains:
                how = statistic.replace("_", " ")
                name = f"gain in energy ({how}) after relaxation{whose}, eV/atom, {text}"
                value = Estimate.of(getattr(draw, statistic)(gains[kind]))
                claims.append(Claim.check(name, value, "> 0", "claim", 0.0))
                share(kind, f"survives relaxation{whose}", ">= 0.25", "aim", statistic)
        return claims
