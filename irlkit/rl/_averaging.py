"""Averages of a policy's parameters over training."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from irlkit.rl.policies.base import Policy
from irlkit.utils.checks import checked


class ParameterAverage:
    """An exponential moving average of the parameters of a policy.

    Args:
        policy: whose parameters are trained.

    Attributes:
        values: name -> averaged parameter; its tensors are never changed in place.
    """

    @checked
    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.restart()

    def restart(self) -> None:
        """Take the parameters as they are now for the average."""
        self.values: dict[str, Tensor] = self._parameters()

    def _parameters(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in self.policy.named_parameters()}

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """Let a share ``decay`` of the average stay, the rest become the parameters."""
        self.values = {
            name: self.values[name].lerp(parameter, 1.0 - decay)
            for name, parameter in self.policy.named_parameters()
        }

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Inside the block, the policy has its averaged parameters; then its own again."""
        trained = self._parameters()
        try:
            self._set(self.values)
            yield
        finally:
            self._set(trained)

    @torch.no_grad()
    def _set(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self.policy.named_parameters():
            parameter.copy_(values[name])
