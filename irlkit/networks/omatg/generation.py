"""Generation with the settings of an OMatG model's configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from irlkit.flows.interpolants import EPSILONS, build_named
from irlkit.networks.cspnet import NetworkOutput
from irlkit.networks.flow_model import FlowModel
from irlkit.utils.checks import checked

if TYPE_CHECKING:
    from irlkit.crystals import CrystalBatch
    from irlkit.flows.schedules import LinearAnnealing


class _Drift:
    """The drift [1 + s(t)] b - (epsilon / gamma) z of a model's SDE, as a velocity field."""

    def __init__(
        self, model: FlowModel, annealing: LinearAnnealing, epsilons: Mapping[str, Any]
    ) -> None:
        self.model = model
        self.annealing = annealing
        self.epsilons = epsilons

    def prepare(self, batch: CrystalBatch) -> Any:
        return self.model.prepare(batch)

    def sample_base(self, batch: CrystalBatch, generator: torch.Generator) -> CrystalBatch:
        return self.model.sample_base(batch, generator)

    def velocity(self, t: Tensor, pos: Tensor, cell: Tensor, conditioning: Any) -> NetworkOutput:
        output = self.model.velocity(t, pos, cell, conditioning, ("velocity", "denoiser"))
        s = self.annealing(t, t)
        drift = {name: (1 + s[name]) * value for name, value in output.velocity.items()}
        for name, epsilon in self.epsilons.items():
            factor = epsilon(t) / self.model.gamma(name, t)
            drift[name] = drift[name] - factor * output.denoiser[name]
        return NetworkOutput(drift, {})


@checked
def annealing_of(model: FlowModel) -> LinearAnnealing:
    """The handcrafted velocity annealing that the configuration of an OMatG model names.

    Raises:
        ValueError: the model has no such settings.
    """
    from irlkit.flows.schedules import LinearAnnealing

    return LinearAnnealing(**_settings(model)["annealing"])


def _settings(model: FlowModel) -> dict[str, Any]:
    if "omatg" not in model.info:
        raise ValueError(
            "model: expected one that load_omatg made (or a copy of it, saved and loaded), "
            f"info has only {sorted(model.info)}"
        )
    return model.info["omatg"]


@checked
def generate(
    model: FlowModel,
    batch: CrystalBatch,
    generator: torch.Generator,
    n_steps: int | None = None,
    *,
    x_0: CrystalBatch | None = None,
    max_batch: int | None = None,
    progress: bool = False,
) -> CrystalBatch:
    """Generate one structure per composition as the model's configuration says.

    Fields with an ODE follow Eq. 4, those with an SDE Eq. 7 with sigma^2 = 2 epsilon; the velocity
    is annealed by the configuration's factors in both.

    Args:
        model: From `load_omatg`.
        batch: Compositions; positions and cells are not used.
        generator: Draws the base sample and the noise.
        n_steps: Number of Euler steps; None takes the configuration's.
        x_0: Start here instead of drawing from the base distribution.
        max_batch: Integrate at most so many structures at a time.
        progress: Show a bar.

    Returns:
        Structures, positions in [0, 1).

    Raises:
        ValueError: the model has no settings of OMatG; see also `Dynamics.generate`.
    """
    from irlkit.flows.dynamics import Dynamics

    settings = _settings(model)
    annealing = annealing_of(model)
    epsilons = {
        name: build_named(EPSILONS, entry)
        for name, entry in settings["epsilon"].items()
        if entry is not None
    }
    noise = {name: _Noise(epsilon) for name, epsilon in epsilons.items()}
    drift: Any = _Drift(model, annealing, epsilons) if epsilons else model
    return Dynamics(drift, None if epsilons else annealing, noise).generate(
        batch,
        settings["n_steps"] if n_steps is None else n_steps,
        generator=generator,
        x_0=x_0,
        max_batch=max_batch,
        progress=progress,
    )


@dataclass(frozen=True)
class _Noise:
    """sigma = sqrt(2 epsilon)."""

    epsilon: Any

    def __call__(self, t: Tensor) -> Tensor:
        return torch.sqrt(2 * self.epsilon(t))
