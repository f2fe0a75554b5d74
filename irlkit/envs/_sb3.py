"""PPO and DQN of stable-baselines3, on the network that GRPO has."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import gymnasium
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv
from stable_baselines3.dqn.policies import DQNPolicy, QNetwork
from torch import nn

from irlkit.envs._baselines import Flat, FlatNetwork, Scorer, Settings, Spent, seeds_of_envs
from irlkit.envs.skeletons import Skeletons


class _ActorCritic(ActorCriticPolicy):
    """Two networks that see the observations themselves; `net` makes one."""

    action_net: Any
    value_net: Any
    optimizer_class: Any

    def __init__(self, *args: Any, net: Callable[..., FlatNetwork], **options: Any) -> None:
        self.net = net
        super().__init__(*args, **options)

    def _build(self, lr_schedule: Any) -> None:
        self._build_mlp_extractor()
        self.action_net, self.value_net = self.net(), self.net(1)
        self.optimizer = self.optimizer_class(
            self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs
        )


class _Q(DQNPolicy):
    """A network and its target that see the observations themselves; `net` makes one."""

    def __init__(self, *args: Any, net: Callable[..., FlatNetwork], **options: Any) -> None:
        self.net = net
        super().__init__(*args, **options)

    def make_q_net(self) -> QNetwork:
        made: Any = super().make_q_net()
        made.q_net = self.net()
        return made


class _Envs(DummyVecEnv):
    """Environments whose seeds do not count on from that of the run."""

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        if seed is None:
            return super().seed()
        self._seeds = [*seeds_of_envs(seed, self.num_envs)]
        return self._seeds


def train(
    name: str,
    make: Callable[[], gymnasium.Env],
    skeletons: Skeletons,
    n_elements: int,
    progress: Callable[[], float],
    seed: int,
    settings: Settings,
) -> nn.Module:
    """Train until an environment raises `Spent`; returns what scores the elements at a site.

    Args:
        name: "PPO (sb3)" or "DQN (sb3)".
        make: makes an environment.
        skeletons: of the environments.
        n_elements: of their actions.
        progress: the share of the budget that is spent.
        seed: of networks, environments and actions.
        settings: of the algorithms.
    """
    n = settings.n_envs
    envs = _Envs([lambda: Flat(make()) for _ in range(n)])
    common: dict[str, Any] = {
        "env": envs,
        "learning_rate": settings.learning_rate,
        "gamma": 1.0,
        "seed": seed,
        "device": "cpu",
        "verbose": 0,
    }
    # Without layers, what the library puts before the networks is the identity.
    policy: dict[str, Any] = {"net": partial(FlatNetwork, skeletons, n_elements), "net_arch": []}
    agent: Any
    if name == "PPO (sb3)":
        # Adam's own eps: the library has another one for PPO.
        policy["optimizer_kwargs"] = {"eps": 1e-8}
        agent = PPO(
            _ActorCritic, n_steps=-(-512 // n), batch_size=128, n_epochs=4, ent_coef=0.02,
            max_grad_norm=1.0, policy_kwargs=policy, **common,
        )  # fmt: skip
        scorer = Scorer(agent.policy.action_net, 1.0)
    else:
        # A gradient step per four steps of an environment, a new target every 100 of them. Unlike
        # tianshou, it draws once for all environments whether they explore.
        agent = DQN(
            _Q, buffer_size=20_000, learning_starts=0, batch_size=settings.batch_size,
            train_freq=4, gradient_steps=n, target_update_interval=400, max_grad_norm=math.inf,
            policy_kwargs=policy, **common,
        )  # fmt: skip
        # Its own schedule counts steps; the budget counts evaluations.
        agent.exploration_schedule = lambda _: settings.epsilon(progress())
        agent.exploration_rate = settings.epsilon(0.0)
        scorer = Scorer(agent.q_net.q_net, 1e4)
    # The logger that `learn` would make leaves a temporary folder behind.
    agent.set_logger(Logger(None, []))
    try:
        agent.learn(10**9)
    except Spent:
        pass
    finally:
        envs.close()
    return scorer
