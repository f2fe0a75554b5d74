"""Reinforcement learning on what is generated in steps.

A process moves fields from a base sample to crystals; a policy draws the actions of its steps;
rewards within a group become advantages, and the loss makes the better actions more probable:

    x_0 = policy.process.initial(requests.repeat(group_size), generator)
    trajectory = rollout(policy, x_0, n_steps, generator)
    advantages = group_advantages(reward(trajectory.final).values, group_size)
    grpo_loss(policy, trajectory, advantages, GRPOConfig()).total.backward()
"""

from irlkit.rl.config import TrainerConfig
from irlkit.rl.distributions import ActionDistribution, Categorical, Gaussian
from irlkit.rl.grpo import GRPOConfig, GRPOLoss, clipped_surrogate, group_advantages, grpo_loss
from irlkit.rl.policies import (
    POLICIES,
    AnnealingPolicy,
    FewStepPolicy,
    FieldStep,
    LatentPolicy,
    Policy,
    ScorePolicy,
    SpeciesPolicy,
    StateAnnealingPolicy,
    StepInputs,
    VelocityPolicy,
    load_dynamics,
)
from irlkit.rl.process import Field, Process, Request, State
from irlkit.rl.rollout import generate, rollout
from irlkit.rl.trainer import GRPOTrainer
from irlkit.rl.trajectory import Trajectory
from irlkit.rl.update import PolicyUpdate

__all__ = [
    "POLICIES",
    "ActionDistribution",
    "AnnealingPolicy",
    "Categorical",
    "FewStepPolicy",
    "Field",
    "FieldStep",
    "GRPOConfig",
    "GRPOLoss",
    "GRPOTrainer",
    "Gaussian",
    "LatentPolicy",
    "Policy",
    "PolicyUpdate",
    "Process",
    "Request",
    "ScorePolicy",
    "SpeciesPolicy",
    "State",
    "StateAnnealingPolicy",
    "StepInputs",
    "TrainerConfig",
    "Trajectory",
    "VelocityPolicy",
    "clipped_surrogate",
    "generate",
    "group_advantages",
    "grpo_loss",
    "load_dynamics",
    "rollout",
]
