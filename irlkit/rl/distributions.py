"""Distributions that actions are drawn from: k steps of all events of a batch at once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor

from irlkit.flows._categorical import Categorical
from irlkit.utils.draws import Draws, standard_normal

__all__ = ["ActionDistribution", "Categorical", "Gaussian"]


class ActionDistribution(Protocol):
    """What a rollout and a loss need of a distribution over actions."""

    def sample(self, draws: Draws) -> Tensor:
        """Draw one action, shape (k, events, ...)."""

    def log_prob(self, action: Tensor) -> Tensor:
        """Return the log-probability (density) of each event, shape (k, events)."""

    def kl(self, other: Self) -> Tensor:
        """Return the KL divergence of each event from ``other``, shape (k, events)."""

    def entropy(self) -> Tensor:
        """Return the entropy of each event, shape (k, events)."""

    def given(self, action: Tensor) -> Self:
        """Return it as it is when an action (k, events, ...) is taken.

        Only distributions whose events draw one after the other depend on it.
        """
        return self


@dataclass(frozen=True)
class Gaussian(ActionDistribution):
    """Independent normal numbers that form events.

    Attributes:
        mean: shape (k, events, ...), k steps at once.
        std: standard deviation of one step, broadcasts against ``mean``.
        event_dims: how many trailing dimensions of ``mean`` form one event: 0 for a scalar, 1 for
            an atom's coordinates, 2 for a cell.

    >>> policy = Gaussian(torch.zeros(1, 2, 3), torch.ones(1, 1, 1), event_dims=1)
    >>> policy.log_prob(torch.zeros(1, 2, 3)).shape
    torch.Size([1, 2])
    """

    mean: Tensor
    std: Tensor
    event_dims: int

    def sample(self, draws: Draws) -> Tensor:
        """Draw an action of the shape of ``mean``."""
        return self.mean + self.std * standard_normal(self.mean, draws)

    def log_prob(self, action: Tensor) -> Tensor:
        """Return the log-density of each event, (k, events): summed over the event's numbers."""
        z = (action - self.mean) / self.std
        return self._sum(-0.5 * z.square() - torch.log(self.std) - 0.5 * math.log(2.0 * math.pi))

    def kl(self, other: Gaussian) -> Tensor:
        """Return the KL divergence of each event from ``other``, shape (k, events).

        For a step of size dt it is, per number and with db the difference of the drifts,
        ln(sigma_ref / sigma) + (sigma^2 + db^2 dt) / (2 sigma_ref^2) - 1/2.
        """
        scaled = (self.std.square() + (self.mean - other.mean).square()) / other.std.square()
        return self._sum(torch.log(other.std / self.std) + 0.5 * scaled - 0.5)

    def entropy(self) -> Tensor:
        """Return the entropy of each event, shape (k, events)."""
        each = torch.log(self.std) + 0.5 * math.log(2.0 * math.pi * math.e)
        return self._sum(each.expand_as(self.mean))

    def _sum(self, value: Tensor) -> Tensor:
        return value.flatten(value.ndim - self.event_dims).sum(-1) if self.event_dims else value
