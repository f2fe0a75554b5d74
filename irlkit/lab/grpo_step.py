"""One update of GRPO on one group, with everything in between kept to be looked at."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from irlkit.crystals import CrystalBatch
from irlkit.flows.schedules import annealing_on_grid
from irlkit.rewards import as_reward
from irlkit.rl.config import TrainerConfig
from irlkit.rl.grpo import clipped_surrogate, group_advantages, grpo_loss
from irlkit.rl.policies import AnnealingPolicy
from irlkit.rl.rollout import rollout
from irlkit.utils.checks import checked


@dataclass(frozen=True)
class GRPOStep:
    """What happened in one update; G structures, n steps, NumPy arrays.

    Attributes:
        states: of the group, n + 1 batches.
        rewards: shape (G,).
        advantages: shape (G,).
        ratios: field -> new over old probability of each action, shape (n, G).
        terms: field -> min(q A, clip(q) A) of each action (Eq. 10), shape (n, G).
        clip_eps: clip half-width.
        times: where steps begin, shape (n,).
        before: field -> 1 + s(t) before the update, shape (n,).
        after: the same after it.
    """

    states: list[CrystalBatch]
    rewards: np.ndarray
    advantages: np.ndarray
    ratios: dict[str, np.ndarray]
    terms: dict[str, np.ndarray]
    clip_eps: float
    times: np.ndarray
    before: dict[str, np.ndarray]
    after: dict[str, np.ndarray]

    @property
    def clip_fraction(self) -> float:
        """Share of ratios outside 1 - eps to 1 + eps, over all fields."""
        outside = [np.abs(ratio - 1) > self.clip_eps for ratio in self.ratios.values()]
        return float(np.mean([entry.mean() for entry in outside]))


@checked
def explain(
    policy: AnnealingPolicy,
    composition: CrystalBatch,
    reward: Callable[[CrystalBatch], Any],
    config: TrainerConfig,
    generator: torch.Generator,
) -> GRPOStep:
    """Roll out one group, score it and take the gradient steps of one iteration.

    Args:
        policy: an annealing policy; left as it was.
        composition: one structure, whose composition the group is generated for.
        reward: structures -> ``RewardResult``, or one number per structure.
        config: group size, steps (the first of several), epochs, clip width and learning rate;
            every group member has a base sample of its own unless ``shared_x_0``.
        generator: draws base samples and actions.

    Returns:
        The update, with ratios after its last gradient step.

    Raises:
        ValueError: several compositions, or another kind of policy.
    """
    if not isinstance(policy, AnnealingPolicy):
        raise ValueError(f"policy must be an AnnealingPolicy, got {type(policy).__name__}")
    if len(composition) != 1:
        raise ValueError(f"composition must hold one structure, got {len(composition)}")
    config = replace(config, n_steps=config.step_choices[0])
    parameter = next(policy.parameters())
    one = composition.to(parameter.device, parameter.dtype)
    if config.shared_x_0:
        x_0 = policy.model.sample_base(one, generator).repeat(config.group_size)
    else:
        x_0 = policy.model.sample_base(one.repeat(config.group_size), generator)
    n_steps = config.step_choices[0]
    trajectory = rollout(policy, x_0, n_steps, generator, record_states=True)
    rewards = torch.as_tensor(as_reward(reward)(trajectory.final).values).double()
    advantages = group_advantages(rewards, config.group_size)
    index = torch.arange(n_steps, device=trajectory.times.device)
    before = _factors(policy, trajectory.times)
    kept = copy.deepcopy(policy.state_dict())
    try:
        optimizer = torch.optim.Adam(policy.parameters(), lr=config.learning_rate)
        for _ in range(config.n_ppo_epochs):
            optimizer.zero_grad()
            grpo_loss(policy, trajectory, advantages, config.grpo).total.backward()
            torch.nn.utils.clip_grad_norm_(policy.parameters(), config.max_grad_norm)
            optimizer.step()
        ratios, terms = {}, {}
        with torch.no_grad():
            for name, step in policy.steps(trajectory.inputs(policy, index)).items():
                log_prob = step.policy.log_prob(trajectory.actions[name])
                log_ratio = log_prob - trajectory.log_probs[name]
                weight = advantages.to(log_ratio)
                ratios[name] = log_ratio.exp().cpu().double().numpy()
                term = clipped_surrogate(log_ratio, weight, config.grpo.clip_eps)
                terms[name] = term.cpu().double().numpy()
        after = _factors(policy, trajectory.times)
    finally:
        policy.load_state_dict(kept)
        policy.zero_grad(set_to_none=True)
    states = [
        x_0.replace(pos=trajectory.states["pos"][i], cell=trajectory.states["cell"][i]).to("cpu")
        for i in range(n_steps + 1)
    ]
    return GRPOStep(
        states,
        rewards.numpy(),
        advantages.numpy(),
        ratios,
        terms,
        config.grpo.clip_eps,
        trajectory.times[:-1].cpu().double().numpy(),
        before,
        after,
    )


def _factors(policy: AnnealingPolicy, times: torch.Tensor) -> dict[str, np.ndarray]:
    with torch.no_grad():
        s = annealing_on_grid(policy.annealing, times)
    return {name: 1.0 + s[name].cpu().double().numpy() for name in policy.fields}
