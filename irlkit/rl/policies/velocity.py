"""The policy that trains a velocity, without a score."""

from __future__ import annotations

import torch
from torch import Tensor

from irlkit.rl.distributions import Gaussian
from irlkit.rl.policies.base import FieldStep, StepInputs
from irlkit.rl.policies.flow import evaluate
from irlkit.rl.policies.network import NetworkPolicy


class VelocityPolicy(NetworkPolicy):
    """Trains the velocity of the reinforced fields, without a score (Eq. 13).

    Its arguments are those of ``NetworkPolicy``.
    """

    def steps(self, inputs: StepInputs) -> dict[str, FieldStep]:
        return self._of_velocities(evaluate(self.network, inputs, self.heads)["velocity"], inputs)

    def _of_velocities(
        self, velocity: dict[str, Tensor], inputs: StepInputs
    ) -> dict[str, FieldStep]:
        """The steps of the fields with noise, from trained velocities."""
        steps = {}
        for field in self.noise:
            change = velocity[field] - inputs.frozen["velocity"][field]
            ndim = change.ndim
            std, ref_std = self._stds(field, inputs, ndim)
            mean = self._annealed(change, field, inputs) * inputs.dt(ndim)
            steps[field] = FieldStep(
                Gaussian(mean, std, self._event_dims[field]),
                Gaussian(torch.zeros_like(mean), ref_std, self._event_dims[field]),
                scope=self.process.scopes[field],
                **self._drift_squares(velocity[field], inputs.frozen["velocity"][field]),
            )
        return steps

    def increment(self, field: str, action: Tensor, inputs: StepInputs) -> Tensor:
        return self._frozen_increment(field, inputs) + action
