"""Forward and backward passes of the network against the edge-list implementation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.common import (
    in_turns,
    matmul_rate,
    parser,
    random_crystals,
    relative_difference,
    report,
    start,
)
from benchmarks.edge_list import EdgeListNetwork
from irlkit.crystals import CrystalBatch
from irlkit.networks._pairs import (
    WINDOW,
    FourierFeatures,
    InterpolatedFeatures,
    PairTopology,
    interpolates,
)
from irlkit.networks.cspnet import CSPNet, NetworkOutput

CASES = ("128x4x512", "128x4x64", "512x6x64", "512x6x512")
QUICK = ("16x2x8",)
State = tuple[Tensor, Tensor, Tensor, Tensor, PairTopology]
MAX_DIFFERENCE = 1e-4  # of two float32 evaluations, in the norm


def operations(network: CSPNet, topology: PairTopology, interpolated: bool) -> dict[str, float]:
    """Multiplications and additions that a forward and a backward pass cannot do without.

    Only products are counted: of the maps of edges and atoms, and of the pair features with their
    coefficients. Embeddings, heads and everything per element come for free.
    """
    width = network.sizes["hidden_dim"]
    n_atoms = float(topology.n_atoms.sum())
    n_edges = float(topology.n_atoms.square().sum())
    edge_map = n_edges * width**2
    # Two maps into the edges, two from (LN(h), message), one after.
    atom_maps = 5 * n_atoms * width**2
    if interpolated:
        pair_map = n_edges * (3 * WINDOW[torch.float32] + 2) * width
    else:
        pair_map = (n_edges - n_atoms) / 2 * 6 * network.n_freqs * width
    forward = 2 * network.n_layers * (edge_map + atom_maps + pair_map)
    # Gradients of inputs and of weights; positions need none.
    backward = 2 * network.n_layers * (2 * edge_map + 2 * atom_maps + pair_map)
    return {"forward": forward, "forward+backward": forward + backward}


def forward(network: CSPNet, state: State) -> NetworkOutput:
    """An evaluation without gradients."""
    with torch.no_grad():
        return network(*state)


def both(network: CSPNet, state: State, mixed: bool = False) -> None:
    """An evaluation with gradients of the weights."""
    network.zero_grad()
    with torch.autocast(state[0].device.type, torch.bfloat16, enabled=mixed):
        output = network(*state)
    sum(x.square().mean() for x in output.velocity.values()).backward()


def parts(network: CSPNet, batch: CrystalBatch, options: Any) -> list[dict[str, Any]]:
    """What the steps of one layer's forward pass take per edge, on as many as are done at once."""
    part = PairTopology.from_n_atoms(batch.n_atoms).parts[0]
    layer, width = network.csp_layer_0, network.sizes["hidden_dim"]
    pos = batch.pos[part.atoms]
    features = InterpolatedFeatures.from_positions(pos, part, network.n_freqs)
    atoms = torch.randn(len(pos), width)
    edges = torch.randn(len(part.receiver), width)
    out = torch.empty_like(edges)
    grids = layer.grids()
    weight = layer.edge_mlp[2].weight
    dense = FourierFeatures.from_positions(pos, part, network.n_freqs)
    steps: dict[str, tuple[Callable[[], Any], float]] = {
        "interpolated first map": (
            lambda: features.edges(grids, atoms, atoms),
            2 * features.index.shape[1] * width,
        ),
        "Fourier first map, not used": (
            lambda: dense.edges(layer.pair_coefficients(), atoms, atoms),
            6 * network.n_freqs * width,
        ),
        "second map": (lambda: torch.mm(edges, weight.T, out=out), 2 * width**2),
        "SiLU": (lambda: functional.silu(edges, inplace=True), 0),
        "mean over edges": (lambda: part.mean(edges), 0),
        "pair features, once per call": (
            lambda: InterpolatedFeatures.from_positions(pos, part, network.n_freqs),
            0,
        ),
    }
    with torch.no_grad():
        sides = {name: step for name, (step, _) in steps.items()}
        seconds = in_turns(sides, pos.device, 3 * options.repeats, 20.0, options.clock)
    return [
        {
            "case": f"{name}, {width} channels",
            "ratio": None,
            "seconds": seconds[name],
            "ns_per_edge": 1e9 * seconds[name] / len(edges),
            "gflops": flop * len(edges) / seconds[name] / 1e9 if flop else None,
        }
        for name, (_, flop) in steps.items()
    ]


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark."""
    known = parser(__doc__)
    known.add_argument("--parts", action="store_true", help="only the steps of a layer")
    known.add_argument(
        "--cases", nargs="+", default=CASES, help="channels x layers x structures: 128x4x512"
    )
    # All cases in about three minutes on two cores: the largest get two rounds, the others more.
    known.set_defaults(seconds=12.0)
    options = known.parse_args(arguments)
    device = start(options)
    rows = []
    for case in QUICK if options.quick else options.cases:
        width, n_layers, n_structures = map(int, case.split("x"))
        torch.manual_seed(0)
        ours = CSPNet(width, n_layers).to(device)
        baseline = EdgeListNetwork(width, n_layers).to(device)
        baseline.load_state_dict(ours.state_dict())
        batch = random_crystals(n_structures).to(device)
        topology = PairTopology.from_n_atoms(batch.n_atoms)
        t = torch.linspace(0.01, 0.99, n_structures, device=device)
        state = (t, batch.species, batch.pos, batch.cell, topology)
        networks = {"irlkit": ours, "edge list": baseline}

        mine, theirs = (forward(network, state).velocity for network in networks.values())
        for field in mine:
            difference = relative_difference(mine[field], theirs[field])
            assert difference < MAX_DIFFERENCE, f"outputs of {field} differ by {difference}"
        gradients = []
        for network in networks.values():
            both(network, state)
            used = (p.grad for p in network.parameters() if p.grad is not None)
            gradients.append(torch.cat([g.flatten() for g in used]))
        difference = relative_difference(*gradients)
        assert difference < MAX_DIFFERENCE, f"gradients differ by {difference}"

        if interpolates(batch.pos):
            rows += parts(ours, batch, options)
        if options.parts:
            continue
        rate = matmul_rate(device, width, clock=options.clock)
        needed = operations(ours, topology, interpolates(batch.pos))
        both(ours, state, True)
        for what, function in (("forward", forward), ("forward+backward", both)):
            sides = {name: partial(function, network, state) for name, network in networks.items()}
            if function is both:
                sides["bfloat16"] = partial(both, ours, state, True)
            seconds = in_turns(
                sides,
                device,
                options.repeats,
                options.seconds,
                options.clock,
                warm=True,
                least=2,
            )
            rows.append(
                {
                    "case": f"{what} {width}x{n_layers}, {n_structures} structures",
                    "ratio": seconds["edge list"] / seconds["irlkit"],
                    "seconds": seconds["irlkit"],
                    "edge_list_seconds": seconds["edge list"],
                    "needed_gflop": needed[what] / 1e9,
                    "matmul_gflops": rate / 1e9,
                    "share_of_matmul_rate": needed[what] / seconds["irlkit"] / rate,
                }
            )
        rows.append(
            {
                "case": f"bfloat16 forward+backward {width}x{n_layers}, {n_structures} structures",
                "ratio": seconds["irlkit"] / seconds["bfloat16"],
                "seconds": seconds["bfloat16"],
            }
        )
    report("network", rows, device)


if __name__ == "__main__":
    main()
