"""GRPO step by step: one group, from its rollouts to the step of the schedule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ipywidgets
import plotly.graph_objects as go
import torch

from irlkit.crystals import CrystalBatch
from irlkit.lab import plots
from irlkit.lab.grpo_step import GRPOStep, explain
from irlkit.lab.widgets.base import Explorer, Job, numbered, observe
from irlkit.rl.config import TrainerConfig
from irlkit.rl.policies import AnnealingPolicy
from irlkit.utils.checks import checked


class GroupExplorer(Explorer):
    """One group: rollouts, rewards, advantages, clipped terms, and the step they add up to.

    Args:
        policy: an annealing policy, left as it is.
        compositions: structures whose compositions can be chosen.
        reward: structures -> ``RewardResult``, or one number per structure.
        config: group size, steps, epochs, clip width and learning rate.
        seed: to begin with.

    Attributes:
        step: what is shown.

    Raises:
        ValueError: no composition.
    """

    @checked
    def __init__(
        self,
        policy: AnnealingPolicy,
        compositions: CrystalBatch,
        reward: Callable[[CrystalBatch], Any],
        config: TrainerConfig | None = None,
        seed: int = 0,
    ) -> None:
        if not len(compositions):
            raise ValueError("compositions must hold at least one entry, got none")
        super().__init__()
        self.policy, self.compositions, self.reward = policy, compositions, reward
        self.config = TrainerConfig(group_size=12) if config is None else config
        self.composition = ipywidgets.Dropdown(
            options=numbered(compositions.reduced_formulas()), description="formula"
        )
        self.seed = ipywidgets.BoundedIntText(value=seed, min=0, max=10**6, description="seed")
        self.clip = ipywidgets.FloatSlider(
            min=0.05,
            max=1,
            step=0.05,
            value=self.config.grpo.clip_eps,
            description="clip width",
            continuous_update=False,
        )
        self.epochs = ipywidgets.IntSlider(
            min=1,
            max=20,
            value=self.config.n_ppo_epochs,
            description="epochs",
            continuous_update=False,
        )
        self.step = self._explain(Job())
        rows = ([self.composition, self.seed], [self.clip, self.epochs])
        self._lay_out(*rows)
        observe(lambda _: self.compute(self._explain, self._on_explained), [*rows[0], *rows[1]])

    def figure(self) -> go.Figure:
        """Return rewards, advantages, clipped terms and the step."""
        return plots.grpo_step(self.step)

    def rollouts(self) -> go.Figure:
        """Return members of the group on their way, coloured by advantage."""
        return plots.group_trajectories(self.step.states, self.step.advantages)

    def _explain(self, job: Job) -> GRPOStep:
        loss = replace(self.config.grpo, clip_eps=self.clip.value)
        config = replace(self.config, grpo=loss, n_ppo_epochs=self.epochs.value)
        generator = torch.Generator().manual_seed(self.seed.value)
        composition = self.compositions[self.composition.value]
        step = explain(self.policy, composition, self.reward, config, generator)
        if (step.rewards == step.rewards[0]).all():
            self.message.value = "All rewards are equal: no advantage, nothing to learn."
        else:
            self.message.value = (
                f"{len(step.rewards)} structures, rewards from {step.rewards.min():.3f} to "
                f"{step.rewards.max():.3f}; {step.clip_fraction:.0%} of the ratios are clipped"
            )
        return step

    def _on_explained(self, step: GRPOStep) -> None:
        self.step = step
        self.show_live()
