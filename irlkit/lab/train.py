"""GRPO from the command line, on one process or several.

    python -m irlkit.lab.train --out-dir runs/a
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
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
import torch.distributed as dist

# A default argument in it keeps the group that there is when it is imported, as the first optimiser
# does: the group's threads would outlive it, and may abort the process as it ends.
import torch.distributed.nn.functional
from torch import Tensor

from irlkit.crystals import CrystalBatch
from irlkit.rl.trainer import GRPOTrainer

if TYPE_CHECKING:
    from irlkit.rewards import EnergyReward

TIMEOUT = timedelta(hours=2)
"""How long ranks wait for each other: longer than any validation of rank 0."""


class ShareOfBatch(torch.Generator):
    """A generator whose normal numbers are those of a whole batch, of which it gives a part.

    Every rank draws the numbers of all structures, so that the states of all ranks stay equal.

    Attributes:
        atoms: number of atoms of the whole batch, and the slice of this rank; None: no part.
        structures: the same of structures.
    """

    atoms: tuple[int, slice] | None = None
    structures: tuple[int, slice] | None = None

    def standard_normal(self, like: Tensor) -> Tensor:
        """Numbers of the shape of ``like``: (k, atoms, 3), (k, B) or (k, B, 3, 3)."""
        part = self.atoms if like.ndim == 3 else self.structures
        if part is None:
            total, chosen = like.shape[1], slice(None)
        else:
            total, chosen = part
        shape = (like.shape[0], total, *like.shape[2:])
        noise = torch.randn(shape, generator=self, dtype=like.dtype, device=self.device)[:, chosen]
        if noise.shape != like.shape:
            raise ValueError(
                "max_batch: a rank's share of the groups has to fit at once; use more ranks or "
                "smaller groups"
            )
        return noise.to(like.device)


class DistributedTrainer(GRPOTrainer):
    """A ``GRPOTrainer`` that shares its groups with the other ranks of ``torch.distributed``.

    The process group has to be there, with the same arguments on every rank. Other ranks than 0
    ignore ``out_dir`` and begin with what rank 0 has, be it new or resumed. In the history, numbers
    of an iteration are means over the ranks, and ``non_finite`` is their sum.

    Raises:
        ValueError: the groups cannot be divided by the number of ranks, or ``max_batch`` is set.
    """

    def __init__(self, *args: Any, out_dir: Any = None, resume: bool = False, **more: Any) -> None:
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        first = self.rank == 0
        super().__init__(*args, out_dir=out_dir if first else None, resume=resume and first, **more)
        if self.config.n_groups % self.world:
            raise ValueError(
                f"n_groups must be a multiple of the number of ranks, got {self.config.n_groups} "
                f"groups for {self.world} ranks"
            )
        if self.config.max_batch is not None:
            raise ValueError("max_batch must be None with several ranks, each of which has a part")
        state = self._broadcast(self._state() if first else None)
        self._generator = self._update.generator = ShareOfBatch()
        self._restore(state)
        self._update.combine = self._average_gradients

    def _broadcast(self, value: Any) -> Any:
        """What rank 0 has; ranks are processes of one job, and trust each other's pickles."""
        holder = [value]
        dist.broadcast_object_list(holder, src=0, device=self._device)
        return holder[0]

    def _sum(self, values: Iterable[float]) -> list[float]:
        """Sums over the ranks."""
        total = torch.tensor(list(values), dtype=torch.float64, device=self._device)
        dist.all_reduce(total)
        return total.tolist()

    def _share(self, x_0: CrystalBatch) -> CrystalBatch:
        size = len(x_0) // self.world
        chosen = slice(self.rank * size, (self.rank + 1) * size)
        ends = x_0.n_atoms.cumsum(0).tolist()
        start = ends[chosen.start - 1] if chosen.start else 0
        assert isinstance(self._generator, ShareOfBatch)
        self._generator.atoms = (ends[-1], slice(start, ends[chosen.stop - 1]))
        self._generator.structures = (len(x_0), chosen)
        return x_0[chosen]

    def _average_gradients(self, terms: dict[str, float], n: int) -> dict[str, float]:
        """Gradients and terms of the loss over all structures, n of which are this rank's."""
        weighted = self._sum([n, *(n * value for value in terms.values())])
        parameters = [p for p in self.policy.parameters() if p.requires_grad]
        flat = torch.cat(
            [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters]
        )
        flat *= n / weighted[0]
        dist.all_reduce(flat)
        for p, grad in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            p.grad = grad.view_as(p).clone()
        return {k: v / weighted[0] for k, v in zip(terms, weighted[1:], strict=True)}

    def _iterate(self) -> dict[str, float]:
        row = super()._iterate()
        means = dict(zip(row, (v / self.world for v in self._sum(row.values())), strict=True))
        means["non_finite"] *= self.world
        means["n_steps"] = row["n_steps"]
        means["n_updates"] = row["n_updates"]
        return means

    def _validate(self, seed: int) -> tuple[float, dict[str, float]]:
        return self._broadcast(super()._validate(seed) if self.rank == 0 else None)


