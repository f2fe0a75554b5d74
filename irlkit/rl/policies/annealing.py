"""The policy that learns an annealing of a frozen velocity."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from irlkit.flows.dynamics import Dynamics
from irlkit.flows.schedules import (
    FIELD_NAMES,
    Annealing,
    ConstantNoise,
    LearnedAnnealing,
    NoiseSchedule,
    annealing_on_grid,
    save_annealing,
)
from irlkit.networks.flow_model import FlowModel
from irlkit.rl.distributions import Gaussian
from irlkit.rl.policies.base import FieldStep, StepInputs
from irlkit.rl.policies.flow import FlowPolicy
from irlkit.utils.checks import check_kind, checked


class AnnealingPolicy(FlowPolicy):
    """Learns the annealing s(t) of a frozen velocity (Eqs. 14, 15).

    x(t + dt) = x + [1 + s(t)] b_ref dt + sigma(t) b_ref sqrt(dt) xi, with one scalar xi per
    structure and field. The action is s dt + sigma sqrt(dt) xi, so its probability depends on the
    time alone: an update looks at no state and never evaluates the network.

    Args:
        model: frozen pretrained model.
        annealing: schedule to train, moved to the model's device and dtype; None makes a zero
            ``LearnedAnnealing``.
        noise: field -> sigma(t), relative to the velocity; None means 0.3 for both fields.
        ref_noise: field -> sigma_ref(t); None means ``noise``.

    Raises:
        ValueError: see ``FlowPolicy``.
    """

    needs_states: ClassVar[bool] = False
    learns: ClassVar[type] = LearnedAnnealing

    @checked
    def __init__(
        self,
        model: FlowModel,
        annealing: Any = None,
        noise: Mapping[str, NoiseSchedule] | None = None,
        ref_noise: Mapping[str, NoiseSchedule] | None = None,
    ) -> None:
        if noise is None:
            noise = {field: ConstantNoise(0.3) for field in FIELD_NAMES}
        super().__init__(model, noise, ref_noise)
        annealing = self.learns() if annealing is None else annealing
        check_kind("annealing", annealing, self.learns)
        self.annealing = annealing.to(next(model.parameters()))

    def schedule(self) -> Annealing:
        return self.annealing

    def steps(self, inputs: StepInputs) -> dict[str, FieldStep]:
        s = annealing_on_grid(self.annealing, inputs.times)
        shape = (len(inputs.index), len(inputs.request))
        steps = {}
        for field in self.fields:
            std, ref_std = self._stds(field, inputs, 2)
            mean = (inputs.on_grid(s[field], 2) * inputs.dt(2)).expand(shape)
            steps[field] = FieldStep(
                Gaussian(mean, std, 0),
                Gaussian(torch.zeros_like(mean), ref_std, 0),
                scope="structure",
                # Of a velocity that is multiplied by 1 + s, the change is s times it.
                drift_change=inputs.on_grid(s[field].detach().square(), 2),
                drift_reference=torch.ones_like(ref_std),
            )
        return steps

    def increment(self, field: str, action: Tensor, inputs: StepInputs) -> Tensor:
        velocity = inputs.frozen["velocity"][field]
        factor = inputs.dt(2) + action
        if field == "pos":
            factor = factor[:, inputs.request.batch]
        return factor.reshape(factor.shape + (1,) * (velocity.ndim - 2)) * velocity

    def deploy(self) -> Dynamics:
        return Dynamics(self.model, self.annealing)

    def save(self, path: str | Path, metadata: Mapping[str, object] | None = None) -> None:
        save_annealing(self.annealing, path, metadata)
