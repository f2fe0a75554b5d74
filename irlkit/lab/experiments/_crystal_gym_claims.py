"""What notebook 08 claims, computed and not written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from irlkit.evaluate.evidence import Estimate
from irlkit.lab.experiments._crystal_gym_sizes import BULK, DENSITY, TASKS
from irlkit.lab.experiments.claims import Claim

RANDOM = "random"
"""Fills sites at random: what learned nothing."""
MARKS = {DENSITY: ">= 0.95", BULK: ">= -0.15"}

Samples = Callable[[str, str, str], np.ndarray]


def crystal_gym_claims(
    samples: Samples,
    trained: Mapping[str, Sequence[str]],
    metastable: Callable[[str, str], np.ndarray | None],
    n_seeds: int,
) -> list[Claim]:
    """Compare what was learned with random fillings, and with what can be remembered of them.

    The marks of returns, distinct fillings and metastable ones were fixed before any run; that of
    fillings on target and the rule came when returns of GRPO were known, and before these two
    numbers were; that of tasks without a mark before any band gap was trained on, and after runs of
    the others. Fillings on target were a ratio to random search until that was seen to find none in
    short runs; as a difference it is the same mark. Intervals are of training seeds (Student's t;
    until all results were known, seeds drawn again, which is too narrow with few), those of
    metastable fillings of formulas. One seed decides nothing. The best algorithm is that of the
    highest mean, which by itself flatters it a little.

    Args:
        samples: (metric, task, algorithm) -> its value and its draws.
        trained: task -> algorithms that were trained on it, without the control.
        metastable: (task, algorithm) -> share of its best fillings, or None if not relaxed; its
            resamples are of formulas.
        n_seeds: of training.
    """

    def estimate(values: np.ndarray) -> Estimate:
        found = Estimate.of(values)
        return found if n_seeds > 1 else Estimate(found.value, -np.inf, np.inf)

    def compared(
        compare: Callable[..., np.ndarray], ours: np.ndarray, theirs: np.ndarray
    ) -> Estimate:
        # Seeds of the two are independent: in one order they would be drawn alike.
        with np.errstate(divide="ignore", invalid="ignore"):
            return estimate(compare(ours, np.concatenate([theirs[:1], theirs[:0:-1]])))

    check, claims = Claim.check, []
    for task, mark in MARKS.items():
        if task not in trained:
            continue
        last = {name: samples("last", task, name) for name in (*trained[task], RANDOM)}
        learned = {name: values for name, values in last.items() if name != RANDOM}
        best = max(learned, key=lambda name: learned[name][0])
        nothing = last[RANDOM]
        name = f"{task}: mean return of the last tenth, best algorithm"
        claims.append(check(name, estimate(last[best]), mark, "claim", nothing[0]))
        rule = samples("remembered", task, RANDOM)
        name = f"{task}: the same, GRPO minus the best random filling of each skeleton"
        control = compared(np.subtract, nothing, rule).value
        claims.append(check(name, compared(np.subtract, last["GRPO"], rule), "> 0", "aim", control))
        hits = samples("on_target", task, "GRPO"), samples("on_target", task, RANDOM)
        name = f"{task}: different fillings within 5 % of the target, GRPO minus random search"
        claims.append(check(name, compared(np.subtract, *hits), "> 0", "claim", 0.0))
        if others := [who for who in trained[task] if who != "GRPO"]:
            rival = max(others, key=lambda name: last[name][0])
            gain = compared(np.subtract, last["GRPO"], last[rival])
            control = float(nothing[0] - last[rival][0])
            name = f"{task}: last tenth, GRPO minus the best of the others"
            claims.append(check(name, gain, "> 0", "claim", control))
            ours, theirs, chance = (
                samples("distinct", task, who) for who in ("GRPO", rival, RANDOM)
            )
            name = f"{task}: different fillings, GRPO over the best of the others"
            control = float(chance[0] / theirs[0])
            claims.append(
                check(name, compared(np.divide, ours, theirs), ">= 0.5", "guard", control)
            )
        if np.isfinite(samples("unseen", task, "GRPO")[0]):
            ours, theirs = (samples("unseen", task, who) for who in ("GRPO", RANDOM))
            name = f"{task}: return on unseen skeletons, GRPO minus random"
            claims.append(check(name, compared(np.subtract, ours, theirs), "> 0", "claim", 0.0))
    for task in trained:
        if task in MARKS or TASKS[task].stable:
            continue
        ours, nothing = (samples("last", task, who) for who in ("GRPO", RANDOM))
        name = f"{task}: mean return of the last tenth, GRPO minus random"
        claims.append(check(name, compared(np.subtract, ours, nothing), "> 0", "claim", 0.0))
    return claims + _stability_claims(metastable, estimate, compared)


def _stability_claims(
    metastable: Callable[[str, str], np.ndarray | None],
    estimate: Callable[[np.ndarray], Estimate],
    compared: Callable[..., Estimate],
) -> list[Claim]:
    claims = []
    for task in (name for name, asked in TASKS.items() if asked.stable):
        found, by_chance = metastable(task, "GRPO"), metastable(task, RANDOM)
        if found is None or by_chance is None:
            continue
        name = f"{task}: metastable of the best fillings, GRPO"
        claims.append(Claim.check(name, estimate(found), ">= 0.2", "claim", by_chance[0]))
        name = f"{name} minus random search by the same reward"
        gain = compared(np.subtract, found, by_chance)
        claims.append(Claim.check(name, gain, "> 0", "claim", 0.0))
    return claims
