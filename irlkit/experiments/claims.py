"""Claims about measured numbers, computed and not written."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from irlkit.experiments.presets import Preset

_SIGNS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}


@dataclass(frozen=True)
class Claim:
    """A statement and what was measured.

    Attributes:
        claim: the statement.
        value: the measured number, None if there is none.
        target: what the number has to be, such as ">= 0.97".
        holds: whether it is.
        required: False for an aim beyond the claims.
    """

    claim: str
    value: float | None
    target: str
    holds: bool
    required: bool = True

    @classmethod
    def check(cls, claim: str, value: float, target: str, required: bool = True) -> Claim:
        """Compare a value with a target; what is not finite does not hold."""
        sign, bound = target.split()
        if not math.isfinite(value):
            return cls(claim, None, target, False, required)
        return cls(claim, float(value), target, bool(_SIGNS[sign](value, float(bound))), required)


def claims_table(claims: Sequence[Claim]) -> pd.DataFrame:
    """Claims as a table for people."""
    table = pd.DataFrame([asdict(claim) for claim in claims])
    table["value"] = [
        "not measured" if claim.value is None else f"{claim.value:.3f}" for claim in claims
    ]
    table["holds"] = np.where(table["holds"], "yes", "NO")
    table["kind"] = np.where(table["required"], "claim", "aim")
    return table.drop(columns="required")


def annealing_claims(
    evaluation: pd.DataFrame, preset: Preset, smallest_factor: float
) -> list[Claim]:
    """The paper's claims about learned annealing (section 4.3, Appendix H).

    Differences and ratios between numbers of steps use the seeds that both were evaluated with.

    Args:
        evaluation: columns schedule, tuned_at, n_steps, seed, metre, crmse.
        preset: says which steps are few and many.
        smallest_factor: smallest 1 + s(t) of the learned schedules.
    """
    few, many = preset.n_steps, preset.reference_steps
    learned = _by_seed(evaluation, "learned", few)
    reference = _by_seed(evaluation, "handcrafted", many, many)
    tuned = _by_seed(evaluation, "handcrafted", few, few)
    check = Claim.check
    ours, theirs = f"learned annealing at {few} steps", f"best handcrafted one at {many} steps"
    claims = [
        check(
            f"METRe of the {ours} relative to the {theirs}",
            _ratio(learned["metre"], reference["metre"]),
            ">= 0.97",
        ),
        check(
            f"cRMSE of the {ours} relative to the {theirs}",
            _ratio(learned["crmse"], reference["crmse"]),
            "<= 1.05",
        ),
        check(
            f"METRe of the {ours} minus that of the best handcrafted one at {few} steps, "
            "smallest of the seeds",
            (learned["metre"] - tuned["metre"]).min(skipna=False),
            "> 0",
        ),
        check(
            f"cRMSE of the {ours} minus that of the best handcrafted one at {few} steps, "
            "largest of the seeds",
            (learned["crmse"] - tuned["crmse"]).max(skipna=False),
            "< 0",
        ),
        check("smallest 1 + s(t) of the learned annealings", smallest_factor, "> 0"),
    ]
    for n_steps in preset.evaluation_steps:
        if n_steps != few:
            there = _by_seed(evaluation, "learned", n_steps)
            claims.append(
                check(
                    f"METRe of the learned annealing at {n_steps} steps relative to {few} steps",
                    _ratio(there["metre"], learned["metre"].reindex(there.index)),
                    ">= 0.95",
                    required=n_steps > few,
                )
            )
    return claims


def _by_seed(
    evaluation: pd.DataFrame, schedule: str, n_steps: int, tuned_at: int | None = None
) -> pd.DataFrame:
    keep = (evaluation["schedule"] == schedule) & (evaluation["n_steps"] == n_steps)
    if tuned_at is not None:
        keep &= evaluation["tuned_at"] == tuned_at
    return evaluation[keep].drop_duplicates("seed", keep="last").set_index("seed")


def _ratio(values: pd.Series, others: pd.Series) -> float:
    """Ratio of the means, nan if there are none."""
    denominator = others.mean()
    return float(values.mean() / denominator) if denominator else math.nan
