"""One of several classes for every event: what discrete flows and policies draw from."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from irlkit.utils.draws import Draws, uniform


@dataclass(frozen=True)
class Categorical:
    """One of S classes for every event.

    Attributes:
        logits: shape (k, events, S), in any normalisation; minus infinity forbids a class.

    >>> import torch
    >>> policy = Categorical(torch.tensor([[[0.0, 0.0, -torch.inf]]]))
    >>> policy.entropy().exp().item()
    2.0
    """

    logits: Tensor

    def log_probs(self) -> Tensor:
        """Return the log-probabilities of all classes, shape (k, events, S)."""
        return self.logits.log_softmax(-1)

    def sample(self, draws: Draws) -> Tensor:
        """Draw a class per event, int64, shape (k, events)."""
        return self.at_quantile(uniform(self.logits[..., :1], draws)[..., 0])

    def given(self, action: Tensor) -> Categorical:
        """Return itself, whatever action is taken."""
        return self

    def at_quantile(self, u: Tensor) -> Tensor:
        """Return the class of each event where its cumulative probability exceeds u in [0, 1).

        Args:
            u: uniform numbers, shape (k, events); then the class is drawn.
        """
        cumulative = self.log_probs().exp().cumsum(-1)
        u = u[..., None] * cumulative[..., -1:]
        # Of equal cumulative sums the first, so that a class of probability 0 is never drawn.
        return (cumulative <= u).sum(-1).clamp(max=self.logits.shape[-1] - 1)

    def log_prob(self, action: Tensor) -> Tensor:
        """Return the log-probability of the class of each event, shape (k, events)."""
        return self.log_probs().gather(-1, action.unsqueeze(-1)).squeeze(-1)

    def kl(self, other: Categorical) -> Tensor:
        """Return the KL divergence of each event from ``other``, shape (k, events)."""
        ours = self.log_probs()
        return _expectation(ours, ours - other.log_probs())

    def entropy(self) -> Tensor:
        """Return the entropy of each event in nats, shape (k, events)."""
        ours = self.log_probs()
        return _expectation(ours, -ours)


def _expectation(log_probs: Tensor, values: Tensor) -> Tensor:
    """Mean of ``values`` where the probability is not 0 (there they may be infinite or nan)."""
    possible = log_probs > -float("inf")
    safe = values.masked_fill(~possible, 0.0)
    return (log_probs.masked_fill(~possible, 0.0).exp() * possible * safe).sum(-1)
