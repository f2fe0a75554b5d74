"""The PPO epochs of an iteration: minibatches, optimizer steps, and when to stop."""

from __future__ import annotations

import math
import timeit
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from irlkit.rl._communicator import Communicator
from irlkit.rl._memory import halve_until_it_fits, split_sizes
from irlkit.rl.config import TrainerConfig
from irlkit.rl.grpo import grpo_loss
from irlkit.rl.policies.base import Policy
from irlkit.rl.trajectory import Trajectory
from irlkit.utils.checks import checked

T = TypeVar("T")


@lru_cache(maxsize=1)
@torch.no_grad()
def _rate_of_bfloat16() -> float:
    """Measure how fast the processor multiplies matrices, over its rate in float32."""
    seconds = []
    for dtype in (torch.bfloat16, torch.float32):
        matrix = torch.ones(512, 512, dtype=dtype)
        # The first of four finds cold caches.
        seconds.append(min(timeit.repeat(partial(torch.mm, matrix, matrix), number=1, repeat=4)))
    return seconds[1] / seconds[0]


class PolicyUpdate:
    """Gradient steps on a trajectory.

    Args:
        policy: trained in place.
        optimizer: of its parameters.
        config: settings.
        generator: draws the time steps of an epoch, where it does not use all in order.
        communicator: combines gradients with those of other ranks; None: there are none.

    Attributes:
        max_minibatch: the bound on (step, structure) pairs per backward pass. It starts as the
            configuration's and is halved where the memory of the device is too small.
    """

    @checked
    def __init__(
        self,
        policy: Policy,
        optimizer: torch.optim.Optimizer,
        config: TrainerConfig,
        generator: torch.Generator,
        communicator: Communicator | None = None,
    ) -> None:
        self.policy = policy
        self.optimizer = optimizer
        self.config = config
        self.generator = generator
        self.max_minibatch = config.max_minibatch
        self.communicator = Communicator() if communicator is None else communicator
        if config.mixed_precision and next(policy.parameters()).device.type == "cpu":
            rate = _rate_of_bfloat16()
            if rate < 1:
                warnings.warn(
                    "mixed_precision=True: this processor multiplies matrices in bfloat16 "
                    f"{rate:.2g} times as fast as in float32, so that updates take longer; False "
                    "is better here",
                    stacklevel=2,
                )

    def __call__(self, trajectory: Trajectory, advantages: Tensor) -> dict[str, float]:
        """Update the policy.

        Args:
            trajectory: sampled by the policy as it is now.
            advantages: shape (B,) or (n_steps, B).

        Returns:
            Means over the updates of the loss's terms, of grad_norm (before clipping) and of
            clip_fraction (mean over fields); drift_ratio of each field, |b_theta - b_ref| / |b_ref|
            as the root of mean squares; approx_kl, the largest of any field and update, also of
            one that was not made because of it; and n_updates, those made.

        Raises:
            RuntimeError: a gradient is not finite.
        """
        config = self.config
        sample = _Sample(trajectory, advantages.to(trajectory.times))
        if config.mixed_precision:
            # A rollout computes in full precision. The ratio must start from 1, so that the old
            # probabilities are those that the updates see.
            sample = self._rescore(sample)
        parameters = list(self.policy.parameters())
        rows: list[dict[str, float]] = []
        largest_kl = 0.0
        indices, share = self._draw_steps(trajectory)
        for index in indices:
            terms = self._fit(sample, index, partial(self._gradient, share=share))
            terms = self.communicator.average_gradients(
                parameters, terms, sample.advantages.shape[-1]
            )
            kls = [value for name, value in terms.items() if name.endswith("approx_kl")]
            largest_kl = max(largest_kl, *kls)
            if rows and config.max_kl is not None and max(kls) > config.max_kl:
                self.optimizer.zero_grad()
                break
            limit = config.max_grad_norm
            norm = torch.nn.utils.clip_grad_norm_(parameters, limit, error_if_nonfinite=True)
            self.optimizer.step()
            rows.append({**terms, "grad_norm": float(norm)})
        means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
        for name in [name for name in means if name.endswith("_drift_change")]:
            of = name.removesuffix("_change")
            change, reference = means.pop(name), means.pop(f"{of}_reference")
            means[f"{of}_ratio"] = math.sqrt(change / reference) if reference else math.nan
        clipped = [value for name, value in means.items() if name.endswith("clip_fraction")]
        found = {"clip_fraction": float(np.mean(clipped)), "approx_kl": largest_kl}
        return {**found, "n_updates": len(rows), **means}

    def _draw_steps(self, trajectory: Trajectory) -> tuple[list[Tensor], float]:
        """The time steps of every update, one after the other; the share they are drawn from."""
        config, n_steps = self.config, trajectory.n_steps
        device = trajectory.times.device
        n_used = max(round(config.step_fraction * n_steps), 1)
        if n_used == n_steps and config.minibatch_updates == 1:
            return [torch.arange(n_steps, device=device)] * config.n_ppo_epochs, 1.0
        pool = self.policy.busy_steps(trajectory) if n_used < n_steps else None
        if pool is not None:  # The same for all ranks, which draw the same steps.
            pool = self.communicator.union(pool.cpu())
        if pool is None or not len(pool):
            pool = torch.arange(n_steps)
        n_used = max(round(config.step_fraction * len(pool)), 1)
        indices = [
            pool[index].to(device)
            for _ in range(config.n_ppo_epochs)
            for index in torch.randperm(len(pool), generator=self.generator)[:n_used].tensor_split(
                min(config.minibatch_updates, n_used)
            )
        ]
        return indices, len(pool) / n_steps

    def _gradient(self, minibatches: list[_Minibatch], share: float) -> dict[str, float]:
        """Gradient of the loss, accumulated, times a share; returns its terms."""
        self.optimizer.zero_grad()
        terms: dict[str, Tensor] = {}
        for part in minibatches:
            loss = grpo_loss(
                self.policy,
                part.trajectory,
                part.advantages,
                self.config.grpo,
                part.index,
                self.config.mixed_precision,
            )
            (share * part.share * loss.total).backward()
            for name, value in loss.terms.items():
                terms[name] = terms.get(name, 0.0) + part.share * value
        return {name: float(value) for name, value in terms.items()}

    def _rescore(self, sample: _Sample) -> _Sample:
        """The sample with the log-probabilities that an update computes before it changes anything.

        Those of the rollout may differ from them by rounding.
        """

        @torch.no_grad()
        def score(minibatches: list[_Minibatch]) -> dict[str, Tensor]:
            new = {name: x.clone() for name, x in sample.trajectory.log_probs.items()}
            for part in minibatches:
                mixed = self.config.mixed_precision
                inputs = part.trajectory.inputs(self.policy, part.index, mixed)
                for name, step in self.policy.steps(inputs).items():
                    events = part.structures
                    if step.scope == "atom":
                        events = sample.trajectory.request.atom_indices(events)
                    action = part.trajectory.actions[name][part.index]
                    new[name][part.index[:, None], events] = step.policy.log_prob(action)
            return new

        everything = torch.arange(sample.trajectory.n_steps, device=sample.advantages.device)
        log_probs = self._fit(sample, everything, score)
        return _Sample(replace(sample.trajectory, log_probs=log_probs), sample.advantages)

    def _fit(self, sample: _Sample, index: Tensor, compute: Callable[[list[_Minibatch]], T]) -> T:
        """``compute`` on minibatches of all structures at some steps, that fit in the memory."""
        result, self.max_minibatch = halve_until_it_fits(
            lambda limit: compute(sample.minibatches(index, limit)),
            self.max_minibatch,
            sample.advantages.shape[-1] * len(index),
            "max_minibatch",
            "(step, structure) pairs",
        )
        return result


