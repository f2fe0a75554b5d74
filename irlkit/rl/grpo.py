"""Group-relative policy optimisation: advantages, loss and configuration (section 2.3).

Everything here is a pure function of a trajectory; ``irlkit.rl.trainer`` iterates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from irlkit.flows.schedules import FIELD_NAMES, check_n_steps
from irlkit.rl.policies import FieldStep, Policy
from irlkit.rl.sampler import Trajectory
from irlkit.utils.checks import fitting, is_number

NORMALIZATIONS = ("per_atom_surrogate", "per_structure_weight", "none")
MAX_LOG_RATIO = 20.0


@fitting
def group_advantages(rewards: Tensor, group_size: int) -> Tensor:
    """Rewards relative to their group: (r - mean) / (std + 1e-8), population std (Eq. 9).

    Args:
        rewards: shape (n_groups * group_size,), groups adjacent.
        group_size: structures per group, at least 2.

    Returns:
        Same shape; exactly zero in a group whose rewards are all equal.

    Raises:
        ValueError: ``group_size`` < 2, or it does not divide the number of rewards.
    """
    check_group_size(group_size)
    if rewards.ndim != 1 or len(rewards) % group_size:
        raise ValueError(
            f"rewards must have shape (n_groups * group_size,) with a group_size of {group_size}, "
            f"got {tuple(rewards.shape)}"
        )
    groups = rewards.reshape(-1, group_size)
    centered = groups - groups.mean(dim=1, keepdim=True)
    scaled = centered / (groups.std(dim=1, keepdim=True, correction=0) + 1e-8)
    # The mean of equal numbers can be off by a rounding, which 1e-8 would let through.
    varies = groups.amax(dim=1, keepdim=True) > groups.amin(dim=1, keepdim=True)
    return torch.where(varies, scaled, torch.zeros_like(scaled)).flatten()


def check_group_size(group_size: int) -> None:
    """Raise a ValueError unless a group of that size has a spread of rewards."""
    if isinstance(group_size, bool) or not isinstance(group_size, int) or group_size < 2:
        raise ValueError(
            f"group_size must be an integer of at least 2, got {group_size!r}: an advantage "
            "compares a structure with the others of its group, and one alone has none"
        )


def clipped_surrogate(log_ratio: Tensor, advantages: Tensor, clip_eps: float) -> Tensor:
    """PPO objective per element, to be maximised: min(q A, clip(q, 1 - eps, 1 + eps) A) (Eq. 10).

    Args:
        log_ratio: ln q = log pi_theta - log pi_old, any shape.
        advantages: A, broadcasts against ``log_ratio``; no gradient.
        clip_eps: clip half-width, positive.

    Returns:
        Shape of ``log_ratio``.

    Raises:
        ValueError: clip_eps <= 0.
    """
    if not clip_eps > 0:
        raise ValueError(f"clip_eps must be positive, got {clip_eps!r}")
    # A ratio beyond e^20 is clipped or hopeless; its exponential could overflow and with it the
    # gradient of everything else.
    ratio = log_ratio.clamp(max=MAX_LOG_RATIO).exp()
    return torch.minimum(ratio * advantages, ratio.clamp(1 - clip_eps, 1 + clip_eps) * advantages)


@dataclass(frozen=True)
class GRPOConfig:
    """How a policy is trained. The defaults suit an annealing (Appendix F has the search space).

    A weight is one number for all fields or a mapping from field to number.

    Attributes:
        n_groups: compositions per iteration.
        group_size: structures per composition, at least 2.
        n_steps: integration steps of a rollout; of several, each iteration draws one.
        n_ppo_epochs: gradient steps per iteration.
        clip_eps: PPO clip half-width.
        learning_rate: of Adam.
        policy_weight: weight of the surrogate (10).
        kl_weight: weight of the KL to the reference policy (11).
        distillation_weight: weight of the denoiser distillation (12).
        entropy_weight: weight of a bonus for the entropy of the actions, which keeps a noise that
            is learned from vanishing.
        normalization: for per-atom events (Appendix A). "per_atom_surrogate": ratios per atom,
            their surrogates averaged; "per_structure_weight": ratios per structure, advantages
            divided by the number of atoms; "none": ratios per structure, KL summed over atoms.
        max_grad_norm: gradients are scaled down to this norm.
        shared_x_0: the structures of a group start from one base sample.
        max_minibatch: at most so many (step, structure) pairs per backward pass; gradients are
            accumulated to those of the full batch. None: all at once.
        step_fraction: each PPO epoch uses a random subset of the time steps, this share of them:
            an unbiased estimate of the mean over steps in (10).
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
        validate_every: iterations between validations.
        validation_n_steps: steps in validation; of several, the rewards are averaged. None takes
            n_steps.
        validation_size: use the first so many validation structures; None: all.
        seed: of compositions, base samples and actions.
        validation_seed: of the base samples in validation, the same in each.
    """

    n_groups: int = 8
    group_size: int = 32
    n_steps: int | tuple[int, ...] = 10
    n_ppo_epochs: int = 4
    clip_eps: float = 0.3
    learning_rate: float = 1e-2
    policy_weight: float | Mapping[str, float] = 1.0
    kl_weight: float | Mapping[str, float] = 0.0
    distillation_weight: float | Mapping[str, float] = 0.0
    entropy_weight: float | Mapping[str, float] = 0.0
    normalization: str = "per_atom_surrogate"
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
    validate_every: int = 5
    validation_n_steps: int | tuple[int, ...] | None = None
    validation_size: int | None = None
    seed: int = 0
    validation_seed: int = 0

    def __post_init__(self) -> None:
        for entry in fields(self):
            self._check_kind(entry.name, str(entry.type))
        check_group_size(self.group_size)
        for name in ("n_groups", "n_ppo_epochs", "minibatch_updates", "validate_every"):
            _check_positive_int(name, getattr(self, name))
        for name in ("max_minibatch", "max_batch", "validation_size", "iterations"):
            if getattr(self, name) is not None:
                _check_positive_int(name, getattr(self, name))
        for n_steps in self.step_choices:
            check_n_steps(n_steps)
        for n_steps in self.validation_step_choices:
            check_n_steps(n_steps, "validation_n_steps")
        for name in ("step_choices", "validation_step_choices"):
            if not getattr(self, name):
                shown = name.replace("step_choices", "n_steps")
                raise ValueError(f"{shown} must name at least one number of steps, got none")
        for name in ("clip_eps", "learning_rate", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)!r}")
        for name in ("max_kl", "final_learning_rate"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive or None, got {value!r}")
        if not 0 < self.step_fraction <= 1:
            raise ValueError(
                f"step_fraction must be above 0 and at most 1, got {self.step_fraction!r}"
            )
        if self.average_decay is not None and not 0 <= self.average_decay < 1:
            raise ValueError(
                f"average_decay must be at least 0 and below 1, or None, got {self.average_decay!r}"
            )
        decay = self.noise_decay
        if isinstance(decay, Mapping) and (unknown := sorted(set(decay) - set(FIELD_NAMES))):
            raise ValueError(f"noise_decay must be for fields {FIELD_NAMES}, got {unknown}")
        if not all(self._final_noise(field) > 0 for field in FIELD_NAMES):
            raise ValueError(f"noise_decay must be positive, got {decay!r}")
        if self.iterations is None and (self.final_learning_rate is not None or self.decays_noise):
            raise ValueError(
                "iterations must say over how many iterations final_learning_rate and noise_decay "
                "are reached, got None"
            )
        for term in ("policy", "kl", "distillation", "entropy"):
            value = getattr(self, f"{term}_weight")
            if isinstance(value, Mapping) and (unknown := sorted(set(value) - set(FIELD_NAMES))):
                raise ValueError(f"{term}_weight must be for fields {FIELD_NAMES}, got {unknown}")
            if any(self.weight(term, field) < 0 for field in FIELD_NAMES):
                raise ValueError(f"{term}_weight must not be negative, got {value!r}")
        if not isinstance(self.normalization, str) or self.normalization not in NORMALIZATIONS:
            raise ValueError(
                f"normalization must be one of {NORMALIZATIONS}, got {self.normalization!r}"
            )

    @classmethod
    def from_settings(cls, grpo: Mapping[str, Any], seed: int) -> GRPOConfig:
        """A configuration of settings by name.

        Args:
            grpo: name -> setting, without the seed.
            seed: of the run.

        Raises:
            ValueError: a name that is none of a setting, or as the constructor.
        """
        if "seed" in grpo:
            raise ValueError(f"grpo must not hold a seed, each run has its own, got {dict(grpo)}")
        known = {entry.name for entry in fields(cls)}
        if unknown := sorted(map(str, set(grpo) - known)):
            raise ValueError(f"grpo must name settings of GRPOConfig, got {unknown}")
        return cls(**grpo, seed=seed)

    def _check_kind(self, name: str, kind: str) -> None:
        """Raises a ValueError where a setting is no number, flag or text as its annotation says."""
        value = getattr(self, name)
        if value is None and "None" in kind:
            return
        values = (
            list(value.values()) if "Mapping" in kind and isinstance(value, Mapping) else [value]
        )
        unlimited = name == "max_grad_norm" and isinstance(value, float) and value == float("inf")
        if "float" in kind and not (unlimited or all(map(is_number, values))):
            raise ValueError(f"{name} must be a finite number, got {value!r}")
        if "seed" in name and (isinstance(value, bool) or not isinstance(value, int)):
            raise ValueError(f"{name} must be a whole number, got {value!r}")
        if kind == "bool" and not isinstance(value, bool):
            raise ValueError(f"{name} must be True or False, got {value!r}")

    @property
    def step_choices(self) -> tuple[int, ...]:
        """The step counts of rollouts."""
        return _as_tuple(self.n_steps)

    @property
    def validation_step_choices(self) -> tuple[int, ...]:
        """The step counts of a validation."""
        chosen = self.n_steps if self.validation_n_steps is None else self.validation_n_steps
        return _as_tuple(chosen)

    def weight(self, term: str, field: str) -> float:
        """Weight of a term ("policy", "kl", "distillation" or "entropy") for a field, or 0."""
        value = getattr(self, f"{term}_weight")
        return float(value.get(field, 0.0) if isinstance(value, Mapping) else value)

    @property
    def decays_noise(self) -> bool:
        """Whether the exploration noise changes during training."""
        return any(self._final_noise(field) != 1 for field in FIELD_NAMES)

    def _final_noise(self, field: str) -> float:
        decay = self.noise_decay
        return float(decay.get(field, 1.0) if isinstance(decay, Mapping) else decay)

    def learning_rate_at(self, iteration: int) -> float:
        """Learning rate after so many complete iterations."""
        if self.final_learning_rate is None:
            return self.learning_rate
        ratio = self.final_learning_rate / self.learning_rate
        return self.learning_rate * ratio ** self._done(iteration)

    def noise_scale_at(self, iteration: int) -> dict[str, float]:
        """Field -> share of the exploration noise that is left after so many iterations."""
        return {f: self._final_noise(f) ** self._done(iteration) for f in FIELD_NAMES}

    def average_decay_at(self, iteration: int) -> float:
        """Share of the averaged parameters that stays, after so many complete iterations.

        It starts low, or the average would be that of the start for long.
        """
        return min(self.average_decay or 0.0, (1 + iteration) / (10 + iteration))

    def _done(self, iteration: int) -> float:
        """Which part of the run is done, from 0 in the first iteration to 1 in the last."""
        return 0.0 if self.iterations is None else min(iteration / max(self.iterations - 1, 1), 1.0)

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON can hold them."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {
            name: dict(v) if isinstance(v, Mapping) else list(v) if isinstance(v, tuple) else v
            for name, v in values.items()
        }


def _as_tuple(n_steps: int | tuple[int, ...]) -> tuple[int, ...]:
    return tuple(n_steps) if isinstance(n_steps, tuple | list) else (n_steps,)


def _check_positive_int(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a positive integer, got {value!r}")


@dataclass(frozen=True)
class GRPOLoss:
    """A loss and its parts.

    Attributes:
        total: weighted sum to be minimised, with gradient.
        terms: "{field}_{term}" -> detached mean over steps and structures, for the terms
            policy_loss, kl, distillation, clip_fraction, ratio, approx_kl (an estimate of the KL
            from the old policy per event, never negative: the mean of q - 1 - ln q), entropy (of
            the actions), drift_change and drift_reference (squares of b_theta - b_ref and b_ref).
    """

    total: Tensor
    terms: dict[str, Tensor]


def grpo_loss(
    policy: Policy,
    trajectory: Trajectory,
    advantages: Tensor,
    config: GRPOConfig,
    index: Tensor | None = None,
) -> GRPOLoss:
    """Minus the sum over fields of Eqs. (10), (11) and (12), averaged over steps and structures.

    A bonus for the entropy of the actions can be added, for noise that is learned.

    Args:
        policy: scored with gradient.
        trajectory: sampled by the old policy.
        advantages: shape (B,), the same for all steps of a trajectory.
        config: weights, clip width and normalisation.
        index: steps to use, shape (k,); None takes all.

    Raises:
        ValueError: advantages of another shape.
    """
    n_structures = len(trajectory.final)
    if advantages.shape != (n_structures,):
        raise ValueError(
            f"advantages must have shape ({n_structures},), got {tuple(advantages.shape)}"
        )
    if index is None:
        index = torch.arange(trajectory.n_steps, device=trajectory.times.device)
    advantages = advantages.to(trajectory.times)
    total = trajectory.times.new_zeros(())
    terms = {}
    inputs = trajectory.inputs(policy, index, mixed_precision=config.mixed_precision)
    for field, step in policy.steps(inputs).items():
        log_ratio = (
            step.policy.log_prob(trajectory.actions[field][index])
            - trajectory.log_probs[field][index]
        )
        parts = _field_terms(step, log_ratio, advantages, trajectory, config)
        total = total + config.weight("policy", field) * parts["policy_loss"]
        for term in ("kl", "distillation"):
            if term in parts:
                total = total + config.weight(term, field) * parts[term]
        if weight := config.weight("entropy", field):
            total = total - weight * parts["entropy"]
        terms.update({f"{field}_{term}": value.detach() for term, value in parts.items()})
    return GRPOLoss(total, terms)


def _field_terms(
    step: FieldStep,
    log_ratio: Tensor,
    advantages: Tensor,
    trajectory: Trajectory,
    config: GRPOConfig,
) -> dict[str, Tensor]:
    """Unweighted terms of one field; events are reduced to structures as Appendix A says."""
    crystals = trajectory.final
    n_atoms = crystals.n_atoms.to(log_ratio.dtype)

    def total(events: Tensor) -> Tensor:
        """Sum over each structure's events: (k, events) to (k, B)."""
        if not step.per_atom:
            return events
        sums = events.new_zeros(len(events), len(crystals))
        return sums.index_add(1, crystals.batch, events)

    def average(events: Tensor) -> Tensor:
        return total(events) / n_atoms if step.per_atom else events

    mode = config.normalization
    per_atom_ratio = step.per_atom and mode == "per_atom_surrogate"
    if per_atom_ratio:
        weight = advantages[crystals.batch]
    else:
        log_ratio = total(log_ratio)
        divide = step.per_atom and mode == "per_structure_weight"
        weight = advantages / n_atoms if divide else advantages
    surrogate = clipped_surrogate(log_ratio, weight, config.clip_eps)
    log_ratio = log_ratio.detach()
    ratio = log_ratio.clamp(max=MAX_LOG_RATIO).exp()
    clipped = ((ratio - 1.0).abs() > config.clip_eps).to(ratio.dtype)
    approx_kl = ratio - 1.0 - log_ratio
    if per_atom_ratio:
        surrogate, clipped, approx_kl = average(surrogate), average(clipped), average(approx_kl)
    penalty = total if mode == "none" else average
    kl = step.policy.kl(step.reference)
    parts = {
        "policy_loss": -surrogate.mean(),
        "kl": penalty(kl).mean(),
        "clip_fraction": clipped.mean(),
        "ratio": ratio.mean(),
        "approx_kl": approx_kl.mean(),
        "entropy": average(step.policy.entropy()).mean(),
    }
    if step.drift_change is not None and step.drift_reference is not None:
        for name in ("drift_change", "drift_reference"):
            parts[name] = average(getattr(step, name).expand(kl.shape)).mean()
    if step.distillation is not None:
        parts["distillation"] = penalty(step.distillation).mean()
    return parts
