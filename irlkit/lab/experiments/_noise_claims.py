"""What notebook 02 claims, computed and not written."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from irlkit.lab.experiments.claims import Claim, _ratio, _rows
from irlkit.lab.experiments.presets import NoisePreset


def noise_claims(
    evaluation: pd.DataFrame,
    preset: NoisePreset,
    medium: Mapping[tuple[str, str], float],
    reached: bool,
) -> list[Claim]:
    """The paper's claims about noise and annealing (section 4.2, Appendix C), for one model.

    Args:
        evaluation: of that model.
        preset: says which steps are few and many.
        medium: (integration, schedule) -> medium scale; the largest that was tried, if it is
            larger than that.
        reached: whether the constant schedule reaches it with the perturbed ODE.
    """
    few, many = preset.n_steps, preset.reference_steps
    share = f"{preset.levels['medium']:.0%} of the quality"
    sde, ode = "SDE", "perturbed ODE"
    entries = [
        (
            f"scale that costs {share}, SDE relative to perturbed ODE, {kind} schedule",
            _of(medium[sde, kind], medium[ode, kind]),
            "> 1",
        )
        for kind in ("constant", "square root")
    ]
    entries += [
        (
            f"scale that costs {share}, square-root relative to constant schedule, {way}",
            _of(medium[way, "square root"], medium[way, "constant"]),
            "> 1",
        )
        for way in (sde, ode)
    ]
    none, annealed = (
        {k: _rows(evaluation, integration="ODE", schedule=s, n_steps=k) for k in (few, many)}
        for s in ("none", "handcrafted")
    )
    stochastic = _rows(evaluation, integration=sde, schedule="handcrafted", n_steps=many)
    crmse = annealed[many]["crmse"] - none[many]["crmse"]
    gained = stochastic["match_rate"] - annealed[many]["match_rate"]
    entries += [
        (
            f"a constant schedule of some scale costs more than {share} of the perturbed ODE "
            "(1: yes)",
            float(reached),
            ">= 1",
        ),
        (
            f"match rate with the annealing for {many} steps, at {few} relative to {many} steps",
            _paired(annealed[few], annealed[many]),
            "<= 0.9",
        ),
        (
            f"match rate without annealing, at {few} relative to {many} steps",
            _paired(none[few], none[many]),
            ">= 0.95",
        ),
        (f"cRMSE with annealing minus without, at {many} steps", float(crmse.mean()), "< 0"),
        (
            f"match rate of the SDE minus that of the ODE, both annealed and at {many} steps, "
            "absolute value",
            float(abs(gained.mean())),
            "<= 0.03",
        ),
    ]
    return [Claim.check(*entry) for entry in entries]


def _paired(values: pd.DataFrame, others: pd.DataFrame) -> float:
    """Ratio of match rates over the seeds that both have."""
    seeds = values.index.intersection(others.index)
    return _ratio(values["match_rate"].reindex(seeds), others["match_rate"].reindex(seeds))


def _of(value: float, other: float) -> float:
    return value / other if other else float("nan")
