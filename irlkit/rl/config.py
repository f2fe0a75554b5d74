"""How a training runs: groups, steps, updates, and what changes on the way."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from irlkit.flows.schedules import check_n_steps
from irlkit.rl.grpo import WEIGHTS, GRPOConfig, _of_field, check_group_size
from irlkit.utils.checks import is_number

_COUNTS = ("n_groups", "n_ppo_epochs", "minibatch_updates", "validate_every", "replay_kept")
_OPTIONAL_COUNTS = ("max_minibatch", "max_batch", "validation_size", "iterations")


@dataclass(frozen=True)
class TrainerConfig:
    """How a policy is trained. The defaults suit an annealing (Appendix F has the search space).

    Attributes:
        grpo: settings of the loss.
        n_groups: requests, such as compositions, per iteration.
        group_size: structures per request, at least 2.
        n_steps: steps of a rollout; of several, each iteration draws one.
        n_ppo_epochs: gradient steps per iteration.
        learning_rate: of Adam.
        max_grad_norm: gradients are scaled down to this norm.
        shared_x_0: the structures of a group start from one base sample.
        max_minibatch: at most so many (step, structure) pairs per backward pass; gradients are
            accumulated to those of the full batch. None: all at once.
        step_fraction: each PPO epoch uses a random subset of the time steps, this share of them:
            an unbiased estimate of the mean over steps in (10). Steps that bear on no loss are
            left out of the draw, where a policy knows them.
        minibatch_updates: optimizer steps per PPO epoch; its time steps are dealt at random to
            them.
        max_kl: no further gradient step is taken in an iteration once the estimated KL from the
            old policy, per event of any field, is above it; None: no limit.
        mixed_precision: networks compute in bfloat16 in updates; rollouts, probabilities and
            parameters keep their precision.
        iterations: planned length of the run, over which what decays does; a run may be longer.
        final_learning_rate: the learning rate decays to it, geometrically; None: constant.
        noise_decay: exploration noise decays geometrically to this share of what it was (with it
            the reference noise, unless the policy was given one). A number or field -> number.
        average_decay: the policy that is validated, kept as the best and deployed has averaged
            parameters: in each iteration, this share of the average stays (less in the first
            ones). None: the parameters themselves.
        max_batch: at most so many structures per network call in rollouts and validation; on a
            CPU, 128 is often faster than all at once.
        overlap_rewards: ask for the rewards of one part of ``max_batch`` structures in another
            thread while the next is rolled out, for a GPU or rewards in processes of their own. The
            reward gets parts of the batch, on the CPU: numbers change at most by rounding.
        replay: so many of the best episodes of earlier iterations train again in each (MatInvent),
            with the advantage they had and the probabilities they were drawn with.
        replay_kept: from so many they are drawn, one of each formula.
        imitation_weight: the best structure of each request so far is learned from again with its
            group, its advantage times this weight (self-imitation; for processes that can tell the
            moves to a state, such as site filling); 0: not. It needs advantages "leave_one_out".
        imitation_start: the share of the iterations before which it is only remembered.
        validate_every: iterations between validations.
        validation_n_steps: steps in validation; of several, the rewards are averaged. None takes
            n_steps.
        validation_size: use the first so many validation requests; None: all.
        seed: of requests, base samples and actions.
        validation_seed: of the base samples in validation, the same in each.

    >>> config = TrainerConfig.from_settings({"clip_eps": 0.1, "n_groups": 4}, seed=1)
    >>> config.grpo.clip_eps, config.n_groups, config.seed
    (0.1, 4, 1)
    """

    grpo: GRPOConfig = field(default_factory=GRPOConfig)
    n_groups: int = 8
    group_size: int = 32
    n_steps: int | tuple[int, ...] = 10
    n_ppo_epochs: int = 4
    learning_rate: float = 1e-2
    max_grad_norm: float = 1.0
    shared_x_0: bool = False
    max_minibatch: int | None = None
    step_fraction: float = 1.0
    minibatch_updates: int = 1
    max_kl: float | None = None
    mixed_precision: bool = False
    iterations: int | None = None
    final_learning_rate: float | None = None
    noise_decay: float | Mapping[str, float] = 1.0
    average_decay: float | None = None
    max_batch: int | None = None
    overlap_rewards: bool = False
    replay: int = 0
    replay_kept: int = 100
    imitation_weight: float = 0.0
    imitation_start: float = 0.0
    validate_every: int = 5
    validation_n_steps: int | tuple[int, ...] | None = None
    validation_size: int | None = None
    seed: int = 0
    validation_seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.grpo, GRPOConfig):
            raise ValueError(f"grpo must be a GRPOConfig, got {type(self.grpo).__name__}")
        for entry in fields(self):
            object.__setattr__(self, entry.name, _as_python(getattr(self, entry.name)))
            self._check_kind(entry.name, str(entry.type))
        check_group_size(self.group_size)
        for name in (*_COUNTS, *_OPTIONAL_COUNTS, "replay"):
            value = getattr(self, name)
            if name not in _COUNTS and value == (0 if name == "replay" else None):
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive integer, got {value!r}")
        if self.replay and (self.mixed_precision or len(self.step_choices) > 1):
            raise ValueError(
                "replay keeps probabilities of one number of steps: it needs a single n_steps "
                f"and no mixed_precision, got {self.n_steps!r} and {self.mixed_precision}"
            )
        self._check_imitation()
        steps = {"n_steps": self.step_choices, "validation_n_steps": self.validation_step_choices}
        for name, choices in steps.items():
            if not choices:
                raise ValueError(f"{name} must name at least one number of steps, got none")
            for n_steps in choices:
                check_n_steps(n_steps, name)
        for name in ("learning_rate", "max_grad_norm", "max_kl", "final_learning_rate"):
            value, optional = getattr(self, name), name in ("max_kl", "final_learning_rate")
            if not (value is None and optional) and not value > 0:
                words = "positive or None" if optional else "positive"
                raise ValueError(f"{name} must be {words}, got {value!r}")
        if not 0 < self.step_fraction <= 1:
            raise ValueError(
                f"step_fraction must be above 0 and at most 1, got {self.step_fraction!r}"
            )
        if self.average_decay is not None and not 0 <= self.average_decay < 1:
            raise ValueError(
                f"average_decay must be at least 0 and below 1, or None, got {self.average_decay!r}"
            )
        decay = self.noise_decay
        shares = list(decay.values()) if isinstance(decay, Mapping) else [decay]
        if not all(share > 0 for share in shares):
            raise ValueError(f"noise_decay must be positive, got {decay!r}")
        decays = self.final_learning_rate is not None or any(share != 1 for share in shares)
        if self.iterations is None and decays:
            raise ValueError(
                "iterations must say over how many iterations final_learning_rate and noise_decay "
                "are reached, got None"
            )

    def _check_imitation(self) -> None:
        weight, start = self.imitation_weight, self.imitation_start
        if weight < 0:
            raise ValueError(f"imitation_weight must not be negative, got {weight!r}")
        if not 0 <= start < 1 or (start and self.iterations is None):
            raise ValueError(
                "imitation_start must be at least 0 and below 1, and above 0 iterations must say "
                f"of how many, got {start!r} and {self.iterations!r}"
            )
        several = len(self.step_choices) > 1
        if weight and (self.grpo.advantages != "leave_one_out" or self.replay or several):
            raise ValueError(
                'imitation_weight needs advantages "leave_one_out", a single n_steps and no '
                f"replay, got {self.grpo.advantages!r}, {self.n_steps!r} and {self.replay}"
            )

    def _check_kind(self, name: str, kind: str) -> None:
        """Raise a ValueError where a setting is no number, flag or text as its annotation says."""
        value = getattr(self, name)
        if value is None and "None" in kind:
            return
        of_fields = "Mapping" in kind and isinstance(value, Mapping)
        values = list(value.values()) if of_fields else [value]
        unlimited = name == "max_grad_norm" and isinstance(value, float) and value == float("inf")
        if "float" in kind and not (unlimited or all(map(is_number, values))):
            raise ValueError(f"{name} must be a finite number, got {value!r}")
        if "seed" in name and (isinstance(value, bool) or not isinstance(value, int)):
            raise ValueError(f"{name} must be a whole number, got {value!r}")
        if kind == "bool" and not isinstance(value, bool):
            raise ValueError(f"{name} must be True or False, got {value!r}")

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], seed: int) -> TrainerConfig:
        """Build a configuration from settings by name, those of ``GRPOConfig`` among them.

        Args:
            settings: name -> setting, without the seed.
            seed: of the run.

        Raises:
            ValueError: a name that is none of a setting, or as the constructors.
        """
        if "seed" in settings:
            raise ValueError(
                f"grpo must not hold a seed, each run has its own, got {dict(settings)}"
            )
        of_loss = {entry.name for entry in fields(GRPOConfig)}
        known = {entry.name for entry in fields(cls)} - {"grpo"} | of_loss
        if unknown := sorted(map(str, set(settings) - known)):
            raise ValueError(
                f"grpo must name settings of TrainerConfig or GRPOConfig, got {unknown}"
            )
        loss = GRPOConfig(**{k: v for k, v in settings.items() if k in of_loss})
        rest = {k: v for k, v in settings.items() if k not in of_loss}
        return cls(loss, **rest, seed=seed)

    def to_settings(self) -> dict[str, Any]:
        """Return all settings by name, those of ``grpo`` among them, as JSON can hold them."""
        loss = {f.name: getattr(self.grpo, f.name) for f in fields(self.grpo)}
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "grpo"}
        return {
            name: dict(v) if isinstance(v, Mapping) else list(v) if isinstance(v, tuple) else v
            for name, v in (loss | values).items()
        }

    def _check_fields(self, names: Iterable[str]) -> None:
        """Raise a ValueError where a setting is for a field that a process has not.

        Args:
            names: the process's fields.
        """
        names = tuple(names)
        settings = {name: getattr(self.grpo, name) for name in (*WEIGHTS, "clip_eps")}
        for name, value in {"noise_decay": self.noise_decay, **settings}.items():
            if isinstance(value, Mapping) and (unknown := sorted(set(value) - set(names))):
                raise ValueError(f"{name} must be for fields {names}, got {unknown}")

    @property
    def step_choices(self) -> tuple[int, ...]:
        """The step counts of rollouts."""
        return _as_tuple(self.n_steps)

    @property
    def validation_step_choices(self) -> tuple[int, ...]:
        """The step counts of a validation."""
        chosen = self.n_steps if self.validation_n_steps is None else self.validation_n_steps
        return _as_tuple(chosen)

    def learning_rate_at(self, iteration: int) -> float:
        """Return the learning rate after so many complete iterations."""
        if self.final_learning_rate is None:
            return self.learning_rate
        ratio = self.final_learning_rate / self.learning_rate
        return self.learning_rate * ratio ** self._done(iteration)

    def noise_scale_at(self, iteration: int, names: Iterable[str]) -> dict[str, float]:
        """Return field -> share of the noise that is left after so many iterations."""
        done = self._done(iteration)
        return {name: _of_field(self.noise_decay, name, 1.0) ** done for name in names}

    def _average_decay_at(self, iteration: int) -> float:
        """Return the share of averaged parameters that stays, after so many complete iterations.

        It starts low, or the average would be that of the start for long.
        """
        return min(self.average_decay or 0.0, (1 + iteration) / (10 + iteration))

    def _done(self, iteration: int) -> float:
        """Which part of the run is done, from 0 in the first iteration to 1 in the last."""
        return 0.0 if self.iterations is None else min(iteration / max(self.iterations - 1, 1), 1.0)


def _as_python(value: Any) -> Any:
    """NumPy's numbers as Python's, the only ones that checkpoints can hold."""
    if isinstance(value, Mapping):
        return {name: _as_python(entry) for name, entry in value.items()}
    if type(value) in (tuple, list):
        return type(value)(map(_as_python, value))
    return value.item() if isinstance(value, np.generic) else value


def _as_tuple(n_steps: int | tuple[int, ...]) -> tuple[int, ...]:
    return tuple(n_steps) if isinstance(n_steps, tuple | list) else (n_steps,)
