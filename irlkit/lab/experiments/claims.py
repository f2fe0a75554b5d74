"""Claims about measured numbers, computed and not written."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from irlkit.lab.experiments.presets import AnnealingPreset
from irlkit.utils.checks import checked

_SIGNS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}


@checked
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
    @checked
    def check(cls, claim: str, value: float, target: str, required: bool = True) -> Claim:
        """Compare a value with a target; what is not finite does not hold."""
        sign, _, bound = target.partition(" ")
        if sign not in _SIGNS or not _is_float(bound):
            raise ValueError(f"target must be like '>= 0.97', got {target!r}")
        if not math.isfinite(value):
            return cls(claim, None, target, False, required)
        return cls(claim, float(value), target, bool(_SIGNS[sign](value, float(bound))), required)


def _is_float(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


@checked
def claims_table(claims: Sequence[Claim]) -> pd.DataFrame:
    """Claims as a table for people, numbered from 1.

    Raises:
        ValueError: there is none.
    """
    if not len(claims):
        raise ValueError("claims must hold at least one claim, got none")
    table = pd.DataFrame([asdict(claim) for claim in claims], index=range(1, len(claims) + 1))
    table["target"] = [claim.target.replace(" ", "\u00a0") for claim in claims]  # On one line.
    table["value"] = [
        "not measured" if claim.value is None else f"{claim.value:.3f}" for claim in claims
    ]
    table["holds"] = np.where(table["holds"], "yes", "NO")
    table["kind"] = np.where(table["required"], "claim", "aim")
    return table.drop(columns="required")


def annealing_claims(
    evaluation: pd.DataFrame, preset: AnnealingPreset, smallest_factor: float
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


def annealing_conclusion(
    evaluation: pd.DataFrame, preset: AnnealingPreset, claims: Sequence[Claim]
) -> str:
    """What the numbers say, in Markdown.

    Args:
        evaluation: columns schedule, tuned_at, n_steps, seed, n_structures, metre, crmse.
        preset: says which steps are few and many.
        claims: of ``annealing_claims``.
    """
    few, many = preset.n_steps, preset.reference_steps
    compared = (
        (f"learned, {few} steps", "learned", few, None),
        (f"handcrafted for {many} steps, {many} steps", "handcrafted", many, many),
        (f"handcrafted for {few} steps, {few} steps", "handcrafted", few, few),
        (f"none, {few} steps", "none", few, None),
        (f"none, {many} steps", "none", many, None),
    )
    lines = ["| annealing | METRe | cRMSE |", "|:--|--:|--:|"]
    for label, schedule, n_steps, tuned_at in compared:
        rows = _by_seed(evaluation, schedule, n_steps, tuned_at)
        values = [_with_range(rows[metric]) for metric in ("metre", "crmse")]
        lines.append(f"| {' | '.join([label, *values])} |")
    lines += ["", held_in_words(claims)]
    size = int(evaluation["n_structures"].max())
    share = _by_seed(evaluation, "learned", few)["metre"].mean()
    error = math.sqrt(share * (1 - share) / size)
    lines[-1] += (
        f" With {size} test structures, the standard error of a METRe of {share:.0%} is about "
        f"{100 * error:.1f} percentage points; smaller differences mean little unless every seed "
        "shows them."
    )
    if preset.name == "quick":
        lines[-1] += (
            " The preset *quick* only shows that everything works: do not judge the method by it."
        )
    return "\n".join(lines)


def held_in_words(claims: Sequence[Claim]) -> str:
    """How many claims hold, and which do not, in Markdown."""
    held = [claim for claim in claims if claim.required and claim.holds]
    required = [claim for claim in claims if claim.required]
    failing = [
        f"{number} ({'claim' if claim.required else 'aim'})"
        for number, claim in enumerate(claims, start=1)
        if not claim.holds
    ]
    text = f"**{len(held)} of {len(required)} claims hold.**"
    return f"{text} Those that do not: number {', '.join(failing)}." if failing else text


def _with_range(values: pd.Series) -> str:
    """Mean, and the range over seeds where there are several."""
    if not len(values):
        return "not measured"
    text = f"{values.mean():.3f}"
    return text if len(values) == 1 else f"{text} ({values.min():.3f} to {values.max():.3f})"


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