def train(trainer: type[GRPOTrainer], arguments: argparse.Namespace, device: str) -> pd.DataFrame:
    """Build what the arguments name, and run it."""
    from irlkit import data as datasets
    from irlkit.flows.schedules import ConstantNoise, LearnedAnnealing
    from irlkit.networks.flow_model import load_pretrained
    from irlkit.rewards import CRMSEReward, RayReward, Reward, SymmetryReward
    from irlkit.rl.grpo import GRPOConfig
    from irlkit.rl.policies import AnnealingPolicy, Policy, ScorePolicy, VelocityPolicy

    data = datasets.load(arguments.dataset, "train", progress=False)
    held_out = datasets.load(arguments.dataset, "val", progress=False)
    model = load_pretrained(arguments.model, device)
    noise = {"pos": ConstantNoise(arguments.noise), "cell": ConstantNoise(arguments.noise)}
    policy: Policy
    if arguments.policy == "annealing":
        policy = AnnealingPolicy(model, LearnedAnnealing().to(device), noise)
    else:
        kinds = {"velocity": VelocityPolicy, "score": ScorePolicy}
        policy = kinds[arguments.policy](model, noise)
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
    config = GRPOConfig(
        n_groups=arguments.n_groups,
        group_size=arguments.group_size,
        n_steps=arguments.n_steps,
        learning_rate=arguments.learning_rate,
        kl_weight=arguments.kl_weight,
        iterations=arguments.iterations,
        validation_size=arguments.validation_size,
        validate_every=arguments.validate_every,
        seed=arguments.seed,
    )
    run = trainer(
        policy,
        reward,
        data,
        config,
        validation=held_out,
        validation_reward=judge,
        out_dir=arguments.out_dir,
        resume=True,
    )
    try:
        return run.run(progress=int(os.environ.get("RANK", "0")) == 0)
    finally:
        reward.close()
        judge.close()


def _energy_reward(device: str) -> EnergyReward:
    """CHGNet's energies, made where they are computed."""
    from irlkit.potentials import CHGNetPotential
    from irlkit.rewards import EnergyReward

    return EnergyReward(CHGNetPotential(device=device))


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; started again with the same arguments, it continues."""
    parser = argparse.ArgumentParser(prog="python -m irlkit.lab.train", description=__doc__)
    parser.add_argument("--out-dir", type=Path, required=True, help="of checkpoint and history")
    parser.add_argument("--model", default="linear-ode", help="name or path of the model")
    parser.add_argument("--dataset", default="prototypes", help="name or path of the data set")
    parser.add_argument("--policy", choices=("annealing", "velocity", "score"), default="annealing")
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
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    arguments = parser.parse_args(argv)
    device = arguments.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        history = train(GRPOTrainer, arguments, device)
    else:
        if device == "cuda":
            device = f"cuda:{os.environ['LOCAL_RANK']}"
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device != "cpu" else "gloo", timeout=TIMEOUT)
        try:
            history = train(DistributedTrainer, arguments, device)
        finally:
            dist.destroy_process_group()
        if int(os.environ["RANK"]):
            return
    last = history["validation_reward"].dropna()
    value = float(last.iloc[-1]) if len(last) else math.nan
    print(f"{arguments.out_dir}: {len(history)} rows, last validation reward {value:.4f}")


if __name__ == "__main__":
    main()
