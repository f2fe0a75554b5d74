"""What notebook 04 claims, computed and not written."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from irlkit.lab.experiments.claims import Claim, _conclude, _markdown, _min, _ratio, _rows
from irlkit.lab.experiments.presets import AnnealingPreset


def annealing_claims(
    evaluation: pd.DataFrame, preset: AnnealingPreset, smallest_factor: float
) -> list[Claim]:
    """Judge the paper's claims about learned annealing (section 4.3, Appendix H).

    Differences and ratios between numbers of steps use the seeds that both were evaluated with.

    Args:
        evaluation: columns schedule, tuned_at, n_steps, seed, metre, crmse.
        preset: says which steps are few and many.
        smallest_factor: smallest 1 + s(t) of the learned schedules.
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


def annealing_conclusion(
    evaluation: pd.DataFrame, preset: AnnealingPreset, claims: Sequence[Claim]
) -> str:
    """Say in Markdown what the numbers say.

    Args:
        evaluation: columns schedule, tuned_at, n_steps, seed, n_structures, metre, crmse.
        preset: says which steps are few and many.
        claims: of ``annealing_claims``.
    """
    few, many = preset.n_steps, preset.reference_steps
    rows = {}
    for schedule, n_steps, tuned_at in (
        *(("learned", few, None), ("handcrafted", many, many), ("handcrafted", few, few)),
        *(("none", few, None), ("none", many, None)),
    ):
        tuned = {} if tuned_at is None else {"tuned_at": tuned_at}
        label = schedule if tuned_at is None else f"{schedule} for {tuned_at} steps"
        of_seeds = _rows(evaluation, schedule=schedule, n_steps=n_steps, **tuned)
        rows[f"{label}, {n_steps} steps"] = of_seeds
    size = int(evaluation["n_structures"].max())
    share = _rows(evaluation, schedule="learned", n_steps=few)["metre"].mean()
    error = math.sqrt(share * (1 - share) / size)
    text = (
        f" With {size} test structures, the standard error of a METRe of {share:.0%} is about "
        f"{100 * error:.1f} percentage points; smaller differences mean little unless every seed "
        "shows them."
    )
    table = _markdown("annealing", {"metre": "METRe", "crmse": "cRMSE"}, rows)
    return _conclude([*table, ""], claims, preset, text)
