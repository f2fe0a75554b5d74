"""PPO, DQN, Rainbow and discrete SAC of tianshou 2, on the network that GRPO has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn

from irlkit.envs._baselines import Flat, FlatNetwork, Scorer, Settings, Spent, seeds_of_envs
from irlkit.envs.skeletons import Skeletons

_ATOMS = 51


class _Net(FlatNetwork):
    """A network as tianshou calls it.

    Args:
        skeletons: of the environment.
        n_elements: of its actions.
        kind: "actor" (returns a state as well), "critic" (one value), "q" or "distribution".
        support: of a distribution.
    """

    support: Tensor

    def __init__(
        self, skeletons: Skeletons, n_elements: int, kind: str, support: Tensor | None = None
    ) -> None:
        width = {"critic": 1, "distribution": n_elements * _ATOMS}.get(kind, n_elements)
        super().__init__(skeletons, n_elements, width)
        self.kind, self.n_elements = kind, n_elements
        self.register_buffer("support", support)

    def forward(self, obs: Any, state: Any = None, info: Any = None, **_: Any) -> Any:
        out = super().forward(obs)
        if self.kind == "distribution":
            out = self._distribution(out)
        return out if self.kind in ("critic", "q") else (out, state)

    def scores(self, out: Tensor) -> Tensor:
        return self._distribution(out) @ self.support if self.kind == "distribution" else out

    def _distribution(self, out: Tensor) -> Tensor:
        return out.unflatten(1, (self.n_elements, _ATOMS)).softmax(-1)


def train(
    name: str,
    make: Callable[[], gymnasium.Env],
    skeletons: Skeletons,
    n_elements: int,
    values: tuple[float, float],
    progress: Callable[[], float],
    seed: int,
    settings: Settings,
) -> nn.Module:
    """Train until an environment raises `Spent`; returns what scores the elements at a site.

    Args:
        name: "PPO", "DQN", "Rainbow" or "SAC".
        make: makes an environment.
        skeletons: of the environments.
        n_elements: of their actions.
        values: lowest and highest return, for Rainbow's support.
        progress: the share of the budget that is spent.
        seed: of networks, environments and actions.
        settings: of the algorithms.
    """
    from tianshou.data import Collector, PrioritizedVectorReplayBuffer, VectorReplayBuffer
    from tianshou.env import DummyVectorEnv
    from tianshou.trainer import OffPolicyTrainerParams, OnPolicyTrainerParams

    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002  # tianshou draws from it
    n = settings.n_envs
    envs = DummyVectorEnv([lambda: Flat(make()) for _ in range(n)])
    envs.seed(seeds_of_envs(seed, n))
    algorithm, scorer = _algorithm(name, skeletons, n_elements, values, settings, envs)
    common: dict[str, Any] = {
        "max_epochs": 10**6,
        "epoch_num_steps": 10**4,
        "test_collector": None,
        "verbose": False,
        "show_progress": False,
    }
    params: Any
    if name == "PPO":
        collector = Collector(algorithm, envs, VectorReplayBuffer(4096, n))
        params = OnPolicyTrainerParams(
            **common,
            training_collector=collector,
            collection_step_num_env_steps=512,
            batch_size=128,
            update_step_num_repetitions=4,
        )
    else:
        sizes = 20_000, n
        buffer: Any = VectorReplayBuffer(*sizes)
        if name == "Rainbow":
            buffer = PrioritizedVectorReplayBuffer(*sizes, alpha=0.6, beta=0.4)
        collector = Collector(algorithm, envs, buffer, exploration_noise=name != "SAC")

        def explore(*_: int) -> None:
            if name != "SAC":
                algorithm.policy.set_eps_training(settings.epsilon(progress()))

        explore()
        params = OffPolicyTrainerParams(
            **common,
            training_collector=collector,
            collection_step_num_env_steps=4 * n,
            batch_size=settings.batch_size,
            update_step_num_gradient_steps_per_sample=0.25,
            training_fn=explore,
        )
    try:
        collector.reset()
        algorithm.run_training(params)
    except Spent:
        pass
    finally:
        envs.close()
    return scorer


def _algorithm(
    name: str,
    skeletons: Skeletons,
    n_elements: int,
    values: tuple[float, float],
    settings: Settings,
    envs: Any,
) -> tuple[Any, nn.Module]:
    from tianshou.algorithm import DQN, PPO, DiscreteSAC, RainbowDQN
    from tianshou.algorithm.modelfree.c51 import C51Policy
    from tianshou.algorithm.modelfree.discrete_sac import DiscreteSACPolicy
    from tianshou.algorithm.modelfree.dqn import DiscreteQLearningPolicy
    from tianshou.algorithm.modelfree.reinforce import ProbabilisticActorPolicy
    from tianshou.algorithm.optim import AdamOptimizerFactory

    space: Any = envs.action_space[0]

    def net(kind: str, support: Tensor | None = None) -> _Net:
        return _Net(skeletons, n_elements, kind, support)

    def adam() -> Any:
        return AdamOptimizerFactory(settings.learning_rate)

    if name == "PPO":
        actor = net("actor")
        policy = ProbabilisticActorPolicy(
            actor=actor,
            dist_fn=lambda logits: torch.distributions.Categorical(logits=logits),
            action_space=space,
            action_scaling=False,
            action_bound_method=None,
        )
        ppo = PPO(
            policy=policy, critic=net("critic"), optim=adam(), ent_coef=0.02, max_grad_norm=1.0,
            gamma=1.0,
        )  # fmt: skip
        return ppo, Scorer(actor, 1.0)
    if name == "DQN":
        q = net("actor")
        of_q = DiscreteQLearningPolicy(model=q, action_space=space)
        return DQN(policy=of_q, optim=adam(), gamma=1.0, target_update_freq=100), Scorer(q, 1e4)
    if name == "Rainbow":
        support = torch.linspace(*values, _ATOMS)
        model = net("distribution", support)
        c51 = C51Policy(
            model=model, action_space=space, num_atoms=_ATOMS, v_min=values[0], v_max=values[1]
        )
        rainbow = RainbowDQN(
            policy=c51, optim=adam(), gamma=1.0, n_step_return_horizon=3, target_update_freq=100
        )
        return rainbow, Scorer(model, 1e4)
    actor = net("actor")
    sac = DiscreteSAC(
        policy=DiscreteSACPolicy(actor=actor, action_space=space),
        policy_optim=adam(),
        critic=net("q"),
        critic_optim=adam(),
        critic2=net("q"),
        critic2_optim=adam(),
        gamma=1.0,
        alpha=settings.alpha,
    )
    return sac, Scorer(actor, 1.0)
