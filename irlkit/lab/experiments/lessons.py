"""What notebook 01 shows of crystals, and what it checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from irlkit.crystals import CrystalBatch
from irlkit.evaluate.evidence import Bootstrap, Estimate
from irlkit.lab.experiments.claims import Claim
from irlkit.lab.polymorphs import known_structures
from irlkit.lab.teaching import PlaneFlow, _squares, distance_to_modes
from irlkit.networks.flow_model import FlowModel


@dataclass(frozen=True)
class Size:
    """How much notebook 01 does.

    Attributes:
        n_samples: points in the plane.
        iterations: of training there.
    """

    n_samples: int
    iterations: int

    def __post_init__(self) -> None:
        if self.n_samples < 10 or self.iterations < 1:
            raise ValueError(f"at least 10 samples and 1 iteration are needed, got {vars(self)}")


SIZES = {"quick": Size(200, 150), "laptop": Size(400, 2000), "paper": Size(2000, 10000)}


def find_crystal(formula: str, dataset: str = "prototypes") -> CrystalBatch:
    """Find the first structure of a composition in a data set.

    Raises:
        ValueError: there is none, or the formula cannot be read.
    """
    known = known_structures(CrystalBatch.from_formulas([formula]), dataset=dataset).batch
    if not len(known):
        raise ValueError(f"the data set {dataset!r} has no structure of {formula!r}; take another")
    return known[0]


def interpolate(
    model: FlowModel,
    x_0: CrystalBatch,
    x_1: CrystalBatch,
    times: Tensor,
    generator: torch.Generator,
) -> list[CrystalBatch]:
    """Return x_t of the model's interpolants between two states of one composition (Eq. 1).

    Args:
        model: whose interpolants are taken.
        x_0: base sample, on the CPU.
        x_1: the crystal.
        times: shape (n,); a batch is returned for each, with the same latent noise.
        generator: draws it.
    """
    fields = {name: (getattr(x_0, name), getattr(x_1, name)) for name in ("pos", "cell")}
    z = {
        name: torch.randn(start.shape, generator=generator, dtype=start.dtype)
        for name, (start, _) in fields.items()
    }
    states = []
    for t in times:
        x_t = {
            name: model.interpolants[name].sample(t.to(start), start, end.to(start), z[name]).x_t
            for name, (start, end) in fields.items()
        }
        states.append(x_0.replace(**x_t))
    return states


def spreads(flow: PlaneFlow, sets: Mapping[str, Tensor]) -> pd.DataFrame:
    """Measure how far points lie from the nearest spot, and how evenly spots share them.

    Args:
        flow: of the data.
        sets: name -> points, shape (n, 2).

    Returns:
        Columns "distance" (root mean square, in spreads of the data) and "smallest share" (of the
        spot with the fewest points).
    """
    rows = {}
    for name, points in sets.items():
        mode = torch.cdist(points.double(), flow.means).argmin(1)
        share = torch.bincount(mode, minlength=flow.n_modes) / len(points)
        distance = distance_to_modes(flow, points)
        rows[name] = {"distance": distance, "smallest share": float(share.min())}
    return pd.DataFrame.from_dict(rows, orient="index")


def interpolant_claims(
    loss_exact: Tensor,
    loss_learned: Tensor,
    loss_untrained: Tensor,
    flow: PlaneFlow,
    sets: Mapping[str, Tensor],
) -> list[Claim]:
    """Check what theory says, for the numbers of a run; what needs no learning is a guard.

    Intervals are those of pairs and points, drawn again; one network was trained.

    Args:
        loss_exact: of the exact velocity, as ``velocity_loss`` returns it, shape (n,).
        loss_learned: of the learned one, on the same pairs.
        loss_untrained: of a network that learned nothing, on the same pairs: the control.
        flow: of the data.
        sets: name -> points, as many of each, shape (n, 2): "data", "ODE", "SDE" and "noise alone",
            by the exact velocity.
    """
    check = Claim.check
    of_pairs = Bootstrap(np.arange(len(loss_exact)))
    exact, learned, untrained = (
        of_pairs.mean(loss.double().numpy()) for loss in (loss_exact, loss_learned, loss_untrained)
    )
    of_points = Bootstrap(np.arange(len(sets["data"])))
    distance = {
        name: np.sqrt(of_points.mean(_squares(flow, points).numpy()))
        for name, points in sets.items()
    }
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio, before = Estimate.of(learned / exact), Estimate.of(untrained / exact)
        ode = Estimate.of(distance["ODE"] / distance["data"])
        noise = Estimate.of(distance["noise alone"] / distance["SDE"])
    return [
        check("loss of the learned over the exact velocity", ratio, "<= 1.1", "aim", before),
        check("noise alone over SDE: distance from the spots", noise, "> 1", "guard"),
        check("ODE: distance from the spots over that of the data", ode, "<= 1.3", "guard"),
        check("the learned loss is not below the exact one: ratio", ratio, ">= 0.99", "guard"),
    ]
