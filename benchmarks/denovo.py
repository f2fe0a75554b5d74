"""De novo generation against crystal structure prediction with the same network.

A step of sampling that draws species as well, and an update of the species' policy against one of
the velocity's policy, each on the same structures and states.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from benchmarks.common import in_turns, parser, random_crystals, report, start
from irlkit.flows.base_distribution import BaseDistribution
from irlkit.flows.discrete import DiscreteFlow
from irlkit.flows.dynamics import Dynamics
from irlkit.flows.schedules import ConstantNoise
from irlkit.networks.cspnet import CSPNet
from irlkit.networks.flow_model import FlowModel
from irlkit.pretraining import KINDS
from irlkit.rl import PolicyUpdate, Request, SpeciesPolicy, TrainerConfig, VelocityPolicy, rollout
from irlkit.rl.policies import FlowPolicy


def make_model(width: int, n_layers: int) -> FlowModel:
    """An untrained model with small velocities."""
    torch.manual_seed(0)
    network = CSPNet(width, n_layers, 16, 128, species_head=True, mask_token=True)
    with torch.no_grad():
        network.coord_out.weight.mul_(0.01)
        network.lattice_out.weight.mul_(0.01)
    base = BaseDistribution((1.6, 1.7, 2.0), (0.2, 0.2, 0.2))
    return FlowModel(network.eval(), KINDS["denovo-mask"], base, species=DiscreteFlow())


def make_update(policy: FlowPolicy, request: Any, config: TrainerConfig) -> partial[Any]:
    """An update on a trajectory of the policy, which the optimiser leaves as it is."""
    draws = torch.Generator().manual_seed(0)
    assert isinstance(config.n_steps, int)
    x_0 = policy.process.initial(request, draws)
    trajectory = rollout(policy, x_0, config.n_steps, draws, max_batch=128)
    advantages = torch.randn(len(request), generator=draws)
    optimizer = torch.optim.SGD(policy.parameters(), 0.0)
    return partial(PolicyUpdate(policy, optimizer, config, draws), trajectory, advantages)


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark."""
    known = parser(__doc__)
    known.add_argument("--steps", type=int, default=50, help="time steps of the updates")
    options = known.parse_args(arguments)
    device = start(options)
    model = make_model(*((16, 1) if options.quick else (128, 4))).to(device)
    n, n_steps = (4, 2) if options.quick else (512, options.steps)
    crystals = random_crystals(n).to(device)
    dynamics = Dynamics(model)
    draws = torch.Generator().manual_seed(0)
    budget = (device, options.repeats, options.seconds, options.clock)
    few = dict(n_steps=2 if options.quick else 10, generator=draws, max_batch=128)
    sampling = in_turns(
        {
            "species": partial(dynamics.generate, crystals.n_atoms, **few),
            "given": partial(dynamics.generate, crystals, **few),
        },
        *budget,
    )
    config = TrainerConfig(n_steps=n_steps, n_ppo_epochs=1, max_minibatch=n, group_size=2)
    noise = {name: ConstantNoise(0.1) for name in ("pos", "cell")}
    update = in_turns(
        {
            "species": make_update(SpeciesPolicy(model), Request(crystals.n_atoms), config),
            "given": make_update(VelocityPolicy(model, noise), crystals, config),
        },
        *budget,
        warm=True,
    )
    rows = [
        {
            "case": case,
            "ratio": seconds["species"] / seconds["given"],
            "mark": mark,
            "seconds": seconds["species"],
            "given_seconds": seconds["given"],
        }
        for case, seconds, mark in (
            (f"sampling, {few['n_steps']} steps, {n} structures, against CSP", sampling, 1.15),
            (f"update, {n_steps} steps, {n} structures, against velocities", update, 1.2),
        )
    ]
    report("denovo", rows, device)


if __name__ == "__main__":
    main()
