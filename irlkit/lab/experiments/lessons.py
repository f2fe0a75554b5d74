"""What notebook 01 shows of crystals, and what it checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from irlkit.crystals import CrystalBatch
from irlkit.lab.experiments.claims import Claim
from irlkit.lab.experiments.presets import choose
from irlkit.lab.experiments.quickstart import known_structures
from irlkit.lab.teaching import PlaneFlow, distance_to_modes
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


SIZES = {"quick": Size(200, 150), "laptop": Size(400, 2000), "paper": Size(2000, 10000)}


def resolve(preset: str, **given: int | None) -> Size:
    """The size of a preset, with what was given instead where it is not None.

    Raises:
        ValueError: no such preset, or a number that is too small.
    """
    size = choose(SIZES, preset, given)
    values = vars(size)
    if values["n_samples"] < 10 or values["iterations"] < 1:
        raise ValueError(f"at least 10 samples and 1 iteration are needed, got {values}")
    return size


def find_crystal(formula: str, dataset: str = "prototypes") -> CrystalBatch:
    """The first structure of a composition in a data set.

    Raises:
        ValueError: there is none, or the formula cannot be read.
    """
    composition = CrystalBatch.from_formulas([formula])
    known = known_structures(composition, dataset)
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
    """x_t of the model's interpolants between two states of one composition (Eq. 1).

    Args:
        model: whose interpolants are taken.
        x_0: base sample, on the CPU.
        x_1: the crystal.
        times: shape (n,).
        generator: draws the latent noise, the same for all times.

    Returns:
        A batch per time.
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
    """How far points lie from the nearest spot, and how evenly they are shared among the spots.

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
        rows[name] = {
            "distance": distance_to_modes(flow, points),
            "smallest share": float(share.min()),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def interpolant_claims(loss_exact: float, loss_learned: float, table: pd.DataFrame) -> list[Claim]:
    """What theory says, for the numbers of a run.

    Args:
        loss_exact: of the exact velocity.
        loss_learned: of the learned one, on the same pairs.
        table: of ``spreads``, with rows data, ODE, SDE and noise alone.
    """
    distance = table["distance"]
    return [
        Claim.check(
            "loss of the learned over that of the exact velocity",
            loss_learned / loss_exact if loss_exact else np.nan,
            ">= 0.99",
        ),
        Claim.check(
            "the same, close to one: the network has learned the mean",
            loss_learned / loss_exact if loss_exact else np.nan,
            "<= 1.1",
            required=False,
        ),
        Claim.check(
            "ODE: distance from the spots over that of the data",
            distance["ODE"] / distance["data"],
            "<= 1.3",
        ),
        Claim.check(
            "noise alone over SDE: distance from the spots",
            distance["noise alone"] / distance["SDE"],
            "> 1",
            required=False,
        ),
    ]
