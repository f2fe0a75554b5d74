"""The validation reward of a GRPO policy that was trained with a configuration."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from irlkit.data import CrystalDataset
from irlkit.evaluate.metrics import MatchPool
from irlkit.flows.schedules import FIELD_NAMES, ConstantNoise, LearnedAnnealing
from irlkit.lab._splits import load_splits
from irlkit.lab.sweeps.spaces import SearchSpace
from irlkit.networks.flow_model import FlowModel
from irlkit.networks.pretrained import load_pretrained
from irlkit.rewards import CRMSEReward, EnergyReward, Reward
from irlkit.rl._until import train_until
from irlkit.rl.config import TrainerConfig
from irlkit.rl.policies import POLICIES, AnnealingPolicy, Policy, ScorePolicy, VelocityPolicy
from irlkit.rl.trainer import GRPOTrainer
from irlkit.utils.checks import checked

if TYPE_CHECKING:
    from irlkit.lab.sweeps.run import Report

REWARDS = ("crmse", "energy")


@checked
@dataclass(frozen=True)
class PolicyObjective:
    """Trains a policy with a configuration; its validation rewards are what a sweep maximises.

    What is None becomes what the paper has for the policy of the space. Model, data and rewards
    are loaded when they are first needed, and kept until ``close``.

    >>> from irlkit.lab.sweeps import SPACES
    >>> objective = PolicyObjective(SPACES["velocity"])
    >>> objective.checkpoint, objective.reward, objective.grpo["n_steps"]
    ('trig-sde-gamma', 'energy', 50)

    Attributes:
        space: what is searched; says which policy.
        checkpoint: name of a shipped model, or path of a checkpoint.
        dataset: name of a shipped data set, or path of a data file.
        reward: "crmse" (Appendix G) or "energy" (Appendix E).
        potential: name of the potential of the energy.
        iterations: of GRPO.
        grpo: further settings of GRPO, such as n_steps and validate_every; None: the default.
        seed: of every trial, so that they differ by their configuration alone.
        device: of the network.
        n_workers: processes that match structures; None: one per core, 0: in this process.

    Raises:
        ValueError: an argument is out of its range, or the space has a parameter that is none.
    """

    space: SearchSpace
    checkpoint: str | None = None
    dataset: str = "prototypes"
    reward: str | None = None
    potential: str = "chgnet"
    iterations: int = 60
    grpo: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    device: str = "cpu"
    n_workers: int | None = 0

    def __post_init__(self) -> None:
        annealing = self.space.policy == "annealing"
        defaults = {
            "checkpoint": "linear-ode" if annealing else "trig-sde-gamma",
            "reward": "crmse" if annealing else "energy",
        }
        for name, value in defaults.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        given = {name: value for name, value in self.grpo.items() if value is not None}
        object.__setattr__(self, "grpo", {"n_steps": 10 if annealing else 50, **given})
        if self.reward not in REWARDS:
            raise ValueError(f"reward must be one of {REWARDS}, got {self.reward!r}")
        if self.space.policy not in POLICIES:
            raise ValueError(f"policy must be one of {[*POLICIES]}, got {self.space.policy!r}")
        configs = [self._config(config) for config in ({}, *self.space.start)]
        if self.iterations < configs[0].validate_every:
            raise ValueError(
                f"iterations must be at least the {configs[0].validate_every} between validations, "
                f"or a trial has no result; got {self.iterations}"
            )

    def describe(self) -> dict[str, Any]:
        """Return the settings that decide about results."""
        names = "checkpoint dataset reward potential iterations grpo seed"
        return {name: getattr(self, name) for name in names.split()}

    def __call__(self, config: Mapping[str, Any], folder: Path, report: Report) -> None:
        """See ``Objective``."""
        trainer = self.trainer(config, folder)
        every = trainer.config.validate_every
        for iteration in range(every, self.iterations + 1, every):
            history = train_until(trainer, iteration)
            row = history[history["iteration"] == iteration]
            report(iteration, float(row["validation_reward"].iloc[0]))

    def trainer(self, config: Mapping[str, Any], folder: Path | None, **others: Any) -> GRPOTrainer:
        """Make a trainer, which continues what is in `folder`; None: without files.

        Args:
            config: value of each parameter of the space.
            folder: for its files.
            **others: settings of GRPO that are other than in a trial, such as the seed.
        """
        grpo = self._config(config, **others)
        parts = self._parts
        return GRPOTrainer(
            self._make_policy(config, grpo.seed),
            parts.reward,
            parts.train,
            grpo,
            validation=parts.validation,
            validation_reward=parts.validation_reward,
            out_dir=folder,
            resume=folder is not None,
        )

    def _config(
        self, config: Mapping[str, Any], *, seed: int | None = None, **others: Any
    ) -> TrainerConfig:
        settings = {**self.grpo, **self.space.split(config)[0], "iterations": self.iterations}
        settings = {**settings, **others}
        return TrainerConfig.from_settings(settings, self.seed if seed is None else seed)

    def _make_policy(self, config: Mapping[str, Any], seed: int) -> Policy:
        model = self._parts.model
        if self.space.policy != "annealing":
            return {"velocity": VelocityPolicy, "score": ScorePolicy}[self.space.policy](model)
        generator = torch.Generator().manual_seed(seed)
        settings = {"positive": True, **self.space.split(config)[1]}
        noise = {field: ConstantNoise(0.15) for field in FIELD_NAMES}
        return AnnealingPolicy(model, LearnedAnnealing(**settings, generator=generator), noise)

    @cached_property
    def _parts(self) -> _Parts:
        return _load_parts(self)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_parts"}

    def close(self) -> None:
        """End the worker processes and forget models and data."""
        parts = vars(self).pop("_parts", None)
        if parts is not None:
            parts.stack.close()


@dataclass(frozen=True)
class _Parts:
    """What all trials of a process share; `stack` closes it."""

    model: FlowModel
    train: CrystalDataset
    validation: CrystalDataset
    reward: Reward
    validation_reward: Reward
    stack: ExitStack


def _load_parts(objective: PolicyObjective) -> _Parts:
    """Load the model, the data and the rewards of an objective."""
    assert objective.checkpoint is not None
    model = load_pretrained(objective.checkpoint, objective.device).requires_grad_(False)
    train, validation, _ = load_splits(objective.dataset, progress=False)
    validation = validation.subset(objective.grpo.get("validation_size"))
    with ExitStack() as stack:
        reward: Reward
        judge: Reward
        if objective.reward == "crmse":
            pool = stack.enter_context(MatchPool(objective.n_workers))
            reward, judge = CRMSEReward(train, pool), CRMSEReward(validation, pool)
        else:
            reward = energy = EnergyReward(objective.potential)
            stack.callback(energy.close)
            judge = EnergyReward(energy.potential, references=validation)
        return _Parts(model, train, validation, reward, judge, stack.pop_all())
