"""What notebook 04 claims, computed and not written."""

from __future__ import annotations

import math

import pandas as pd

from irlkit.lab.experiments.claims import Claim, _min, _ratio, _rows
from irlkit.lab.experiments.presets import AnnealingPreset


def annealing_claims(
    evaluation: pd.DataFrame, preset: AnnealingPreset, smallest_factor: float
) -> list[Claim]:
    """The paper's claims about learned annealing (section 4.3, Appendix H).

    Differences and ratios between numbers of steps use the seeds that both were evaluated with.
    `smallest_factor` is the smallest 1 + s(t) of the learned schedules.
    """
    few, many = preset.n_steps, preset.reference_steps
    learned = _rows(evaluation, schedule="learned", n_steps=few)
    best, tuned = (
        _rows(evaluation, schedule="handcrafted", n_steps=k, tuned_at=k) for k in (many, few)
    )
    ours, theirs = f"learned annealing at {few} steps", f"best handcrafted one at {many} steps"
    metre, crmse = (learned[metric] - tuned[metric] for metric in ("metre", "crmse"))
    at_few = f"minus that of the best handcrafted one at {few} steps"
    entries: list[tuple[str, float, str, bool]] = [
        (
            f"METRe of the {ours} relative to the {theirs}",
            _ratio(learned["metre"], best["metre"]),
            ">= 0.97",
            True,
        ),
        (
            f"cRMSE of the {ours} relative to the {theirs}",
            _ratio(learned["crmse"], best["crmse"]),
            "<= 1.05",
            True,
        ),
        (f"METRe of the {ours} {at_few}, smallest of the seeds", _min(metre), "> 0", True),
        (f"cRMSE of the {ours} {at_few}, largest of the seeds", -_min(-crmse), "< 0", True),
        ("smallest 1 + s(t) of the learned annealings", smallest_factor, "> 0", True),
    ]
    for n_steps in preset.evaluation_steps:
        if n_steps != few:
            there = _rows(evaluation, schedule="learned", n_steps=n_steps)["metre"]
            what = f"METRe of the learned annealing at {n_steps} steps relative to {few} steps"
            share = _ratio(there, learned["metre"].reindex(there.index))
            entries.append((what, share, ">= 0.95", n_steps > few))
    return [Claim.check(*entry) for entry in entries]


def annealing_remark(evaluation: pd.DataFrame, preset: AnnealingPreset) -> str:
    """How far chance goes."""
    size = int(evaluation["n_structures"].max())
    share = _rows(evaluation, schedule="learned", n_steps=preset.n_steps)["metre"].mean()
    error = math.sqrt(share * (1 - share) / size)
    return (
        f"With {size} test structures, the standard error of a METRe of {share:.0%} is about "
        f"{100 * error:.1f} percentage points; smaller differences mean little unless every seed "
        "shows them."
    )
