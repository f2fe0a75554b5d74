"""What notebook 09 claims, computed and not written."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from irlkit.evaluate.evidence import Estimate
from irlkit.lab.experiments._denovo_claims import GAP, REINFORCED, RULE, START, Comparisons
from irlkit.lab.experiments.claims import Claim

FLOW, LATENT = "discrete flow", "latent diffusion"
GUIDED = "guided to 3 eV"
LONGER = "reinforced, equal seconds"


def latent_claims(
    samples: Callable[[str, str], np.ndarray],
    measured: set[str],
    at_equal: Mapping[str, Mapping[str, str]],
    judged: bool,
) -> list[Claim]:
    """Compare what reinforcement made of both generators, and it with guidance.

    Targets were fixed before the runs that they judge. The control of each number is the same
    comparison of the start with itself; that of a share of the samples is the start's.

    Args:
        samples: (metric, "generator, variant") -> its value and its resamples.
        measured: those with a variant.
        at_equal: "rewards" and "seconds" -> generator -> variant after equally many.
        judged: whether there are the judge's metrics.
    """
    of = Comparisons(samples)
    check, claims = Claim.check, []
    for name in (FLOW, LATENT):
        ours, start, rule = (f"{name}, {variant}" for variant in (REINFORCED, START, RULE))
        if ours not in measured:
            continue
        for metric, words in (("msun", "mSUN"), ("msun_compounds", "mSUN of compounds")):
            gain = of.change(metric, ours, start)
            claims.append(
                check(f"{words}, {name}, reinforced minus start", gain, "> 0", "claim", 0)
            )
        if rule in measured:
            gain, before = (of.change("msun", variant, rule) for variant in (ours, start))
            text = f"mSUN, {name}, reinforced minus start, colder"
            claims.append(check(text, gain, "> 0", "claim", before.value))
        if judged:
            kept = of.change_of_judge(ours, start)
            text = f"gain in mSUN by the judge minus half of the gain, {name}"
            claims.append(check(text, kept, "> 0", "claim", 0))
        kept = of.ratio("composition_diversity", ours, start)
        text = f"composition diversity, {name}, reinforced over start"
        claims.append(check(text, kept, ">= 0.8", "guard", 1))
        for metric in ("valid", "unique"):
            share, control = (Estimate.of(samples(metric, variant)) for variant in (ours, start))
            text = f"{metric}, share of samples, {name}, reinforced"
            claims.append(check(text, share, ">= 0.9", "guard", control))
    for what, variants in at_equal.items():
        pairs = [(f"{name}, {variants[name]}", f"{name}, {START}") for name in (LATENT, FLOW)]
        if all(ours in measured for ours, _ in pairs):
            more = of.change_of_gain("msun", *pairs)
            text = f"gain in mSUN, latent diffusion minus discrete flow, at equal {what}"
            claims.append(check(text, more, "> 0", "aim", 0))
    start, by_rl, guided = (f"{LATENT}, {variant}" for variant in (START, GAP, GUIDED))
    near = "share within 0.5 eV of 3 eV, latent diffusion"
    for ours, how in ((by_rl, "reinforced for it"), (guided, "guided")):
        if ours in measured:
            more = of.change("on_target", ours, start)
            claims.append(check(f"{near}, {how} minus unguided", more, "> 0", "claim", 0))
    if {by_rl, guided} <= measured:
        more = of.change("on_target", by_rl, guided)
        claims.append(check(f"{near}, reinforced minus guided", more, "> 0", "aim", 0))
    return claims
