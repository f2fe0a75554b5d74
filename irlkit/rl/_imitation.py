"""The best structure of every request so far, which a policy learns to make again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from irlkit.rl._replay import _joined
from irlkit.rl.config import TrainerConfig
from irlkit.rl.policies.base import Policy
from irlkit.rl.process import Process, State
from irlkit.rl.trajectory import Trajectory


class Imitation:
    """Remembers the best final state of every request and adds it to the request's group.

    Self-imitation learning of Oh et al. (2018) with the mean of the group as the value: the best
    one's advantage is weight * max(R_best - mean, 0). Its episode begins where its group does and
    is scored by the policy as it is, so that it is learned as if it had been drawn; that of those
    that were drawn does not change. It costs no reward.

    Args:
        policy: that is trained.
        config: settings.

    Raises:
        ValueError: the policy's process cannot tell the moves to a state.
    """

    def __init__(self, policy: Policy, config: TrainerConfig) -> None:
        self.policy, self.config = policy, config
        told = type(policy.process).moves_to is not Process.moves_to and policy.needs_states
        if config.imitation_weight and not told:
            raise ValueError(
                f"imitation_weight must be 0 for {type(policy).__name__}, whose process cannot "
                f"tell the moves that lead to a state, got {config.imitation_weight!r}"
            )
        self.rewards: dict[int, float] = {}
        self.finals: dict[int, dict[str, Tensor]] = {}

    def __call__(
        self,
        trajectory: Trajectory,
        advantages: Tensor,
        rewards: Tensor,
        requests: Tensor,
        iteration: int,
    ) -> tuple[Trajectory, Tensor]:
        """Return a trajectory with the best of its requests added, and all advantages.

        Then remember what is better than what was.

        Args:
            trajectory: of B structures, those of a request next to each other.
            advantages: shape (B,).
            rewards: shape (B,).
            requests: number of each structure's request, shape (B,).
            iteration: complete ones before this.
        """
        config = self.config
        if not len(rewards):
            return trajectory, advantages
        groups, counts = requests.unique_consecutive(return_counts=True)
        starts = counts.cumsum(0) - counts
        numbers = torch.arange(len(groups)).repeat_interleave(counts)
        means = torch.zeros(len(groups), dtype=rewards.dtype).index_add_(0, numbers, rewards)
        best = torch.tensor([self.rewards.get(r, -torch.inf) for r in groups.tolist()])
        better = config.imitation_weight * (best.to(means) - means / counts)
        chosen = (better > 0).nonzero().flatten()
        joined = trajectory, advantages
        if len(chosen) and config._done(iteration) >= config.imitation_start:
            finals = [self.finals[r] for r in groups[chosen].tolist()]
            again = self._episodes(
                trajectory.select(starts[chosen].to(trajectory.times.device)), finals
            )
            joined = (
                _joined(trajectory, again),
                torch.cat([advantages, better[chosen].to(advantages)]),
            )
        self._remember(trajectory, groups.tolist(), rewards.split(counts.tolist()))
        return joined

    def _episodes(self, trajectory: Trajectory, finals: list[dict[str, Tensor]]) -> Trajectory:
        """Episodes from the beginnings of others to remembered ends."""
        process = self.policy.process
        end = {name: torch.cat([final[name] for final in finals]) for name in finals[0]}
        start = {name: x[0] for name, x in trajectory.states.items()}
        state = State(trajectory.request, process.fields, start)
        moves = process.moves_to(state, end, trajectory.n_steps)
        states = [state.values]
        for i in range(trajectory.n_steps):
            state = process.advance(state, {name: x[i] for name, x in moves.items()}, i)
            states.append(state.values)
        episodes = replace(
            trajectory,
            actions={name: moves[name] for name in self.policy.fields},
            states={name: torch.stack([s[name] for s in states]) for name in start},
            final=process.decode(state),
        )
        index = torch.arange(trajectory.n_steps, device=trajectory.times.device)
        with torch.no_grad():
            steps = self.policy.steps(episodes.inputs(self.policy, index))
        log_probs = {n: steps[n].policy.log_prob(x) for n, x in episodes.actions.items()}
        return replace(episodes, log_probs=log_probs)

    def _remember(
        self, trajectory: Trajectory, groups: list[int], rewards: tuple[Tensor, ...]
    ) -> None:
        last = {name: x[-1] for name, x in trajectory.states.items()}
        state = State(trajectory.request, self.policy.process.fields, last)
        first = 0
        for request, of_group in zip(groups, rewards, strict=True):
            best = int(of_group.argmax())
            if float(of_group[best]) > self.rewards.get(request, -torch.inf):
                self.rewards[request] = float(of_group[best])
                chosen = torch.tensor([first + best], device=trajectory.times.device)
                self.finals[request] = dict(state.select(chosen).values)
            first += len(of_group)

    def state(self) -> dict[str, Any]:
        """Return what is remembered."""
        return {"rewards": dict(self.rewards), "finals": dict(self.finals)}

    def restore(self, state: dict[str, Any]) -> None:
        """Remember what a `state` holds, and nothing else."""
        self.rewards = dict(state.get("rewards", {}))
        self.finals = dict(state.get("finals", {}))
