"""What notebook 07 claims, computed and not written."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from irlkit.evaluate.evidence import Estimate
from irlkit.lab.experiments.claims import Claim

START, REINFORCED, GAP = "start", "reinforced", "band gap 3 eV"
RULE = "start, colder"
"""The model before training with the temperature that serves best: what needs no learning."""


class Comparisons:
    """Compares variants whose resamples are independent: in one order they would be drawn alike.

    Args:
        samples: (metric, variant) -> its value and its resamples.
    """

    def __init__(self, samples: Callable[[str, str], np.ndarray]) -> None:
        self.samples = samples

    def change(self, metric: str, variant: str, against: str) -> Estimate:
        """Return the metric of a variant minus that of another."""
        return _compared(np.subtract, self.samples(metric, variant), self.samples(metric, against))

    def ratio(self, metric: str, variant: str, against: str) -> Estimate:
        """Return the metric of a variant over that of another."""
        return _compared(np.divide, self.samples(metric, variant), self.samples(metric, against))

    def change_of_judge(self, variant: str, against: str) -> Estimate:
        """Return the gain in mSUN by the judge minus half of that by the rewarded potential."""
        ours, theirs = (
            self.samples("judge_msun", v) - 0.5 * self.samples("msun", v)
            for v in (variant, against)
        )
        return _compared(np.subtract, ours, theirs)

    def change_of_gain(
        self, metric: str, ours: tuple[str, str], theirs: tuple[str, str]
    ) -> Estimate:
        """Return a gain, of one variant over another, minus that of two others."""
        draw = np.random.default_rng(0)
        total = np.zeros(1)
        for sign, variant in zip((1, -1, -1, 1), (*ours, *theirs), strict=True):
            value, *others = self.samples(metric, variant)
            total = total + sign * np.array([value, *draw.permutation(others)])
        return Estimate.of(total)


def _compared(compare: Callable[..., np.ndarray], ours: np.ndarray, theirs: np.ndarray) -> Estimate:
    with np.errstate(divide="ignore", invalid="ignore"):
        return Estimate.of(compare(ours, np.concatenate([theirs[:1], theirs[:0:-1]])))


def denovo_claims(
    samples: Callable[[str, str], np.ndarray], measured: set[str], judged: bool
) -> list[Claim]:
    """Compare what reinforcement made with the start.

    Targets were fixed before the runs that they judge. That of compounds was added, with a reward
    that asks for them, after Chemeleon2's own had raised mSUN by pure elements (docs/results.md).
    The control of each number is the same comparison of the start with itself. Intervals are of
    formulas, drawn again, and of training seeds (Student's t).

    Args:
        samples: (metric, variant) -> its value and its resamples.
        measured: variants.
        judged: whether there are the judge's metrics.
    """
    of = Comparisons(samples)
    check = Claim.check
    claims = [
        check(
            "mSUN, reinforced minus start",
            of.change("msun", REINFORCED, START),
            ">= 0.2",
            "claim",
            0.0,
        ),
        check(
            "mSUN of compounds of two or more elements, reinforced minus start",
            of.change("msun_compounds", REINFORCED, START),
            ">= 0.2",
            "claim",
            0.0,
        ),
        check(
            "mSUN, reinforced over start", of.ratio("msun", REINFORCED, START), ">= 2", "aim", 1.0
        ),
        check(
            "composition diversity, reinforced over start",
            of.ratio("composition_diversity", REINFORCED, START),
            ">= 0.8",
            "guard",
            1.0,
        ),
    ]
    if judged:
        kept = of.change_of_judge(REINFORCED, START)
        claims.append(
            check("gain in mSUN by the judge minus half of the gain", kept, "> 0", "claim", 0.0)
        )
    if RULE in measured:
        gain = of.change("msun", REINFORCED, RULE)
        control = float(samples("msun", START)[0] - samples("msun", RULE)[0])
        claims.append(check("mSUN, reinforced minus start, colder", gain, "> 0", "claim", control))
    if GAP in measured:
        claims.append(
            check(
                "share within 0.5 eV of 3 eV, reinforced for it over start",
                of.ratio("on_target", GAP, START),
                ">= 4",
                "claim",
                1.0,
            )
        )
    if "without diversity" in measured:
        name = "composition diversity, without its reward minus with it"
        fall = of.change("composition_diversity", "without diversity", REINFORCED)
        claims.append(check(name, fall, "< 0", "claim", 0.0))
    return claims
