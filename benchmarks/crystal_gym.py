"""Episodes per second of a random agent in CrystalGym's vector environment.

Density, and bulk moduli by CHGNet, of which none is in the cache: each repeat begins with an empty
one and another seed. What is counted are finished episodes, with observations, masks and rewards.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from benchmarks.common import in_turns, parser, report, start
from irlkit.envs import EvaluationCache, Evaluator, get_backend
from irlkit.envs._crystal_gym import CrystalGymVector


def make_agent(
    property: str, target: float, backend: Any, num_envs: int, n_steps: int, episodes: list[int]
) -> Callable[[], None]:
    """Return what lets a random agent make so many steps in each of the environments."""
    evaluator = Evaluator(property, backend)
    env = CrystalGymVector(num_envs, evaluator, target, skeletons="all")
    seeds = itertools.count()

    def run() -> None:
        evaluator.cache.close()
        evaluator.cache = EvaluationCache()
        seed = next(seeds)
        env.reset(seed=seed)
        env.action_space.seed(seed)
        episodes.append(0)
        for _ in range(n_steps):
            episodes[-1] += int(env.step(env.action_space.sample())[2].sum())

    return run


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark."""
    options = parser(__doc__).parse_args(arguments)
    device = start(options)
    backend = get_backend("chgnet")
    rows = []
    for property, target, mark, n, n_steps in (
        ("density", 3.0, 1000.0, 1024, 60),
        ("bulk_modulus", 300.0, 70.0, 256, 12),
    ):
        n, n_steps = (4, 9) if options.quick else (n, n_steps)
        episodes: list[int] = []
        run = make_agent(property, target, backend, n, n_steps, episodes)
        budget = (device, options.repeats, options.seconds, options.clock)
        seconds = in_turns({property: run}, *budget)[property]
        finished = sorted(episodes)[len(episodes) // 2]
        rows.append(
            {
                "case": f"{property}, {n} environments",
                "episodes_per_second": finished / seconds,
                "mark": mark,
                "seconds": seconds,
                "episodes": finished,
            }
        )
    report("crystal_gym", rows, device)


if __name__ == "__main__":
    main()
