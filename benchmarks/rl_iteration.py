"""One GRPO iteration of each policy against the same with the edge-list network, and its memory.

An iteration is a rollout, a reward that costs nothing and PPO epochs on all time steps. Seconds per
time step do not depend on their number, so the comparison takes few (``--steps``), and the ratio of
a full iteration of irlkit, which follows, is against as many times those of the baseline. With
random subsets of the time steps it is measured for the velocity-based policy. All of it takes about
ten minutes on two cores.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from benchmarks.common import (
    in_turns,
    parser,
    process_peak,
    random_crystals,
    random_model,
    report,
    start,
)
from benchmarks.edge_list import with_edge_list
from irlkit.crystals import CrystalBatch
from irlkit.networks.flow_model import FlowModel
from irlkit.rewards.base import RewardResult
from irlkit.rl.config import TrainerConfig
from irlkit.rl.policies import AnnealingPolicy, Policy, ScorePolicy, VelocityPolicy
from irlkit.rl.trainer import GRPOTrainer

POLICIES: dict[str, tuple[Callable[[FlowModel], Policy], str]] = {
    "annealing": (AnnealingPolicy, "linear-ode"),
    "velocity": (VelocityPolicy, "linear-ode"),
    "score": (ScorePolicy, "trig-sde-gamma"),
}
WIDTH, N_LAYERS = 128, 4
STEP_FRACTION = 0.25


def volume_reward(batch: CrystalBatch) -> RewardResult:
    """Minus the volume: a reward that takes no time."""
    volume = torch.linalg.det(batch.cell.double().cpu()).abs()
    return RewardResult(-volume, {})


def make_trainer(
    name: str, baseline: bool, sizes: tuple[int, int], config: TrainerConfig, device: torch.device
) -> GRPOTrainer:
    """A trainer of a policy, with the network of irlkit or that of the baseline."""
    policy, kind = POLICIES[name]
    model = random_model(kind, *sizes)
    if baseline:
        model = with_edge_list(model)
    compositions = random_crystals(config.n_groups)
    return GRPOTrainer(policy(model.to(device)), volume_reward, compositions, config)


def iterate(trainer: GRPOTrainer) -> None:
    """One more iteration."""
    trainer.run(trainer.iteration + 1, progress=False)


def peak_memory(
    name: str,
    baseline: bool,
    sizes: tuple[int, int],
    config: TrainerConfig,
    device: str,
    threads: int,
) -> float:
    """MB that an iteration adds to the process (or takes on the device) at its peak."""
    torch.set_num_threads(threads)
    trainer = make_trainer(name, baseline, sizes, config, torch.device(device))
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        trainer.run(1, progress=False)
        return torch.cuda.max_memory_allocated() / 2**20
    before = process_peak()
    trainer.run(1, progress=False)
    return process_peak() - before


def in_fresh_process(*arguments: Any) -> float:
    """`peak_memory` in a process that has done nothing else."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(peak_memory, *arguments).result()


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark."""
    known = parser(__doc__)
    known.add_argument("--steps", type=int, default=2, help="time steps of the comparison")
    known.add_argument("--groups", type=int, default=16, help="of 32 structures each")
    known.add_argument("--policies", nargs="+", choices=POLICIES, default=list(POLICIES))
    known.add_argument("--no-memory", action="store_true", help="leave the peak memory out")
    known.set_defaults(seconds=20.0)
    options = known.parse_args(arguments)
    device = start(options)
    sizes = (16, 1) if options.quick else (WIDTH, N_LAYERS)
    n_groups, group_size, n_steps = (2, 2, 2) if options.quick else (options.groups, 32, 50)
    full = TrainerConfig(
        n_groups=n_groups,
        group_size=group_size,
        n_steps=n_steps,
        learning_rate=1e-5,
        # One time step of all structures per backward pass.
        max_minibatch=n_groups * group_size,
    )
    few = replace(full, n_steps=options.steps)
    rows: list[dict[str, Any]] = []
    for name in options.policies:
        trainers = {
            side: make_trainer(name, side == "edge list", sizes, few, device)
            for side in ("irlkit", "edge list")
        }
        first = {side: trainer.run(1, progress=False) for side, trainer in trainers.items()}
        for column in ("reward", "grad_norm"):
            mine, theirs = (float(history[column].iloc[-1]) for history in first.values())
            assert abs(mine - theirs) <= 1e-3 * abs(theirs), f"{column}: {mine} and {theirs}"
        seconds = in_turns(
            {side: partial(iterate, trainer) for side, trainer in trainers.items()},
            device,
            options.repeats,
            options.seconds,
            options.clock,
            warm=True,
            least=2,
        )
        n = n_groups * group_size
        rows.append(
            {
                "case": f"{name}: equal work, {n} structures, {few.n_steps} steps",
                "ratio": seconds["edge list"] / seconds["irlkit"],
                "seconds": seconds["irlkit"],
                "edge_list_seconds": seconds["edge list"],
            }
        )
        if not options.no_memory:
            memory = [
                in_fresh_process(name, side, sizes, few, options.device, torch.get_num_threads())
                for side in (False, True)
            ]
            rows.append(
                {
                    "case": f"{name}: peak memory of the same",
                    "ratio": memory[1] / memory[0] if memory[0] else None,
                    "mb": memory[0],
                    "edge_list_mb": memory[1],
                }
            )
        for label, config in (
            ("all steps", full),
            (f"{STEP_FRACTION:.0%} of the steps", replace(full, step_fraction=STEP_FRACTION)),
            (
                f"{STEP_FRACTION:.0%} of the steps, bfloat16",
                replace(full, step_fraction=STEP_FRACTION, mixed_precision=True),
            ),
        ):
            if name != "velocity" and config != full:
                continue
            trainer = make_trainer(name, False, sizes, config, device)
            iteration = partial(iterate, trainer)
            total = in_turns({"": iteration}, device, 1, 0.0, options.clock, warm=True)[""]
            row = trainer.history.iloc[-1]
            spent = [float(row[f"{part}_seconds"]) for part in ("rollout", "update")]
            rows.append(
                {
                    "case": f"{name}: {n_steps} steps, {label}",
                    # Against the baseline with all steps, from its seconds per step.
                    "ratio": seconds["edge list"] / options.steps * n_steps / total,
                    "seconds": total,
                    "rollout_share": spent[0] / sum(spent),
                }
            )
    report("rl_iteration", rows, device)


if __name__ == "__main__":
    main()
