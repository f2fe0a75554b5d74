"""What notebook 03 claims, computed and not written."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from irlkit.lab.experiments.claims import Claim, _with_range, held_in_words
from irlkit.lab.experiments.presets import EnergyPreset

PRETRAINED = "pretrained"
ANNEALED = "pretrained, annealed"
"""The pretrained model with the learned annealing that the policies keep."""


def energy_claims(evaluation: pd.DataFrame, preset: EnergyPreset) -> list[Claim]:
    """The paper's claims about energy reinforcement (section 4.2), on means over seeds.

    The claims are about the model that reinforcement begins with, integrated as the policies are.
    The same about this model with the annealing and the many steps that suit its structures best,
    as the paper has it, are aims: how low its energies are says what that annealing does to
    energies, which depends on the data (docs/results.md), more than what reinforcement does.

    The claim about matches counts those with any polymorph of the composition. Matches with the
    very reference that the structure was generated for are an aim: where this is not the lowest
    polymorph, an energy below it is not to be had without leaving it. Where no two references
    share a composition, both are the same.

    Args:
        evaluation: columns policy, schedule, n_steps, seed, energy_above_reference, invalid_rate,
            match_rate, polymorph_match_rate, rmse.
        preset: names the policies, and says which steps are few and many.
    """
    few, many = preset.n_steps, preset.reference_steps
    check = Claim.check
    metrics = (
        ("polymorph match rate", "polymorph_match_rate", ">= -0.01", True),
        ("match rate", "match_rate", ">= -0.01", False),
        ("RMSE", "rmse", "<= 0", True),
        ("invalid-energy rate", "invalid_rate", "<= 0", True),
    )
    claims = []
    energies = {}
    for n_steps, schedule, how, required, compared in (
        (few, "none", "without annealing", True, metrics),
        (many, "handcrafted", "with its best annealing", False, metrics),
        (many, "none", "without annealing", False, ()),
    ):
        than = f"the pretrained model {how}, {n_steps} steps"
        baseline = rows_of(evaluation, PRETRAINED, n_steps, schedule)
        means = baseline[["energy_above_reference", *(column for _, column, *_ in compared)]].mean()
        for name, variant in preset.policies.items():
            ours = rows_of(evaluation, name, few)
            energy = energies[variant.policy] = float(ours["energy_above_reference"].mean())
            share = _share(energy, float(means["energy_above_reference"]))
            who = f"{name}, {few} steps"
            claims += [
                check(
                    f"{who}: energy above reference relative to {than}", share, "<= 0.5", required
                ),
                *(
                    check(
                        f"{who}: {what} minus that of {than}",
                        float(ours[column].mean() - means[column]),
                        target,
                        required and may_be_claimed,
                    )
                    for what, column, target, may_be_claimed in compared
                ),
            ]
    annealed = rows_of(evaluation, PRETRAINED, few, "learned")
    if len(annealed):
        before = float(annealed["energy_above_reference"].mean())
        claims += [
            check(
                f"{name}, {few} steps: energy above reference relative to the pretrained model "
                f"with the learned annealing, {few} steps",
                _share(energies[variant.policy], before),
                "< 1",
            )
            for name, variant in preset.policies.items()
        ]
    velocity, score = energies["velocity"], energies["score"]
    claims.append(
        check(
            "energy above reference, velocity-based minus score-based, relative to score-based",
            (velocity - score) / abs(score) if score else float("nan"),
            "<= 0.1",
        )
    )
    return claims


def energy_conclusion(
    evaluation: pd.DataFrame, preset: EnergyPreset, potential: str, claims: Sequence[Claim]
) -> str:
    """What the numbers say, in Markdown.

    Args:
        evaluation: as for ``energy_claims``, with n_structures.
        preset: names the policies, and says which steps are few and many.
        potential: name of the potential of all energies.
        claims: of ``energy_claims``.
    """
    few, many = preset.n_steps, preset.reference_steps
    compared = [
        (f"pretrained, best handcrafted annealing, {many} steps", PRETRAINED, many, "handcrafted"),
        *((f"pretrained, no annealing, {k} steps", PRETRAINED, k, "none") for k in (few, many)),
        *(
            (f"pretrained, learned annealing, {k} steps", PRETRAINED, k, "learned")
            for k in (few, many)
            if len(rows_of(evaluation, PRETRAINED, k, "learned"))
        ),
        *((f"{name}, {few} steps", name, few, None) for name in preset.policies),
    ]
    columns = {
        "energy_above_reference": "energy above reference, eV/atom",
        "match_rate": "match rate",
        "polymorph_match_rate": "polymorph match rate",
        "rmse": "RMSE",
        "invalid_rate": "invalid",
    }
    lines = [f"| | {' | '.join(columns.values())} |", f"|:--|{'--:|' * len(columns)}"]
    for label, policy, n_steps, schedule in compared:
        rows = rows_of(evaluation, policy, n_steps, schedule)
        values = [_with_range(rows[column].dropna()) for column in columns]
        lines.append(f"| {' | '.join([label, *values])} |")
    size = int(evaluation["n_structures"].max())
    lines += [
        "",
        f"{held_in_words(claims)} All energies are {potential}'s, on {size} test structures; "
        "brackets have the range over seeds.",
    ]
    if preset.name == "quick":
        lines[-1] += (
            " The preset *quick* only shows that everything works: do not judge the method by it."
        )
    return "\n".join(lines)


def rows_of(
    evaluation: pd.DataFrame, policy: str, n_steps: int, schedule: str | None = None
) -> pd.DataFrame:
    """Rows of one policy and number of steps, by seed; of one annealing, if there are several."""
    keep = (evaluation["policy"] == policy) & (evaluation["n_steps"] == n_steps)
    if schedule is not None:
        keep &= evaluation["schedule"] == schedule
    return evaluation[keep].drop_duplicates("seed", keep="last").set_index("seed")


def _share(value: float, of: float) -> float:
    """A share of a positive number; nan of others, of which no share can be taken."""
    return value / of if of > 0 else float("nan")
