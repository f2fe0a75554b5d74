"""What notebook 03 claims, computed and not written."""

from __future__ import annotations

import pandas as pd

from irlkit.lab.experiments.claims import Claim, _rows
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
    """
    few, many = preset.n_steps, preset.reference_steps
    metrics = (
        ("polymorph match rate", "polymorph_match_rate", ">= -0.01", True),
        ("match rate", "match_rate", ">= -0.01", False),
        ("RMSE", "rmse", "<= 0", True),
        ("invalid-energy rate", "invalid_rate", "<= 0", True),
    )
    means = {
        name: _rows(evaluation, policy=name, n_steps=few).mean(numeric_only=True)
        for name in preset.policies
    }
    energies = {name: float(mean["energy_above_reference"]) for name, mean in means.items()}
    entries: list[tuple[str, float, str, bool]] = []
    for n_steps, schedule, how, required, compared in (
        (few, "none", "without annealing", True, metrics),
        (many, "handcrafted", "with its best annealing", False, metrics),
        (many, "none", "without annealing", False, ()),
    ):
        than = f"the pretrained model {how}, {n_steps} steps"
        baseline = _rows(evaluation, policy=PRETRAINED, n_steps=n_steps, schedule=schedule)
        theirs = baseline.mean(numeric_only=True)
        for name, ours in means.items():
            who = f"{name}, {few} steps"
            share = _share(energies[name], float(theirs["energy_above_reference"]))
            what = f"{who}: energy above reference relative to {than}"
            entries.append((what, share, "<= 0.5", required))
            entries += [
                (
                    f"{who}: {what} minus that of {than}",
                    float(ours[column] - theirs[column]),
                    target,
                    required and may_be_claimed,
                )
                for what, column, target, may_be_claimed in compared
            ]
    annealed = _rows(evaluation, policy=PRETRAINED, n_steps=few, schedule="learned")
    if len(annealed):
        before = float(annealed["energy_above_reference"].mean())
        entries += [
            (
                f"{name}, {few} steps: energy above reference relative to the pretrained model "
                f"with the learned annealing, {few} steps",
                _share(energy, before),
                "< 1",
                True,
            )
            for name, energy in energies.items()
        ]
    by_kind = {preset.policies[name].policy: energy for name, energy in energies.items()}
    velocity, score = by_kind["velocity"], by_kind["score"]
    entries.append(
        (
            "energy above reference, velocity-based minus score-based, relative to score-based",
            (velocity - score) / abs(score) if score else float("nan"),
            "<= 0.1",
            True,
        )
    )
    return [Claim.check(*entry) for entry in entries]


def _share(value: float, of: float) -> float:
    """A share of a positive number; nan of others, of which no share can be taken."""
    return value / of if of > 0 else float("nan")
