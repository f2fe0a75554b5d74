"""What the algorithms of other libraries share: observations, a network, settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from irlkit.envs._graphs import SiteNetwork
from irlkit.envs.skeletons import Skeletons
from irlkit.utils.checks import check_count, check_finite


class Spent(Exception):
    """The budget of evaluations is spent."""


@dataclass(frozen=True)
class Settings:
    """Of the baselines.

    Attributes:
        learning_rate: of Adam, all algorithms.
        alpha: SAC's temperature.
        n_envs: environments that take turns.
        batch_size: of an update.
        exploration: share of the budget over which epsilon falls from 1 to 0.02.

    Raises:
        ValueError: a number out of its range.
    """

    learning_rate: float = 1e-3
    alpha: float = 0.2
    n_envs: int = 8
    batch_size: int = 64
    exploration: float = 0.3

    def __post_init__(self) -> None:
        for name in ("learning_rate", "alpha", "exploration"):
            check_finite(name, getattr(self, name), above=0)
        for name in ("n_envs", "batch_size"):
            check_count(name, getattr(self, name))

    def epsilon(self, spent: float) -> float:
        """Return the share of random actions where this share of the budget is spent."""
        return max(1.0 - spent / self.exploration, 0.02)


def seeds_of_envs(seed: int, n: int) -> list[int]:
    """Return seeds of n environments, which runs of neighbouring seeds do not share."""
    return np.random.SeedSequence(seed).generate_state(n).tolist()


class Flat(gymnasium.ObservationWrapper):
    """Observations as one vector: skeleton, focus, target, species; the graph is the network's."""

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        n = 3 + env.observation_space["species"].shape[0]  # type: ignore[index]
        self.observation_space = spaces.Box(0, 1e4, (n,), np.float32)

    def observation(self, observation: Any) -> np.ndarray:
        first = [observation["skeleton"], observation["focus"], observation["target"][0]]
        return np.concatenate([first, observation["species"]]).astype(np.float32)

    def reset(self, **options: Any) -> tuple[np.ndarray, dict[str, Any]]:
        return super().reset(**options)[0], {}

    def step(self, action: Any) -> tuple[np.ndarray, Any, bool, bool, dict[str, Any]]:
        # Buffers want the same entries of every step.
        return *super().step(action)[:4], {}


class FlatNetwork(nn.Module):
    """A `SiteNetwork` for flat observations.

    Args:
        skeletons: of the environment.
        n_elements: of its actions.
        n_outputs: numbers per observation; None for one per element.
    """

    def __init__(self, skeletons: Skeletons, n_elements: int, n_outputs: int | None = None) -> None:
        super().__init__()
        self.network = SiteNetwork(skeletons, n_elements, n_outputs)

    def forward(self, obs: Any) -> Any:
        x = torch.as_tensor(obs, dtype=torch.float32)
        skeleton, focus, species = x[:, 0].long(), x[:, 1].long(), x[:, 3:].long()
        return self.network(skeleton, species, focus, torch.log1p(x[:, 2]) / 3)

    def scores(self, out: Tensor) -> Tensor:
        """Return one number per element, from what the network gave."""
        return out


class Scorer(nn.Module):
    """Logits of a trained network as `SiteFillingPolicy` asks for them."""

    def __init__(self, net: FlatNetwork, scale: float) -> None:
        super().__init__()
        self.net, self.scale = net, scale

    def look_at(self, skeletons: Skeletons) -> None:
        self.net.network.look_at(skeletons)

    def forward(self, skeleton: Tensor, species: Tensor, focus: Tensor, target: Tensor) -> Tensor:
        return self.scale * self.net.scores(self.net.network(skeleton, species, focus, target))
