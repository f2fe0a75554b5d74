"""Seconds of training until a validation reward, for the settings that cost or save time.

The policies, rewards and sizes are those of notebooks 04 (annealing, cRMSE) and 03 (velocity,
energy); one setting is changed at a time. The reward to reach lies four fifths of the way from the
start to the best that the unchanged settings reach. Rollouts, rewards and updates count, validation
does not. One seed, and the first part of a run (``--iterations``), so that all of it takes about
eleven minutes on two cores: differences of a third mean little. The last case is the baseline of
the other benchmarks: the edge-list network, all time steps.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pandas as pd
import torch

from benchmarks.common import parser, report, start
from benchmarks.edge_list import with_edge_list
from irlkit.data import load
from irlkit.flows.schedules import ConstantNoise, LearnedAnnealing, SquareRootNoise
from irlkit.lab.experiments import presets
from irlkit.networks.pretrained import load_pretrained
from irlkit.rewards import CRMSEReward, EnergyReward, Reward
from irlkit.rl.config import TrainerConfig
from irlkit.rl.policies import AnnealingPolicy, Policy, VelocityPolicy
from irlkit.rl.trainer import GRPOTrainer

PROGRESS = 0.8
ITERATIONS = {"annealing": 40, "velocity": 20}
LEVERS: dict[str, dict[str, dict[str, Any]]] = {
    "annealing": {
        "as in notebook 04": {},
        "2 PPO epochs": {"n_ppo_epochs": 2},
        "16 PPO epochs": {"n_ppo_epochs": 16},
        "half the groups": {"n_groups": presets("annealing")["laptop"].config(0).n_groups // 2},
    },
    "velocity": {
        "as in notebook 03": {},
        "all time steps": {"step_fraction": 1.0},
        "a tenth of the time steps": {"step_fraction": 0.1},
        "2 updates per epoch": {"minibatch_updates": 2},
        "bfloat16": {"mixed_precision": True},
        "edge list, all time steps": {"step_fraction": 1.0},
    },
}


def make_policy(name: str, edge_list: bool, device: torch.device) -> Policy:
    """The policy of the notebook, untrained; its network may be the baseline's."""
    model = load_pretrained("linear-ode", device).requires_grad_(False)
    if edge_list:
        model = with_edge_list(model).requires_grad_(False)
    if name == "annealing":
        generator = torch.Generator().manual_seed(0)
        annealing = LearnedAnnealing(
            **presets("annealing")["laptop"].annealing, generator=generator
        )
        scales = presets("annealing")["laptop"].noise
        return AnnealingPolicy(model, annealing, {f: ConstantNoise(scales[f]) for f in scales})
    preset = presets("energy")["laptop"]
    scales = preset.noise["medium"]
    return VelocityPolicy(model, {f: SquareRootNoise(scales[f]) for f in preset.fields})


def train(
    name: str,
    edge_list: bool,
    config: TrainerConfig,
    iterations: int,
    data: dict[str, Any],
    device: torch.device,
) -> pd.DataFrame:
    """Validation rewards and the seconds of training before them."""
    validation = data["val"].subset(config.validation_size)
    reward: Reward
    validation_reward: Reward
    if name == "annealing":
        reward, validation_reward = CRMSEReward(data["train"]), CRMSEReward(validation)
    else:
        reward = EnergyReward("chgnet", config.group_size)
        validation_reward = EnergyReward("chgnet", clip=math.inf, references=validation)
    with reward, validation_reward:
        trainer = GRPOTrainer(
            make_policy(name, edge_list, device),
            reward,
            data["train"],
            config,
            validation=validation,
            validation_reward=validation_reward,
        )
        history = trainer.run(iterations, progress=False)
    parts = history[["rollout_seconds", "reward_seconds", "update_seconds"]]
    history["seconds"] = parts.sum(axis=1).cumsum()
    return history[["iteration", "seconds", "validation_reward"]].dropna()


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark."""
    known = parser(__doc__)
    known.add_argument("--policies", nargs="+", choices=LEVERS, default=list(LEVERS))
    known.add_argument("--iterations", type=int, help=f"default: {ITERATIONS}")
    known.add_argument("--seed", type=int, default=0)
    options = known.parse_args(arguments)
    device = start(options)
    data = {split: load("prototypes", split=split, progress=False) for split in ("train", "val")}
    rows = []
    for name in options.policies:
        if name == "annealing":
            default = presets("annealing")["laptop"].config(options.seed)
        else:
            default = presets("energy")["laptop"].config("velocity-based", options.seed)
        levers = LEVERS[name]
        default = replace(default, validate_every=2, validation_size=200)
        if name == "velocity":
            # Half the steps of the notebook's validation, or it would take most of the time.
            default = replace(default, validation_size=96, validation_n_steps=default.n_steps)
        iterations = options.iterations or ITERATIONS[name]
        if options.quick:
            iterations, levers = 1, dict(list(levers.items())[:2])
            default = replace(
                default, n_groups=2, group_size=2, n_steps=4, validation_size=4, validate_every=1
            )
            default = replace(default, validation_n_steps=2)
        curves = {
            label: train(
                name, "edge list" in label, replace(default, **changes), iterations, data, device
            )
            for label, changes in levers.items()
        }
        first = next(iter(curves.values()))
        begin, best = first.validation_reward.iloc[0], first.validation_reward.max()
        target = begin + PROGRESS * (best - begin)
        reached = {}
        for label, curve in curves.items():
            there = curve[curve.validation_reward >= target]
            reached[label] = float(there.seconds.iloc[0]) if len(there) else math.inf
        unchanged = next(iter(reached.values()))
        for label, seconds in reached.items():
            n_done = float(curves[label].iteration.iloc[-1])
            rows.append(
                {
                    "case": f"{name}: {label}",
                    "ratio": unchanged / seconds if seconds > 0 else None,
                    "seconds": seconds if math.isfinite(seconds) else None,
                    "target": float(target),
                    "best": float(curves[label].validation_reward.max()),
                    "seconds_per_iteration": float(curves[label].seconds.iloc[-1]) / n_done,
                }
            )
    report("time_to_reward", rows, device)


if __name__ == "__main__":
    main()
