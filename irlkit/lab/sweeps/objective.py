"""The validation reward of a GRPO policy that was trained with a configuration."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from irlkit import data as datasets
from irlkit.data import CrystalDataset
from irlkit.evaluate.metrics import MatchPool
from irlkit.flows.schedules import ConstantNoise, LearnedAnnealing, SquareRootNoise
from irlkit.lab.sweeps.spaces import SearchSpace
from irlkit.networks.flow_model import FlowModel, load_pretrained
from irlkit.rewards import CRMSEReward, EnergyReward, Reward
from irlkit.rl.config import TrainerConfig
from irlkit.rl.policies import AnnealingPolicy, Policy, ScorePolicy, VelocityPolicy
from irlkit.rl.trainer import GRPOTrainer
from irlkit.utils.checks import checked

if TYPE_CHECKING:
    from irlkit.lab.sweeps.trial import Report

REWARDS = ("crmse", "energy")


@checked
@dataclass(frozen=True)
class TrainingSettings:
    """How each trial is trained, apart from what is varied.

    Attributes:
        checkpoint: name of a shipped model, or path of a checkpoint.
        dataset: name of a shipped data set, or path of a data file.
        reward: "crmse" (Appendix G) or "energy" (Appendix E).
        potential: name of the potential of the energy.
        iterations: of GRPO.
        grpo: further arguments of ``TrainerConfig``, such as n_steps and validate_every.
        annealing: further arguments of ``LearnedAnnealing``.
        noise: field -> scale: of a constant noise for an annealing, of a square-root noise else.
            None takes 0.15 for both fields, and the paper's 0.16681 for positions.
        seed: of every trial, so that they differ by their configuration alone.
        device: of the network.
        n_workers: processes that match structures; None: one per core, 0: in this process.

    Raises:
        ValueError: an argument is out of its range.
    """

    checkpoint: str = "linear-ode"
    dataset: str = "prototypes"
    reward: str = "crmse"
    potential: str = "chgnet"
    iterations: int = 60
    grpo: Mapping[str, Any] = field(default_factory=dict)
    annealing: Mapping[str, Any] = field(default_factory=lambda: {"positive": True})
    noise: Mapping[str, float] | None = None
    seed: int = 0
    device: str = "cpu"
    n_workers: int | None = 0

    def __post_init__(self) -> None:
        if self.reward not in REWARDS:
            raise ValueError(f"reward must be one of {REWARDS}, got {self.reward!r}")
        if isinstance(self.iterations, bool) or not isinstance(self.iterations, int):
            raise ValueError(f"iterations must be an integer, got {self.iterations!r}")
        if self.iterations < self.validate_every:
            raise ValueError(
                f"iterations must be at least the {self.validate_every} between validations, or a "
                f"trial has no result; got {self.iterations}"
            )

    @property
    def validate_every(self) -> int:
        """Iterations between validations."""
        return TrainerConfig.from_settings(self._grpo, self.seed).validate_every

    @property
    def _grpo(self) -> dict[str, Any]:
        """As ``TrainerConfig`` takes them: JSON has lists where it wants tuples."""
        return {k: tuple(v) if isinstance(v, list) else v for k, v in self.grpo.items()}

    def config(
        self, settings: Mapping[str, Any], *, seed: int | None = None, **others: Any
    ) -> TrainerConfig:
        """All settings of a training run.

        Args:
            settings: of a configuration, see ``SearchSpace.split``; they win over `grpo`.
            seed: of the run; None: that of the trials.
            **others: win over everything.
        """
        ours = {"iterations": self.iterations, **others}
        return TrainerConfig.from_settings(
            {**self._grpo, **settings, **ours}, self.seed if seed is None else seed
        )


@checked
@dataclass(frozen=True)
class PolicyObjective:
    """Trains a policy with a configuration; its validation rewards are what a sweep maximises.

    Models, data and rewards are loaded at the first call in a process and kept.

    Attributes:
        space: what is searched; says which policy.
        settings: of all trials.
    """

    space: SearchSpace
    settings: TrainingSettings = field(default_factory=TrainingSettings)

    def describe(self) -> dict[str, Any]:
        """The settings that decide about results."""
        described = {
            name: getattr(self.settings, name)
            for name in ("checkpoint", "dataset", "reward", "potential", "iterations", "seed")
        }
        noise = self.settings.noise
        return {
            **described,
            "grpo": dict(self.settings.grpo),
            "annealing": dict(self.settings.annealing),
            "noise": None if noise is None else dict(noise),
        }

    def __call__(self, config: Mapping[str, Any], folder: Path, report: Report) -> None:
        """See ``Objective``."""
        trainer = self.trainer(config, folder)
        for iteration in range(
            self.settings.validate_every,
            self.settings.iterations + 1,
            self.settings.validate_every,
        ):
            history = train_until(trainer, iteration)
            row = history[history["iteration"] == iteration]
            report(iteration, float(row["validation_reward"].iloc[0]))

    def trainer(self, config: Mapping[str, Any], folder: Path | None, **others: Any) -> GRPOTrainer:
        """A trainer with a configuration, which continues what is in `folder`.

        Args:
            config: value of each parameter of the space.
            folder: for its files; None: none.
            **others: settings that are other than in a trial, such as the seed.

        Raises:
            ValueError: the configuration does not lie in the space.
        """
        self.space.check(config)
        settings, annealing = self.space.split(config)
        grpo = self.settings.config(settings, **others)
        parts = _parts(self.settings)
        return GRPOTrainer(
            make_policy(self.space.policy, parts.model, self.settings, annealing, grpo.seed),
            parts.reward,
            parts.train,
            grpo,
            validation=parts.validation,
            validation_reward=parts.validation_reward,
            out_dir=folder,
            resume=folder is not None,
        )


def train_until(trainer: GRPOTrainer, iterations: int, progress: bool = False) -> Any:
    """Run a trainer; returns its history.

    Raises:
        KeyboardInterrupt: interrupted; the trainer itself only returns earlier.
    """
    history = trainer.run(iterations, progress=progress)
    if trainer.iteration < iterations:
        raise KeyboardInterrupt(f"stopped at iteration {trainer.iteration} of {iterations}")
    return history


def make_policy(
    kind: str,
    model: FlowModel,
    settings: TrainingSettings,
    annealing: Mapping[str, Any],
    seed: int,
) -> Policy:
    """An untrained policy.

    Args:
        kind: "annealing", "velocity" or "score".
        model: frozen pretrained model.
        settings: of all trials.
        annealing: arguments of ``LearnedAnnealing``, over those of `settings`.
        seed: of the initial weights.
    """
    if kind == "annealing":
        scales = {"pos": 0.15, "cell": 0.15} if settings.noise is None else settings.noise
        generator = torch.Generator().manual_seed(seed)
        learned = LearnedAnnealing(**{**settings.annealing, **annealing}, generator=generator)
        return AnnealingPolicy(model, learned, {f: ConstantNoise(a) for f, a in scales.items()})
    noise = None
    if settings.noise is not None:
        noise = {field: SquareRootNoise(scale) for field, scale in settings.noise.items()}
    return (VelocityPolicy if kind == "velocity" else ScorePolicy)(model, noise)


@dataclass(frozen=True)
class _Parts:
    """What all trials of a process share."""

    model: FlowModel
    train: CrystalDataset
    validation: CrystalDataset
    reward: Reward
    validation_reward: Reward
    stack: ExitStack


_cache: dict[str, _Parts] = {}


def _parts(settings: TrainingSettings) -> _Parts:
    """The parts for these settings; those of others are given up."""
    size = settings.grpo.get("validation_size")
    names = ("checkpoint", "dataset", "reward", "potential", "device", "n_workers")
    key = repr([size, *(getattr(settings, name) for name in names)])
    if key not in _cache:
        close()
        model = load_pretrained(settings.checkpoint, settings.device).requires_grad_(False)
        train, validation = (
            datasets.load(settings.dataset, split=name, progress=False) for name in ("train", "val")
        )
        validation = validation.subset(size)
        with ExitStack() as stack:
            reward: Reward
            judge: Reward
            if settings.reward == "crmse":
                pool = stack.enter_context(MatchPool(settings.n_workers))
                reward, judge = CRMSEReward(train, pool), CRMSEReward(validation, pool)
            else:
                reward = energy = EnergyReward(settings.potential)
                stack.callback(energy.close)
                judge = EnergyReward(energy.potential, references=validation)
            _cache[key] = _Parts(model, train, validation, reward, judge, stack.pop_all())
    return _cache[key]


def close() -> None:
    """End the worker processes of the trials of this process and forget models and data."""
    while _cache:
        _cache.popitem()[1].stack.close()
