"""What a rollout leaves behind: states, actions, and the probabilities they were drawn with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from irlkit.crystals import CrystalBatch
from irlkit.rl.policies import Outputs, Policy, StepInputs

State = dict[str, Tensor]
"""Field -> tensor: "pos" (n, 3) wrapped, "cell" (B, 3, 3)."""


@dataclass(frozen=True)
class Trajectory:
    """An episode of a policy: everything an update needs.

    Attributes:
        times: grid, shape (n_steps + 1,).
        actions: reinforced field -> (n_steps, events, ...), never wrapped.
        log_probs: reinforced field -> (n_steps, events), under the policy that sampled.
        final: the generated structures.
        states: field -> (n_steps + 1, events, ...), or empty where they were not kept.
        frozen: what the frozen network said before each step, (n_steps, ...); empty where the
            policy's update does not need it.
    """

    times: Tensor
    actions: dict[str, Tensor]
    log_probs: dict[str, Tensor]
    final: CrystalBatch
    states: State = field(default_factory=dict)
    frozen: Outputs = field(default_factory=dict)
    _conditioning: dict[int, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def n_steps(self) -> int:
        """Number of steps."""
        return len(self.times) - 1

    def inputs(self, policy: Policy, index: Tensor, mixed_precision: bool = False) -> StepInputs:
        """What ``policy.steps`` needs to score the steps of ``index`` (k,) again.

        Args:
            policy: any policy.
            index: steps.
            mixed_precision: see ``StepInputs``.

        Raises:
            ValueError: the policy needs states, and they were not kept.
        """
        if not policy.needs_states:
            return StepInputs(self.times, index, self.final, {}, {}, None)
        if not self.states or not self.frozen:
            raise ValueError(
                f"{type(policy).__name__} needs the states of the trajectory, which were not kept; "
                "make the rollout with record_states=True"
            )
        k = len(index)
        if k not in self._conditioning:
            copies = CrystalBatch.concatenate([self.final] * k)
            self._conditioning[k] = policy.model.prepare(copies)
        return StepInputs(
            self.times,
            index,
            self.final,
            {name: x[index] for name, x in self.states.items()},
            {head: {n: x[index] for n, x in of.items()} for head, of in self.frozen.items()},
            self._conditioning[k],
            mixed_precision=mixed_precision,
        )

    def is_finite(self) -> Tensor:
        """Structures for which all numbers are finite that an update needs, shape (B,)."""
        n_structures, n_atoms = len(self.final), len(self.final.species)
        good = torch.ones(n_structures, dtype=torch.bool, device=self.times.device)
        for group in (self.actions, self.log_probs, self.states, *self.frozen.values()):
            for name, x in group.items():
                finite = x.isfinite().transpose(0, 1).flatten(1).all(1)
                if name == "pos" and len(finite) == n_atoms:
                    good[self.final.batch[~finite]] = False
                else:
                    good &= finite
        return good

    def select(self, structures: Tensor) -> Trajectory:
        """The episodes of some structures, given by index (m,)."""
        atoms = self.final.atom_indices(structures)

        def pick(x: Tensor) -> Tensor:
            # Where every structure has one atom, both indices are the same.
            return x[:, atoms if x.shape[1] == len(self.final.species) else structures]

        return Trajectory(
            self.times,
            {name: pick(x) for name, x in self.actions.items()},
            {name: pick(x) for name, x in self.log_probs.items()},
            self.final[structures],
            {name: pick(x) for name, x in self.states.items()},
            {head: {n: pick(x) for n, x in of.items()} for head, of in self.frozen.items()},
        )

    @staticmethod
    def concatenate(trajectories: Sequence[Trajectory]) -> Trajectory:
        """The episodes of several trajectories with one time grid, in order."""
        first = trajectories[0]

        def join(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
            return {name: torch.cat([part[name] for part in parts], dim=1) for name in parts[0]}

        return Trajectory(
            first.times,
            join([trajectory.actions for trajectory in trajectories]),
            join([trajectory.log_probs for trajectory in trajectories]),
            CrystalBatch.concatenate([trajectory.final for trajectory in trajectories]),
            join([trajectory.states for trajectory in trajectories]),
            {head: join([part.frozen[head] for part in trajectories]) for head in first.frozen},
        )
