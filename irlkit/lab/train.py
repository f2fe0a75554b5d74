"""GRPO from the command line, on one process or several.

    irlkit train --out-dir runs/a
    torchrun --nproc-per-node=2 -m irlkit.lab.train --out-dir runs/a

Each process (rank) generates, scores and differentiates a share of the groups of an iteration.
Groups stay whole, so advantages need no other rank's rewards; gradients are averaged over all
structures before every step, and every rank takes the same one. Draws are those of a single
process, so that N ranks compute what one would, up to rounding. Rank 0 alone validates and writes.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path

import pandas as pd
import torch
import torch.distributed as dist

# A default argument in it keeps the group that there is when it is imported, as the first optimiser
# does: the group's threads would outlive it, and may abort the process as it ends.
import torch.distributed.nn.functional

from irlkit.data import CrystalDataset, load
from irlkit.flows.schedules import ConstantNoise
from irlkit.lab import tracking
from irlkit.networks.latent_diffusion import LatentDiffusion
from irlkit.networks.pretrained import load_pretrained
from irlkit.potentials import CHGNetPotential
from irlkit.rewards import CRMSEReward, EnergyReward, RayReward, Reward, SymmetryReward
from irlkit.rl._communicator import Communicator, DistributedCommunicator
from irlkit.rl.config import TrainerConfig
from irlkit.rl.grpo import GRPOConfig
from irlkit.rl.policies import POLICIES, LatentPolicy, Policy
from irlkit.rl.process import Request
from irlkit.rl.trainer import GRPOTrainer

TIMEOUT = timedelta(hours=2)
"""How long ranks wait for each other: longer than any validation of rank 0."""


def train(communicator: Communicator, arguments: argparse.Namespace, device: str) -> pd.DataFrame:
    """Build what the arguments name, and run it."""
    data = load(arguments.dataset, "train", progress=False)
    held_out = load(arguments.dataset, "val", progress=False)
    policy: Policy
    if arguments.policy == "latent":
        policy = LatentPolicy(LatentDiffusion.load(arguments.model or "chemeleon-dit", device))
    else:
        model = load_pretrained(arguments.model or "linear-ode", device)
        noise = {"pos": ConstantNoise(arguments.noise), "cell": ConstantNoise(arguments.noise)}
        policy = POLICIES[arguments.policy](model, noise=noise)
    requests: list[CrystalDataset | Request] = [data, held_out]
    if arguments.policy in ("species", "latent"):  # They choose compositions; sizes are asked for.
        if arguments.reward == "crmse":
            raise ValueError(
                "reward crmse compares with structures of the same composition, but --policy "
                f"{arguments.policy} generates compositions: choose another reward"
            )
        requests = [Request(split.batch.n_atoms) for split in (data, held_out)]
    n_actors = arguments.ray_workers
    make: Callable[[], Reward]
    if arguments.reward == "crmse":
        make = partial(CRMSEReward, data, arguments.workers)
    elif arguments.reward == "energy":
        # Ray's actors have no GPU reserved.
        make = partial(_energy_reward, "cpu" if n_actors else device)
    else:
        make = partial(SymmetryReward, arguments.reward)
    reward = RayReward(make, n_actors, address=arguments.ray_address) if n_actors else make()
    judge = reward
    if arguments.reward == "crmse":
        judge = CRMSEReward(held_out, arguments.workers)
    config = TrainerConfig(
        GRPOConfig(kl_weight=arguments.kl_weight),
        n_groups=arguments.n_groups,
        group_size=arguments.group_size,
        n_steps=arguments.n_steps,
        learning_rate=arguments.learning_rate,
        iterations=arguments.iterations,
        validation_size=arguments.validation_size,
        validate_every=arguments.validate_every,
        seed=arguments.seed,
    )
    run = GRPOTrainer(
        policy,
        reward,
        requests[0],
        config,
        validation=requests[1],
        validation_reward=judge,
        out_dir=arguments.out_dir,
        resume=True,
        communicator=communicator,
    )
    first = communicator.rank == 0
    callbacks = [tracking.log_lines(arguments.out_dir / "log.txt")]
    if first and arguments.track == "tensorboard":
        callbacks.append(tracking.tensorboard(arguments.out_dir))
    elif first and arguments.track == "trackio":
        callbacks.append(tracking.trackio("irlkit", str(arguments.out_dir)))
    try:  # A bar is for people; a log has its lines.
        return run.run(progress=first and sys.stderr.isatty(), callbacks=callbacks)
    finally:
        reward.close()
        judge.close()


def _energy_reward(device: str) -> EnergyReward:
    """CHGNet's energies, made where they are computed."""
    return EnergyReward(CHGNetPotential(device=device))


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; started again with the same arguments, it continues."""
    parser = argparse.ArgumentParser(prog="irlkit train", description=__doc__)
    parser.add_argument(
        "--out-dir", type=Path, required=True, help="of checkpoint, history, log.txt"
    )
    said = "name or path of the model; default: linear-ode, or chemeleon-dit for latent"
    parser.add_argument("--model", help=said)
    parser.add_argument("--dataset", default="prototypes", help="name or path of the data set")
    parser.add_argument("--policy", choices=(*POLICIES, "latent"), default="annealing")
    rewards = ("crmse", "energy", "not_triclinic", "not_centrosymmetric")
    parser.add_argument("--reward", choices=rewards, default="crmse")
    parser.add_argument("--noise", type=float, default=0.1, help="sigma of both fields")
    parser.add_argument("--iterations", type=int, default=100)
    parser.add_argument("--n-groups", type=int, default=8)
    parser.add_argument("--group-size", type=int, default=16)
    parser.add_argument("--n-steps", type=int, default=50)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--kl-weight", type=float, default=0.0)
    parser.add_argument("--validation-size", type=int, default=64)
    parser.add_argument("--validate-every", type=int, default=10)
    parser.add_argument("--workers", type=int, default=0, help="processes that match structures")
    parser.add_argument("--ray-workers", type=int, default=0, help="Ray actors that judge; 0: none")
    parser.add_argument("--ray-address", help="of their cluster; default: one on this machine")
    parser.add_argument("--track", choices=("tensorboard", "trackio"), help="besides log.txt")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    arguments = parser.parse_args(argv)
    device = arguments.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        history = train(Communicator(), arguments, device)
    else:
        if device == "cuda":
            device = f"cuda:{os.environ['LOCAL_RANK']}"
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device != "cpu" else "gloo", timeout=TIMEOUT)
        try:
            history = train(DistributedCommunicator(device), arguments, device)
        finally:
            dist.destroy_process_group()
        if int(os.environ["RANK"]):
            return
    last = history["validation_reward"].dropna()
    value = float(last.iloc[-1]) if len(last) else math.nan
    print(f"{arguments.out_dir}: {len(history)} rows, last validation reward {value:.4f}")


if __name__ == "__main__":
    main()
