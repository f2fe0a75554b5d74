"""What notebook 02 claims, computed and not written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from irlkit.lab.experiments.claims import Claim, _ratio, held_in_words
from irlkit.lab.experiments.presets import NoisePreset


def noise_claims(
    evaluation: pd.DataFrame,
    preset: NoisePreset,
    medium: Mapping[tuple[str, str], float],
    reached: bool,
) -> list[Claim]:
    """The paper's claims about noise and annealing (section 4.2, Appendix C).

    Args:
        evaluation: of one model, with the columns integration, noise, scale, schedule, n_steps,
            seed, match_rate and crmse.
        preset: says which steps are few and many.
        medium: (integration, schedule) -> medium scale; the largest that was tried, if it is
            larger than that.
        reached: whether the constant schedule reaches it with the perturbed ODE.
    """
    few, many = preset.n_steps, preset.reference_steps
    share = preset.levels["medium"]
    check = Claim.check
    sde, ode = "SDE", "perturbed ODE"
    claims = [
        check(
            f"scale that costs {share:.0%} of the quality, SDE relative to perturbed ODE, "
            f"{kind} schedule",
            _of(medium[sde, kind], medium[ode, kind]),
            "> 1",
        )
        for kind in ("constant", "square root")
    ]
    claims += [
        check(
            f"scale that costs {share:.0%} of the quality, square-root relative to constant "
            f"schedule, {way}",
            _of(medium[way, "square root"], medium[way, "constant"]),
            "> 1",
        )
        for way in (sde, ode)
    ]
    claims.append(
        check(
            f"a constant schedule of some scale costs more than {share:.0%} of the quality of the "
            "perturbed ODE (1: yes)",
            float(reached),
            ">= 1",
        )
    )
    none = {k: _rows(evaluation, "none", k) for k in (few, many)}
    annealed = {k: _rows(evaluation, "handcrafted", k) for k in (few, many)}
    stochastic = _rows(evaluation, "handcrafted", many, integration=sde)
    claims += [
        check(
            f"match rate with the annealing for {many} steps, at {few} relative to {many} steps",
            _paired(annealed[few], annealed[many]),
            "<= 0.9",
        ),
        check(
            f"match rate without annealing, at {few} relative to {many} steps",
            _paired(none[few], none[many]),
            ">= 0.95",
        ),
        check(
            f"cRMSE with annealing minus without, at {many} steps",
            float((annealed[many]["crmse"] - none[many]["crmse"]).mean()),
            "< 0",
        ),
        check(
            f"match rate of the SDE minus that of the ODE, both annealed and at {many} steps, "
            "absolute value",
            float(abs((stochastic["match_rate"] - annealed[many]["match_rate"]).mean())),
            "<= 0.03",
        ),
    ]
    return claims


def noise_conclusion(
    scales: pd.DataFrame, annealing: pd.DataFrame, preset: NoisePreset, claims: Sequence[Claim]
) -> str:
    """What the numbers say, in Markdown.

    Args:
        scales: line -> small, medium and large scale, as text.
        annealing: means with and without annealing, as text.
        preset: says which split was generated for.
        claims: of ``noise_claims``.
    """
    columns = list(scales.columns)
    lines = [f"| noise | {' | '.join(columns)} |", f"|:--|{'--:|' * len(columns)}"]
    lines += [
        f"| {name} | {' | '.join(row)} |"
        for name, row in zip(scales.index, scales.to_numpy().tolist(), strict=True)
    ]
    many = preset.reference_steps
    words = []
    for schedule, name in (("handcrafted", "the best handcrafted annealing"), ("none", "none")):
        there = annealing.xs(("ODE", schedule), level=(0, 1)) if len(annealing) else annealing
        rates = ", ".join(f"{k} steps {row['match rate']}" for k, row in there.iterrows())
        words.append(f"with {name}: {rates}" if schedule != "none" else f"without: {rates}")
    lines += [
        "",
        f"Match rate of the ODE {'; '.join(words)}. The annealing was tuned for {many} steps.",
        "",
        held_in_words(claims),
    ]
    if preset.split == "test":
        lines[-1] += (
            ' A scale for a training is better chosen on the validation split: `split = "val"`.'
        )
    if preset.name == "quick":
        lines[-1] += (
            " The preset *quick* only shows that everything works: do not judge the method by it."
        )
    return "\n".join(lines)


def _rows(
    evaluation: pd.DataFrame, schedule: str, n_steps: int, integration: str = "ODE"
) -> pd.DataFrame:
    keep = (evaluation["schedule"] == schedule) & (evaluation["n_steps"] == n_steps)
    keep &= evaluation["integration"] == integration
    return evaluation[keep].drop_duplicates("seed", keep="last").set_index("seed")


def _paired(values: pd.DataFrame, others: pd.DataFrame) -> float:
    """Ratio of match rates over the seeds that both have."""
    seeds = values.index.intersection(others.index)
    return _ratio(values["match_rate"].reindex(seeds), others["match_rate"].reindex(seeds))


def _of(value: float, other: float) -> float:
    return value / other if other else float("nan")
