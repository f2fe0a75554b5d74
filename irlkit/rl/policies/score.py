"""The policy that trains velocity and denoiser together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from torch import Tensor

from irlkit.flows.dynamics import score_factor
from irlkit.flows.schedules import Annealing, NoiseSchedule
from irlkit.networks.flow_model import FlowModel
from irlkit.rl.distributions import Gaussian
from irlkit.rl.policies.base import FieldStep, Outputs, StepInputs
from irlkit.rl.policies.flow import evaluate
from irlkit.rl.policies.network import NetworkPolicy


class ScorePolicy(NetworkPolicy):
    """Trains velocity and denoiser together (Eqs. 7, 12).

    What is trained is an SDE, whose drift is right only together with its noise: without the noise
    the denoiser's term contracts the distribution, and without that term a part of what was
    learned is missing. So the SDE is also what is deployed, with the noise of the exploration (the
    paper integrates the score-based model in SDE mode as well, section 4.2 and Fig. 2).

    A reinforced field without a denoiser, beside others with one, is reinforced by its velocity
    alone (13), and is deployed without noise.

    Its arguments are those of ``NetworkPolicy``.

    Raises:
        ValueError: see ``FlowPolicy``; or the model has no denoiser for any reinforced field.
    """

    heads: ClassVar[tuple[str, ...]] = ("velocity", "denoiser")
    test_kind: ClassVar[Literal["ode", "sde"]] = "sde"

    def __init__(
        self,
        model: FlowModel,
        noise: Mapping[str, NoiseSchedule] | None = None,
        ref_noise: Mapping[str, NoiseSchedule] | None = None,
        annealing: Annealing | None = None,
    ) -> None:
        super().__init__(model, noise, ref_noise, annealing)
        self.scored = tuple(field for field in self.fields if field in model.has_denoiser)
        if not self.scored:
            raise ValueError(
                f"noise reinforces {list(self.fields)}, for which the model has no denoiser (it "
                f"has them for {model.has_denoiser}); use VelocityPolicy or another model"
            )

    def _kept_noise(self) -> dict[str, NoiseSchedule]:
        return {name: entry for name, entry in self._exploration().items() if name in self.scored}

    def steps(self, inputs: StepInputs) -> dict[str, FieldStep]:
        trained = evaluate(self.network, inputs, self.heads)
        steps = {}
        for field in self.fields:
            ndim = trained["velocity"][field].ndim
            std, ref_std = self._stds(field, inputs, ndim)
            sigmas = self._sigmas(field, inputs)
            means = [
                self._drift(field, output, sigma, inputs) * inputs.dt(ndim)
                for output, sigma in zip((trained, inputs.frozen), sigmas, strict=True)
            ]
            distillation = None
            if field in self.scored:
                distance = trained["denoiser"][field] - inputs.frozen["denoiser"][field]
                distillation = distance.square().flatten(2).sum(-1)
            steps[field] = FieldStep(
                Gaussian(means[0], std, self._event_dims[field]),
                Gaussian(means[1], ref_std, self._event_dims[field]),
                scope=self.process.scopes[field],
                distillation=distillation,
                **self._drift_squares(trained["velocity"][field], inputs.frozen["velocity"][field]),
            )
        return steps

    def _drift(self, field: str, output: Outputs, sigma: Tensor, inputs: StepInputs) -> Tensor:
        velocity = self._annealed(output["velocity"][field], field, inputs)
        if field not in self.scored:
            return velocity
        factor = score_factor(sigma, self.model.gamma(field, inputs.times[:-1]))
        return velocity - inputs.on_grid(factor, velocity.ndim) * output["denoiser"][field]

    def increment(self, field: str, action: Tensor, inputs: StepInputs) -> Tensor:
        return action
