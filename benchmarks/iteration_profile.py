"""Where an iteration of each policy spends its time.

With the settings of the notebooks' presets `laptop`, of `envs.benchmark`, and of docs/few_steps.py
for the policies that no notebook trains. The network: its calls, what it needs of the pairs of
atoms, and the backward pass. The reward: its calls, with matching, potentials and hull. The rest is
the loop around them: integration, random numbers, guides, probabilities, advantages, the optimiser,
checks of what was generated, and the history.
"""

from __future__ import annotations

import contextlib
import itertools
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import irlkit
from benchmarks.common import parser, report, start
from irlkit import data, envs
from irlkit.evaluate.metrics import MatchPool
from irlkit.flows.schedules import (
    ConstantNoise,
    EndpointAnnealing,
    NoAnnealing,
    StateAnnealing,
)
from irlkit.lab import experiments
from irlkit.lab.experiments import denovo, latent
from irlkit.networks._pairs import PairFeatures, PairTopology
from irlkit.networks.latent_diffusion import LatentDiffusion
from irlkit.rewards import CRMSEReward, EnergyReward
from irlkit.rl import FewStepPolicy, GRPOTrainer, StateAnnealingPolicy, TrainerConfig
from irlkit.rl.policies import Policy

Run = Callable[[int], object]
"""Makes so many further iterations."""


class _Clock:
    """Seconds of kinds of calls; a call within another is a part of that."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._depth = 0

    def timed(self, kind: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timing(*args: Any, **kwargs: Any) -> Any:
            self._depth += 1
            began = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                self._depth -= 1
                if self._depth == 0:
                    self.seconds[kind] += time.perf_counter() - began

        return timing


@contextlib.contextmanager
def watched(clock: _Clock) -> Iterator[None]:
    """Time networks, backward passes and rewards while this is open."""
    places: list[tuple[Any, str, str]] = [
        (nn.Module, "__call__", "network"),
        (PairFeatures, "from_positions", "network"),
        (PairTopology, "from_n_atoms", "network"),
        (torch.Tensor, "backward", "network"),
        (GRPOTrainer, "_score", "reward"),
        (envs.Evaluator, "__call__", "reward"),
    ]
    before = [(owner, name, owner.__dict__[name]) for owner, name, _ in places]
    for owner, name, kind in places:
        call = owner.__dict__[name]
        if isinstance(call, classmethod):
            setattr(owner, name, classmethod(clock.timed(kind, call.__func__)))
        else:
            setattr(owner, name, clock.timed(kind, call))
    try:
        yield
    finally:
        for owner, name, call in before:
            setattr(owner, name, call)


def trained(policy: Any, reward: Any, requests: Any, config: TrainerConfig) -> Run:
    """Runs of a trainer, without validation."""
    trainer = GRPOTrainer(policy, reward, requests, config)
    return lambda n: trainer.run(trainer.iteration + n, progress=False)


def annealing(preset: str, folder: Path) -> Run:
    settings = experiments.resolve("annealing", preset)
    made = experiments.VelocityAnnealing(
        settings.checkpoint, settings.dataset, settings, out_dir=folder
    )
    return trained(made.policy(0), made.reward(), made.train, settings.config(0))


def by_energy(name: str, preset: str, folder: Path) -> Run:
    settings = experiments.resolve("energy", preset)
    made = experiments.EnergyReinforcement(
        settings.checkpoint, settings.dataset, settings, out_dir=folder
    )
    made.annealing = NoAnnealing()
    return trained(
        made.policy(name), EnergyReward(made.potential), made.train, settings.config(name, 0)
    )


def at_few_steps(kind: str, preset: str, folder: Path) -> Run:
    known = data.load("prototypes", "train", progress=False)
    model, rule = irlkit.load_pretrained("linear-ode"), EndpointAnnealing(10.0, 0.9)
    policy: Policy
    if kind == "few steps":
        noise = {"pos": ConstantNoise(0.1), "cell": ConstantNoise(0.3)}
        policy = FewStepPolicy(model, noise, annealing=rule, references=known, noise_share=0.05)
        settings: dict[str, Any] = {"n_groups": 64, "group_size": 4, "n_ppo_epochs": 2}
        settings |= {"minibatch_updates": 3, "advantages": "positive", "n_steps": (3, 5, 5, 10)}
    else:
        noise = {field: ConstantNoise(0.15) for field in ("pos", "cell")}
        policy = StateAnnealingPolicy(model, StateAnnealing(rule), noise)
        settings = {"n_groups": 16, "group_size": 16, "n_ppo_epochs": 4}
        settings |= {"n_steps": (3, 5, 5, 10, 20)}
    if preset == "quick":
        settings |= {"n_groups": 2, "group_size": 2}
    settings |= {"shared_x_0": True, "max_batch": 128, "max_minibatch": 640}
    config = TrainerConfig.from_settings(settings, 0)
    return trained(policy, CRMSEReward(known, MatchPool(0)), known, config)


def de_novo(latents: bool, preset: str, folder: Path) -> Run:
    model: Any
    if latents:
        model, size = LatentDiffusion.load("chemeleon-dit"), latent.SIZES[preset].of_latents()
    else:
        model, size = irlkit.load_pretrained("denovo-mask"), denovo.SIZES[preset]
    made = denovo.DeNovoReinforcement(size, model, folder, progress=False)
    trainer = made.trainer(denovo.REINFORCED, 0)
    return lambda n: trainer.run(trainer.iteration + n, progress=False)


def site_filling(property: str, target: float, preset: str, folder: Path) -> Run:
    evaluator, seeds = envs.Evaluator(property), itertools.count()
    n = 80  # five skeletons, groups of 16
    return lambda k: envs.benchmark(
        evaluator, target, algorithms=["GRPO"], seeds=[next(seeds)], evaluations=k * n, unseen=None,
        skeletons="train", progress=False,
    )  # fmt: skip


POLICIES: dict[str, Callable[[str, Path], Run]] = {
    "annealing": annealing,
    "score": partial(by_energy, "score-based"),
    "velocity": partial(by_energy, "velocity-based"),
    "few steps": partial(at_few_steps, "few steps"),
    "state annealing": partial(at_few_steps, "state annealing"),
    "discrete flow": partial(de_novo, False),
    "latent diffusion": partial(de_novo, True),
    "site filling, density": partial(site_filling, "density", 3.0),
    "site filling, bulk modulus": partial(site_filling, "bulk_modulus", 300.0),
}


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark."""
    known = parser(__doc__)
    known.add_argument("--policies", nargs="+", choices=POLICIES, default=list(POLICIES))
    options = known.parse_args(arguments)
    device = start(options)
    if device.type != "cpu" or options.clock != "wall":
        known.error("iterations are profiled on the CPU, by the wall clock")
    preset, n, rows = ("quick", 1, []) if options.quick else ("laptop", 3, [])
    with tempfile.TemporaryDirectory() as folder:
        for name in options.policies:
            run = POLICIES[name](preset, Path(folder) / name.replace(" ", "_"))
            run(1)
            clock = _Clock()
            with watched(clock):
                began = time.perf_counter()
                run(n)
                total = time.perf_counter() - began
            spent = {kind: clock.seconds[kind] for kind in ("network", "reward")}
            spent["rest"] = total - sum(spent.values())
            print(name, {kind: round(value, 2) for kind, value in spent.items()}, flush=True)
            rows.append(
                {
                    "case": name,
                    "seconds": total / n,
                    **{f"{kind}_share": seconds / total for kind, seconds in spent.items()},
                }
            )
    report("iteration_profile", rows, device)


if __name__ == "__main__":
    main()
