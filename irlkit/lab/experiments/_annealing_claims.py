"""What notebook 04 claims, computed and not written."""

from __future__ import annotations

from irlkit.lab.experiments.claims import Claim, _Evidence, _Group
from irlkit.lab.experiments.presets import AnnealingPreset


def annealing_claims(
    evidence: _Evidence, preset: AnnealingPreset, smallest_factor: float, start_factor: float = 1.0
) -> list[Claim]:
    """The paper's claims about learned annealing (section 4.3, Appendix H), and the rule.

    The control is the annealing that the training begins with, none or the rule.
    `smallest_factor` is the smallest 1 + s(t) of the learned schedules, `start_factor` that of the
    control.
    """
    few, many, fewest = preset.n_steps, preset.reference_steps, preset.evaluation_steps[0]

    def learned(k: int) -> _Group:
        labels = {"schedule": preset.start, "n_steps": k}
        if preset.start == "rule":
            start = _Group(f"the rule for {few} steps, {k} steps", {**labels, "tuned_at": few})
        else:
            start = _Group(f"no annealing, {k} steps", labels)
        labels = {"schedule": "learned", "n_steps": k}
        return _Group(f"the learned annealing, {k} steps", labels, start)

    def tuned(schedule: str, at: int) -> _Group:
        labels = {"schedule": schedule, "tuned_at": at, "n_steps": at}
        what = "rule" if schedule == "rule" else f"{schedule} one"
        return _Group(f"the best {what} for {at} steps", labels)

    best, ours, check = tuned("handcrafted", many), learned(few), evidence.check
    others = [k for k in preset.evaluation_steps if k != few]
    return [
        check("crmse", ours, best, "<= 1.05", relative=True),
        check("crmse", ours, tuned("handcrafted", few), "< 0"),
        check("metre", ours, tuned("handcrafted", few), "> 0"),
        check("crmse", ours, tuned("rule", few), "< 0"),
        *(
            check(
                "crmse", learned(k), best, "<= 1.05", "claim" if k > few else "aim", relative=True
            )
            for k in others
        ),
        *([check("crmse", learned(fewest), tuned("rule", fewest), "< 0", "aim")] if others else []),
        check("metre", ours, best, ">= 0.97", "guard", relative=True),
        *(check("metre", learned(k), ours, ">= 0.95", "guard", relative=True) for k in others),
        Claim.check(
            "smallest 1 + s(t) of the learned annealings",
            smallest_factor,
            "> 0",
            "guard",
            start_factor,
        ),
    ]
