"""Group-relative policy optimisation: advantages, loss and their settings (section 2.3).

Everything here is a pure function of a trajectory; ``irlkit.rl.trainer`` iterates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from irlkit.rl.policies.base import FieldStep, Policy
from irlkit.rl.trajectory import Trajectory
from irlkit.utils.checks import checked, is_number

ADVANTAGES = ("standard", "median", "ranks", "leave_one_out", "positive")
NORMALIZATIONS = ("per_atom_surrogate", "per_structure_weight", "none")
WEIGHTS = ("policy_weight", "kl_weight", "distillation_weight", "entropy_weight")
MAX_LOG_RATIO = 20.0


@checked
def group_advantages(rewards: Tensor, group_size: int, kind: str = "standard") -> Tensor:
    """Compare rewards with their group.

    In a group of G, no standard score exceeds sqrt(G - 1): one very bad structure makes the others
    look alike. The other kinds keep them apart.

    Args:
        rewards: shape (n_groups * group_size,), groups adjacent.
        group_size: structures per group, at least 2.
        kind: "standard", (r - mean) / (std + 1e-8) with the population's std (Eq. 9); "median",
            (r - median) / (1.4826 median absolute deviation + 1e-8), clipped to -3 to 3; "ranks",
            the standard scores of the ranks; "leave_one_out", r minus the mean of the others; or
            "positive", the standard scores above 0, 0 for others: the better ones are followed, and
            nothing is fled from.

    Returns:
        Same shape; exactly zero in a group whose rewards are all equal.

    Raises:
        ValueError: ``group_size`` < 2, it does not divide the number of rewards, or another kind.

    >>> group_advantages(torch.tensor([1.0, 3.0, 5.0, 5.0]), 2)
    tensor([-1.,  1.,  0.,  0.])
    >>> group_advantages(torch.tensor([0.0, 1.0, 2.0, -60.0]), 4, "ranks")
    tensor([-0.4472,  0.4472,  1.3416, -1.3416])
    """
    check_group_size(group_size)
    if kind not in ADVANTAGES:
        raise ValueError(f"kind must be one of {ADVANTAGES}, got {kind!r}")
    if rewards.ndim != 1 or len(rewards) % group_size:
        raise ValueError(
            f"rewards must have shape (n_groups * group_size,) with a group_size of {group_size}, "
            f"got {tuple(rewards.shape)}"
        )
    groups = rewards.reshape(-1, group_size)
    if kind == "median":
        # Between the two in the middle of an even group, as everywhere else.
        centered = groups - groups.quantile(0.5, dim=1, keepdim=True)
        deviation = 1.4826 * centered.abs().quantile(0.5, dim=1, keepdim=True)
        scaled = (centered / (deviation + 1e-8)).clamp(-3.0, 3.0)
    else:
        if kind == "ranks":  # Equal rewards share the mean of their ranks.
            below = (groups[:, :, None] > groups[:, None, :]).sum(-1)
            groups = (below - (groups[:, :, None] < groups[:, None, :]).sum(-1)).to(groups.dtype)
        centered = groups - groups.mean(dim=1, keepdim=True)
        if kind == "leave_one_out":
            scaled = centered * (group_size / (group_size - 1))
        else:
            scaled = centered / (groups.std(dim=1, keepdim=True, correction=0) + 1e-8)
    if kind == "positive":
        scaled = scaled.clamp(min=0.0)
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
    """Return PPO's objective per element: min(q A, clip(q, 1 - eps, 1 + eps) A) (Eq. 10).

    Args:
        log_ratio: ln q = log pi_theta - log pi_old, any shape.
        advantages: A, broadcasts against ``log_ratio``; no gradient.
        clip_eps: clip half-width, positive.

    Returns:
        Shape of ``log_ratio``.

    Raises:
        ValueError: clip_eps <= 0.

    >>> log_ratio = torch.tensor([0.0, 1.0, -1.0])
    >>> clipped_surrogate(log_ratio, torch.tensor(1.0), clip_eps=0.2)
    tensor([1.0000, 1.2000, 0.3679])
    """
    if not clip_eps > 0:
        raise ValueError(f"clip_eps must be positive, got {clip_eps!r}")
    # A ratio beyond e^20 is clipped or hopeless; its exponential could overflow and with it the
    # gradient of everything else.
    ratio = log_ratio.clamp(max=MAX_LOG_RATIO).exp()
    return torch.minimum(ratio * advantages, ratio.clamp(1 - clip_eps, 1 + clip_eps) * advantages)


@dataclass(frozen=True)
class GRPOConfig:
    """What is optimised. The defaults suit an annealing (Appendix F has the search space).

    A weight is one number for all fields or a mapping from field to number.

    Attributes:
        clip_eps: PPO clip half-width; one number, or field -> number (0.3 for one that is not
            named). About 0.2 suits species.
        advantages: how rewards compare with their group; see ``group_advantages``.
        policy_weight: weight of the surrogate (10).
        kl_weight: weight of the KL to the reference policy (11).
        distillation_weight: weight of the denoiser distillation (12).
        entropy_weight: weight of a bonus for the entropy of the actions, which keeps a noise that
            is learned from vanishing.
        normalization: for per-atom events (Appendix A). "per_atom_surrogate": ratios per atom,
            their surrogates averaged; "per_structure_weight": ratios per structure, advantages
            divided by the number of atoms; "none": ratios per structure, KL summed over atoms.
    """

    clip_eps: float | Mapping[str, float] = 0.3
    advantages: str = "standard"
    policy_weight: float | Mapping[str, float] = 1.0
    kl_weight: float | Mapping[str, float] = 0.0
    distillation_weight: float | Mapping[str, float] = 0.0
    entropy_weight: float | Mapping[str, float] = 0.0
    normalization: str = "per_atom_surrogate"

    def __post_init__(self) -> None:
        clips = self.clip_eps
        for clip in clips.values() if isinstance(clips, Mapping) else [clips]:
            if not is_number(clip) or not clip > 0:
                raise ValueError(f"clip_eps must be positive, got {clips!r}")
        for name in WEIGHTS:
            value = getattr(self, name)
            values = list(value.values()) if isinstance(value, Mapping) else [value]
            if not all(map(is_number, values)):
                raise ValueError(f"{name} must be a finite number, got {value!r}")
            if any(number < 0 for number in values):
                raise ValueError(f"{name} must not be negative, got {value!r}")
        for name, choices in (("advantages", ADVANTAGES), ("normalization", NORMALIZATIONS)):
            value = getattr(self, name)
            if value not in choices:
                raise ValueError(f"{name} must be one of {choices}, got {value!r}")

    def weight(self, term: str, field: str) -> float:
        """Return the weight of "policy", "kl", "distillation" or "entropy" for a field, or 0."""
        return _of_field(getattr(self, f"{term}_weight"), field, 0.0)


def _of_field(setting: float | Mapping[str, float], field: str, default: float) -> float:
    """Return a setting for a field: one number for all, or that of the field in a mapping."""
    return float(setting.get(field, default) if isinstance(setting, Mapping) else setting)


@dataclass(frozen=True)
class GRPOLoss:
    """A loss and its parts.

    Attributes:
        total: weighted sum to be minimised, a scalar with gradient.
        terms: "{field}_{term}" -> mean over steps and structures, a detached scalar, for the terms
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
    mixed_precision: bool = False,
) -> GRPOLoss:
    """Compute minus the sum over fields of Eqs. (10), (11), (12), averaged over steps, structures.

    A bonus for the entropy of the actions can be added, for noise that is learned.

    Args:
        policy: scored with gradient.
        trajectory: sampled by the old policy.
        advantages: shape (B,), the same for all steps of a trajectory, or (n_steps, B).
        config: weights, clip width and normalisation.
        index: steps to use, shape (k,); None takes all.
        mixed_precision: the trained network computes in bfloat16.

    Raises:
        ValueError: advantages of another shape.

    >>> import irlkit
    >>> from irlkit.rl import AnnealingPolicy, rollout
    >>> policy = AnnealingPolicy(irlkit.load_pretrained("linear-ode"))
    >>> request = irlkit.CrystalBatch.from_formulas(["NaCl"]).repeat(4)
    >>> generator = torch.Generator().manual_seed(0)
    >>> x_0 = policy.process.initial(request, generator)
    >>> trajectory = rollout(policy, x_0, 3, generator)
    >>> advantages = group_advantages(trajectory.final.volume.double(), 4)
    >>> loss = grpo_loss(policy, trajectory, advantages, GRPOConfig())
    >>> abs(loss.total.item()) < 1e-6  # All ratios are 1, and advantages add up to 0.
    True
    """
    n_structures = len(trajectory.request)
    if advantages.shape not in ((n_structures,), (trajectory.n_steps, n_structures)):
        raise ValueError(
            f"advantages must have shape ({n_structures},) or ({trajectory.n_steps}, "
            f"{n_structures}), got {tuple(advantages.shape)}"
        )
    if index is None:
        index = torch.arange(trajectory.n_steps, device=trajectory.times.device)
    advantages = advantages.to(trajectory.times)
    if advantages.ndim == 2:
        advantages = advantages[index]
    total = trajectory.times.new_zeros(())
    terms = {}
    inputs = trajectory.inputs(policy, index, mixed_precision)
    for field, step in policy.steps(inputs).items():
        action = trajectory.actions[field][index]
        ours, reference = (d.given(action) for d in (step.policy, step.reference))
        step = replace(step, policy=ours, reference=reference)
        log_ratio = step.policy.log_prob(action) - trajectory.log_probs[field][index]
        clip_eps = _of_field(config.clip_eps, field, 0.3)
        mode = config.normalization
        parts = _field_terms(step, log_ratio, advantages, trajectory, clip_eps, mode)
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
    clip_eps: float,
    mode: str,
) -> dict[str, Tensor]:
    """Unweighted terms of one field; events are reduced to structures as Appendix A says."""
    batch = trajectory.request.batch
    n_atoms = trajectory.request.n_atoms.to(log_ratio.dtype)
    per_atom = step.scope == "atom"

    def total(events: Tensor) -> Tensor:
        """Sum over each structure's events: (k, events) to (k, B)."""
        if not per_atom:
            return events
        sums = events.new_zeros(len(events), len(n_atoms))
        return sums.index_add(1, batch, events)

    n_events = n_atoms if step.n_events is None else step.n_events.to(n_atoms)

    def average(events: Tensor) -> Tensor:
        return total(events) / n_events if per_atom else events

    per_atom_ratio = per_atom and mode == "per_atom_surrogate"
    if per_atom_ratio:
        weight = advantages[..., batch]
    else:
        log_ratio = total(log_ratio)
        divide = per_atom and mode == "per_structure_weight"
        weight = advantages / n_atoms if divide else advantages
    surrogate = clipped_surrogate(log_ratio, weight, clip_eps)
    log_ratio = log_ratio.detach()
    ratio = log_ratio.clamp(max=MAX_LOG_RATIO).exp()
    clipped = ((ratio - 1.0).abs() > clip_eps).to(ratio.dtype)
    approx_kl = ratio - 1.0 - log_ratio
    if per_atom_ratio:
        if step.n_events is not None:  # Of those whose ratio is always 1, nothing is counted.
            surrogate = average(surrogate - weight) + advantages
            ratio = 1.0 + average(ratio - 1.0)
        else:
            surrogate = average(surrogate)
        clipped, approx_kl = average(clipped), average(approx_kl)
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
