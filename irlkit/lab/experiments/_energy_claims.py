"""What notebook 03 claims, computed and not written."""

from __future__ import annotations

from irlkit.lab.experiments.claims import Claim, Kind, _Evidence, _Group
from irlkit.lab.experiments.presets import EnergyPreset

PRETRAINED = "pretrained"
ANNEALED = "pretrained, annealed"
"""The pretrained model with the learned annealing that the policies keep."""


def energy_claims(
    evidence: _Evidence, preset: EnergyPreset, with_annealing: bool, with_rule: bool
) -> list[Claim]:
    """The paper's claims about energy reinforcement (section 4.2).

    The claims are about the model that reinforcement begins with, integrated as the policies are.
    The same about this model with the annealing and the many steps that suit its structures best,
    as the paper has it, are aims: how low its energies are says what that annealing does to
    energies, which depends on the data (docs/results.md), more than what reinforcement does: half
    of its energy is what the paper has, all of it the mark that was set here. The control is the
    policy before training, with the same noise and steps.

    That matches are kept and structures stay valid are guards: a policy that does nothing keeps
    them. Where a reference is not the lowest polymorph of its composition, an energy below it is
    not to be had without leaving it, so that matches with any polymorph are counted as well.

    `with_annealing` says whether the policies keep a learned annealing, `with_rule` whether the
    rule that needs no learning was evaluated.
    """
    few, many, check = preset.n_steps, preset.reference_steps, evidence.check
    energy = "energy_above_reference"

    def pretrained(n_steps: int, schedule: str, how: str) -> _Group:
        labels = {"policy": PRETRAINED, "n_steps": n_steps, "schedule": schedule}
        return _Group(f"the pretrained model {how}, {n_steps} steps", labels)

    ours = {}
    for name in preset.policies:
        start = _Group(f"{name} before training", {"policy": untrained(name), "n_steps": few})
        ours[name] = _Group(f"{name}, {few} steps", {"policy": name, "n_steps": few}, start)
    start = pretrained(few, "none", "without annealing")
    best = pretrained(many, "handcrafted", "with its best annealing")
    plain = pretrained(many, "none", "without annealing")
    claims = []
    for theirs, kind in ((start, "claim"), (best, "aim"), (plain, "aim")):
        of: Kind = "claim" if kind == "claim" else "aim"
        for group in ours.values():
            for target in ("<= 0.5", "< 1") if theirs is best else ("<= 0.5",):
                claims += [
                    check(energy, group, theirs, target, of, relative=True, statistic=statistic)
                    for statistic in ("mean", "median")
                ]
            if theirs is not plain:
                claims.append(check("rmse", group, theirs, "< 0", of))
    if with_annealing:
        annealed = pretrained(few, "learned", "with the learned annealing")
        claims += [check(energy, group, annealed, "< 0") for group in ours.values()]
    if with_rule:
        rule = pretrained(few, "rule", "with the rule")
        claims += [
            check(energy, group, rule, "< 0", "aim", statistic=statistic)
            for group in ours.values()
            for statistic in ("mean", "median")
        ]
    for group in ours.values():
        claims += [
            check("polymorph_match_rate", group, start, ">= -0.01", "guard"),
            check("match_rate", group, start, ">= -0.01", "guard"),
            check("invalid_rate", group, start, "<= 0", "guard"),
        ]
    by_kind = {preset.policies[name].policy: group for name, group in ours.items()}
    velocity, score = by_kind["velocity"], by_kind["score"]
    claims += [
        check(energy, one, other, "<= 1.1", "guard", relative=True)
        for one, other in ((velocity, score), (score, velocity))
    ]
    return claims


def untrained(name: str) -> str:
    """What evaluations of a policy before its training are called."""
    return f"{name}, untrained"
