"""What notebook 07 claims, computed and not written."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from irlkit.evaluate.evidence import Estimate
from irlkit.lab.experiments.claims import Claim

START, REINFORCED, GAP = "start", "reinforced", "band gap 3 eV"
RULE = "start, colder"
"""The model before training with the temperature that serves best: what needs no learning."""


def denovo_claims(
    samples: Callable[[str, str], np.ndarray], measured: set[str], judged: bool
) -> list[Claim]:
    """Compare what reinforcement made with the start.

    Targets were fixed before the runs that they judge. That of compounds was added, with a reward
    that asks for them, after Chemeleon2's own had raised mSUN by pure elements (docs/results.md).
    The control of each number is the same comparison of the start with itself. Intervals are of
    formulas and training seeds, drawn again.

    Args:
        samples: (metric, variant) -> its value and its resamples.
        measured: variants.
        judged: whether there are the judge's metrics.
    """

    def compared(
        compare: Callable[..., np.ndarray], ours: np.ndarray, theirs: np.ndarray
    ) -> Estimate:
        # Resamples of the two are independent: in one order they would be drawn alike.
        with np.errstate(divide="ignore", invalid="ignore"):
            return Estimate.of(compare(ours, np.concatenate([theirs[:1], theirs[:0:-1]])))

    def change(metric: str, variant: str, against: str = START) -> Estimate:
        return compared(np.subtract, samples(metric, variant), samples(metric, against))

    def ratio(metric: str, variant: str) -> Estimate:
        return compared(np.divide, samples(metric, variant), samples(metric, START))

    check = Claim.check
    claims = [
        check("mSUN, reinforced minus start", change("msun", REINFORCED), ">= 0.2", "claim", 0.0),
        check(
            "mSUN of compounds of two or more elements, reinforced minus start",
            change("msun_compounds", REINFORCED),
            ">= 0.2",
            "claim",
            0.0,
        ),
        check("mSUN, reinforced over start", ratio("msun", REINFORCED), ">= 2", "aim", 1.0),
        check(
            "composition diversity, reinforced over start",
            ratio("composition_diversity", REINFORCED),
            ">= 0.8",
            "guard",
            1.0,
        ),
    ]
    if judged:
        ours, theirs = (
            samples("judge_msun", v) - 0.5 * samples("msun", v) for v in (REINFORCED, START)
        )
        kept = compared(np.subtract, ours, theirs)
        claims.append(
            check("gain in mSUN by the judge minus half of the gain", kept, "> 0", "claim", 0.0)
        )
    if RULE in measured:
        gain = change("msun", REINFORCED, RULE)
        control = float(samples("msun", START)[0] - samples("msun", RULE)[0])
        claims.append(check("mSUN, reinforced minus start, colder", gain, "> 0", "claim", control))
    if GAP in measured:
        claims.append(
            check(
                "share within 0.5 eV of 3 eV, reinforced for it over start",
                ratio("on_target", GAP),
                ">= 4",
                "claim",
                1.0,
            )
        )
    if "without diversity" in measured:
        name = "composition diversity, without its reward minus with it"
        fall = change("composition_diversity", "without diversity", REINFORCED)
        claims.append(check(name, fall, "< 0", "claim", 0.0))
    return claims
