"""Generation with the settings of an OMatG model's configuration."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from irlkit.flows._plain import from_plain
from irlkit.flows.dynamics import Dynamics
from irlkit.flows.interpolants import EPSILONS
from irlkit.flows.schedules import LinearAnnealing, NoiseSchedule
from irlkit.networks.flow_model import FlowModel
from irlkit.utils.checks import checked


@checked
def dynamics_of(model: FlowModel) -> Dynamics:
    """Return the dynamics that a model's configuration names, with its velocity annealing.

    Fields with an ODE follow Eq. 4, those with an SDE Eq. 7 with sigma^2 = 2 epsilon; the velocity
    is annealed by the configuration's factors in both. To generate as the configuration says:

        dynamics_of(model).generate(batch, model.info["omatg"]["n_steps"], generator=generator)

    Args:
        model: of `load_omatg`.

    Raises:
        ValueError: the model has no settings of OMatG.
    """
    if "omatg" not in model.info:
        raise ValueError(
            "model must be one that load_omatg made (or a copy of it, saved and loaded), its info "
            f"has only {sorted(model.info)}"
        )
    settings = model.info["omatg"]
    epsilons = {name: entry for name, entry in settings["epsilon"].items() if entry is not None}
    return Dynamics(
        model,
        LinearAnnealing(**settings["annealing"]),
        {name: _noise(from_plain(entry, EPSILONS)) for name, entry in epsilons.items()},
        "sde" if epsilons else "ode",
    )


def _noise(epsilon: Any) -> NoiseSchedule:
    def sigma(t: Tensor) -> Tensor:
        return torch.sqrt(2 * epsilon(t))

    return sigma
