"""The policy that trains a velocity for few steps: it begins as a rule, and is guided."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from irlkit.crystals import CrystalBatch
from irlkit.data import CrystalDataset
from irlkit.evaluate.alignment import align
from irlkit.flows.dynamics import advance
from irlkit.flows.schedules import (
    FIELD_NAMES,
    Annealing,
    ConstantNoise,
    EndpointAnnealing,
    NoiseSchedule,
    annealing_on_grid,
    time_grid,
)
from irlkit.networks.flow_model import FlowModel
from irlkit.rl.distributions import Draws, Gaussian
from irlkit.rl.policies.base import FieldStep, StepInputs
from irlkit.rl.policies.velocity import VelocityPolicy
from irlkit.utils.checks import check_count, check_finite, checked


class FewStepPolicy(VelocityPolicy):
    """Trains the velocity (Eq. 13) to need few steps; untrained, it generates what its rule does.

    x(t + dt) = x + [1 + s_rule(t, dt)] b_theta dt + sigma(t) sqrt(dt) xi. Of noise alone, a few
    thousand rewards teach a network nothing, so exploration is guided: in a rollout, an action is
    moved by a share w of the way from the policy's mean to the action that would lead straight to
    an end point. The shares of structures side by side are those of ``shares`` in turn, so a
    group compares guided structures with others from the same base sample, and rewards decide
    whether to follow. The end point of a base sample is where ``guide_steps`` steps of the frozen
    model and the rule end; or, with ``references``, the closest of these to that.

    Probabilities are those of the policy, not of the guided draws: the update is a regression
    onto guided actions weighted by advantages, which the clipped ratio bounds, rather than an
    unbiased policy gradient. With ``shares=(0.0,)`` it is the policy gradient of Eq. (10).

    Args:
        model: frozen pretrained model; the trained network starts as a copy.
        noise: reinforced field -> sigma(t); None means 0.02 for the positions alone.
        ref_noise: field -> sigma_ref(t); None means ``noise``.
        annealing: the rule; None means ``EndpointAnnealing(6.0, 1.1)``.
        references: known structures, of which some may have a composition in question; those of
            the training split.
        guide_steps: steps to the end point.
        shares: w of structures side by side, each from 0 to 1.
        noise_share: the noise of guided draws, as a share of sigma(t), which then says alone how
            far a policy may go in one update.
        max_distance: a reference farther than this from the end point, in units of (V/N)^(1/3),
            does not replace it.

    Raises:
        ValueError: see ``FlowPolicy``; or a share is not from 0 to 1, or there is none.
    """

    @checked
    def __init__(
        self,
        model: FlowModel,
        noise: Mapping[str, NoiseSchedule] | None = None,
        ref_noise: Mapping[str, NoiseSchedule] | None = None,
        annealing: Annealing | None = None,
        references: CrystalDataset | None = None,
        guide_steps: int = 20,
        shares: tuple[float, ...] = (0.0, 1 / 3, 2 / 3, 1.0),
        noise_share: float = 1.0,
        max_distance: float = 0.25,
    ) -> None:
        noise = {"pos": ConstantNoise(0.02)} if noise is None else noise
        rule = EndpointAnnealing(6.0, 1.1) if annealing is None else annealing
        super().__init__(model, noise, ref_noise, rule)
        check_count("guide_steps", guide_steps)
        if not shares or not all(0 <= share <= 1 for share in shares):
            raise ValueError(f"shares must be numbers from 0 to 1, at least one, got {shares}")
        check_finite("noise_share", noise_share, above=0.0)
        self.guide_steps = guide_steps
        self.shares = tuple(shares)
        self.noise_share = noise_share
        self.max_distance = max_distance
        self._references = (references,)
        self._left: dict[str, Tensor] = {}

    def observe(self, inputs: StepInputs) -> StepInputs:
        inputs = super().observe(inputs)
        if not any(self.shares):
            return inputs
        if int(inputs.index) == 0:
            self._left = self._to_end_points(inputs)
        left = (1.0 - inputs.times[inputs.index]).squeeze()
        guide = {}
        for field in self.fields:
            velocity = inputs.frozen["velocity"][field]
            change = self._left[field][None] / left - velocity
            guide[field] = self._annealed(change, field, inputs) * inputs.dt(change.ndim)
        return replace(inputs, frozen={**inputs.frozen, "guide": guide})

    def moves(
        self, actions: Mapping[str, Tensor], inputs: StepInputs, generator: Any
    ) -> dict[str, Tensor]:
        moves = super().moves(actions, inputs, generator)
        self._left = {name: left - moves[name] for name, left in self._left.items()}
        return moves

    def steps(self, inputs: StepInputs) -> dict[str, FieldStep]:
        steps = super().steps(inputs)
        if "guide" not in inputs.frozen:
            return steps
        shares = torch.tensor(self.shares).to(inputs.times)
        of_structure = shares[torch.arange(len(inputs.request)) % len(shares)]
        for field, step in steps.items():
            atoms = step.scope == "atom"
            of_event = of_structure[inputs.request.batch] if atoms else of_structure
            assert isinstance(step.policy, Gaussian)
            mean = step.policy.mean
            toward = inputs.frozen["guide"][field] - mean.detach()
            toward = toward * of_event.reshape(1, -1, *[1] * (mean.ndim - 2))
            guided = _Guided(
                mean, step.policy.std, step.policy.event_dims, toward, self.noise_share
            )
            steps[field] = replace(step, policy=guided)
        return steps

    @torch.no_grad()
    def _to_end_points(self, inputs: StepInputs) -> dict[str, Tensor]:
        """What separates the states, at the first step, from their end points; unwrapped."""
        state = {name: x[0] for name, x in inputs.states.items()}
        times = time_grid(self.guide_steps, inputs.times.dtype, inputs.times.device)
        s, dts = annealing_on_grid(self.schedule(), times), times.diff()
        total = {name: torch.zeros_like(x) for name, x in state.items()}
        for i, dt in enumerate(dts):
            output = self.model.velocity(times[i], state["pos"], state["cell"], inputs.conditioning)
            moves = {name: (1.0 + s[name][i]) * dt * output.velocity[name] for name in FIELD_NAMES}
            state = advance(state, moves)
            total = {name: total[name] + moves[name] for name in FIELD_NAMES}
        references = self._references[0]
        if references is not None:
            assert isinstance(inputs.request, CrystalBatch)
            ends = inputs.request.replace(pos=state["pos"], cell=state["cell"])
            for name, more in align(ends, references, self.max_distance).items():
                total[name] = total[name] + more.to(total[name])
        return total

    def identity(self) -> dict[str, str]:
        references = self._references[0]
        of = "" if references is None else f" {references.name} {references.split}"
        guide = f"{self.guide_steps} {self.shares} {self.max_distance}{of}"
        if self.noise_share != 1.0:
            guide += f" {self.noise_share}"
        return {**super().identity(), "guide": guide}


@dataclass(frozen=True)
class _Guided(Gaussian):
    """A Gaussian whose samples are moved; its probabilities are as they were."""

    toward: Tensor
    noise_share: float

    def sample(self, draws: Draws) -> Tensor:
        noise = super().sample(draws) - self.mean
        return self.mean + self.noise_share * noise + self.toward
