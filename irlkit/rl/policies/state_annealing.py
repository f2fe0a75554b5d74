"""The policy that learns an annealing which sees the state."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from irlkit.crystals import CrystalBatch
from irlkit.flows.schedules import StateAnnealing
from irlkit.flows.schedules.state import FlowSteps
from irlkit.rl.distributions import Gaussian
from irlkit.rl.policies.annealing import AnnealingPolicy
from irlkit.rl.policies.base import FieldStep, StepInputs


class StateAnnealingPolicy(AnnealingPolicy):
    """Learns the annealing s(t, dt, c, x) of a frozen velocity (Eqs. 14, 15).

    The action is that of ``AnnealingPolicy``, s dt + sigma sqrt(dt) xi with one scalar xi per
    structure and field; its mean depends on the state before the step and the frozen velocity
    there. Both are kept in the rollout, so an update never evaluates the network. The reference
    policy is the annealing's rule, which the untrained policy equals.

    Its arguments are those of ``AnnealingPolicy``, with a ``StateAnnealing``.
    """

    needs_states: ClassVar[bool] = True
    learns: ClassVar[type] = StateAnnealing

    def _seen(self, inputs: StepInputs) -> FlowSteps:
        """What the annealing is a function of."""
        assert isinstance(inputs.request, CrystalBatch)
        t, dt = (x[inputs.index] for x in (inputs.times, inputs.times.diff()))
        return FlowSteps(t, dt, inputs.request, inputs.states, inputs.frozen["velocity"])

    def steps(self, inputs: StepInputs) -> dict[str, FieldStep]:
        seen = self._seen(inputs)
        s, rule, dt = self.annealing(seen), self.annealing.rule(seen.t, seen.dt), seen.dt
        steps = {}
        for field in self.fields:
            std, ref_std = self._stds(field, inputs, 2)
            reference = rule[field][:, None].expand_as(s[field])
            steps[field] = FieldStep(
                Gaussian(s[field] * dt[:, None], std, 0),
                Gaussian(reference * dt[:, None], ref_std, 0),
                scope="structure",
                drift_change=(s[field].detach() - reference).square(),
                drift_reference=(1.0 + reference).square(),
            )
        return steps

    def _annealed(self, velocity: Tensor, field: str, inputs: StepInputs) -> Tensor:
        return self.annealing.factors(self._seen(inputs))[field] * velocity

    def identity(self) -> dict[str, str]:
        return {**super().identity(), "annealing": str(self.annealing.arguments)}
