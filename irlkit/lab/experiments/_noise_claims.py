"""What notebook 02 claims, computed and not written."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from irlkit.evaluate.evidence import Estimate
from irlkit.lab.experiments.claims import Claim, _Evidence, _Group
from irlkit.lab.experiments.presets import NoisePreset


def noise_claims(
    evidence: _Evidence,
    preset: NoisePreset,
    medium: Mapping[tuple[str, str], np.ndarray],
    loss: np.ndarray,
) -> list[Claim]:
    """The paper's claims about noise and annealing (section 4.2, Appendix C), for one model.

    Nothing is learned here: the control is the same without what is claimed to help, or to harm.

    Args:
        evidence: of evaluations of that model.
        preset: says which steps are few and many.
        medium: (integration, schedule) -> medium scale, in resamples; the largest that was tried,
            if it is larger than that.
        loss: of the perturbed ODE at the largest scale of the constant schedule, in resamples.
    """
    few, many = preset.n_steps, preset.reference_steps
    level = preset.levels["medium"]
    sde, ode, check = "SDE", "perturbed ODE", evidence.check

    def ratio(name: str, above: tuple[str, str], below: tuple[str, str]) -> Claim:
        ours, theirs = medium[above], medium[below]
        with np.errstate(invalid="ignore", divide="ignore"):
            value, control = Estimate.of(ours / theirs), Estimate.of(theirs / theirs)
        what = f"scale that costs {level:.0%} of the quality, {name}"
        return Claim.check(what, value, "> 1", "claim", control)

    def plain(k: int, way: str = "ODE", noise: str = "none") -> _Group:
        labels = {"integration": way, "schedule": "none", "n_steps": k, "noise": noise}
        return _Group(f"{way} without annealing, {k} steps", labels)

    def annealed(k: int, way: str = "ODE", control: bool = True) -> _Group:
        labels = {"integration": way, "schedule": "handcrafted", "n_steps": k}
        name = f"{way} annealed for {many} steps, {k} steps"
        return _Group(name, labels, plain(k) if control else None)

    stochastic = _Group(
        f"SDE annealed for {many} steps, {many} steps",
        annealed(many, sde).labels,
        annealed(many, control=False),
    )
    gained, same = (
        evidence.draw.mean(ours) - evidence.draw.mean(theirs)
        for ours, theirs in (
            evidence.values("match_rate", stochastic, annealed(many)),
            evidence.values("match_rate", annealed(many), annealed(many)),
        )
    )
    return [
        *(
            ratio(f"SDE relative to perturbed ODE, {kind} schedule", (sde, kind), (ode, kind))
            for kind in ("constant", "square root")
        ),
        *(
            ratio(
                f"square-root relative to constant schedule, {way}", (way, kind), (way, "constant")
            )
            for kind, way in (("square root", sde), ("square root", ode))
        ),
        Claim.check(
            "share of the quality that the largest scale of the constant schedule costs, perturbed "
            "ODE",
            Estimate.of(loss),
            f">= {level:g}",
            "claim",
            0.0,
        ),
        check("match_rate", annealed(few), annealed(many), "<= 0.9", relative=True),
        check("crmse", annealed(many), plain(many), "< 0"),
        check("match_rate", plain(few), plain(many), ">= 0.95", "guard", relative=True),
        Claim.check(
            f"match rate of {stochastic.name} minus that of the ODE, absolute value",
            Estimate.of(np.abs(gained)),
            "<= 0.03",
            "guard",
            Estimate.of(np.abs(same)),
        ),
    ]
