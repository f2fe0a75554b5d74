"""What a rollout leaves behind: states, actions, and the probabilities they were drawn with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from irlkit.crystals import CrystalBatch
from irlkit.rl.policies.base import Outputs, Policy, StepInputs
from irlkit.rl.process import Requests, Scope


@dataclass(frozen=True)
class Trajectory:
    """An episode of a policy: everything an update needs.

    Attributes:
        times: grid, shape (n_steps + 1,).
        request: what was generated.
        actions: reinforced field -> (n_steps, events, ...), never wrapped.
        log_probs: reinforced field -> (n_steps, events), under the policy that sampled.
        final: the generated structures.
        action_scopes: reinforced field -> what its events belong to.
        state_scopes: field -> what its entries belong to.
        states: field -> (n_steps + 1, events, ...), those before each step and the last; empty
            where they were not kept.
        frozen: what frozen networks said before each step, (n_steps, ...); empty where the
            policy's update does not need it.
    """

    times: Tensor
    request: Requests
    actions: dict[str, Tensor]
    log_probs: dict[str, Tensor]
    final: CrystalBatch
    action_scopes: Mapping[str, Scope]
    state_scopes: Mapping[str, Scope]
    states: dict[str, Tensor] = field(default_factory=dict)
    frozen: Outputs = field(default_factory=dict)
    _conditioning: dict[int, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def n_steps(self) -> int:
        """Number of steps."""
        return len(self.times) - 1

    def inputs(self, policy: Policy, index: Tensor, mixed_precision: bool = False) -> StepInputs:
        """Return what ``policy.steps`` needs to score the steps of ``index`` (k,) again.

        Raises:
            ValueError: the policy needs states, and they were not kept.
        """
        if not policy.needs_states:
            return StepInputs(self.times, index, self.request)
        if not self.states:
            raise ValueError(
                f"{type(policy).__name__} needs the states of the trajectory, which were not kept; "
                "make the rollout with record_states=True"
            )
        k = len(index)
        if k not in self._conditioning:
            structures = torch.arange(len(self.request), device=self.times.device)
            self._conditioning[k] = policy.prepare(self.request[structures.repeat(k)])
        return StepInputs(
            self.times,
            index,
            self.request,
            {name: x[index] for name, x in self.states.items()},
            {head: {n: x[index] for n, x in of.items()} for head, of in self.frozen.items()},
            self._conditioning[k],
            mixed_precision=mixed_precision,
        )

    def is_finite(self) -> Tensor:
        """Return whether all numbers are finite that an update needs, shape (B,)."""
        good = torch.ones(len(self.request), dtype=torch.bool, device=self.times.device)
        of_actions = [(self.action_scopes, of) for of in (self.actions, self.log_probs)]
        of_states = [(self.state_scopes, of) for of in (self.states, *self.frozen.values())]
        for scopes, tensors in (*of_actions, *of_states):
            for name, x in tensors.items():
                finite = x.isfinite().transpose(0, 1).flatten(1).all(1)
                if scopes[name] == "atom":
                    good[self.request.batch[~finite]] = False
                else:
                    good &= finite
        return good

    def select(self, structures: Tensor) -> Trajectory:
        """Return the episodes of some structures, given by index (m,)."""
        index = {"atom": self.request.atom_indices(structures), "structure": structures}

        def pick(scopes: Mapping[str, Scope], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: x[:, index[scopes[name]]] for name, x in tensors.items()}

        return Trajectory(
            self.times,
            self.request[structures],
            pick(self.action_scopes, self.actions),
            pick(self.action_scopes, self.log_probs),
            self.final[structures],
            self.action_scopes,
            self.state_scopes,
            pick(self.state_scopes, self.states),
            {head: pick(self.state_scopes, of) for head, of in self.frozen.items()},
        )

    @staticmethod
    def concatenate(trajectories: Sequence[Trajectory], request: Requests) -> Trajectory:
        """Join the episodes of the parts of a request, in order."""
        first = trajectories[0]

        def join(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
            return {name: torch.cat([part[name] for part in parts], dim=1) for name in parts[0]}

        return Trajectory(
            first.times,
            request,
            join([trajectory.actions for trajectory in trajectories]),
            join([trajectory.log_probs for trajectory in trajectories]),
            CrystalBatch.concatenate([trajectory.final for trajectory in trajectories]),
            first.action_scopes,
            first.state_scopes,
            join([trajectory.states for trajectory in trajectories]),
            {head: join([part.frozen[head] for part in trajectories]) for head in first.frozen},
        )