@dataclass(frozen=True)
class _Minibatch:
    """Some steps of some structures.

    Attributes:
        trajectory: the episodes of the structures.
        advantages: theirs, shape (m,) or (n_steps, m).
        structures: their indices in the batch, shape (m,).
        index: the steps, shape (k,).
        share: of all pairs that are used; the shares sum to 1.
    """

    trajectory: Trajectory
    advantages: Tensor
    structures: Tensor
    index: Tensor
    share: float


@dataclass(frozen=True)
class _Sample:
    """A trajectory with advantages, and its parts as they were needed."""

    trajectory: Trajectory
    advantages: Tensor
    _parts: dict[int, list[tuple[Tensor, Trajectory]]] = field(default_factory=dict)

    def minibatches(self, index: Tensor, limit: int | None) -> list[_Minibatch]:
        """All structures at the steps of ``index`` (k,), at most ``limit`` pairs at a time."""
        n_structures = self.advantages.shape[-1]
        m, k = split_sizes(n_structures, len(index), limit)
        if m not in self._parts:
            everything = torch.arange(n_structures, device=self.advantages.device)
            self._parts[m] = [
                (s, self.trajectory if m == n_structures else self.trajectory.select(s))
                for s in everything.split(m)
            ]
        total = n_structures * len(index)
        return [
            _Minibatch(part, self.advantages[..., s], s, steps, len(s) * len(steps) / total)
            for s, part in self._parts[m]
            for steps in index.split(k)
        ]
