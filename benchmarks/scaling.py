"""How the cost of the network and of generation grows: slopes of log(seconds) over log(size).

The ratio is the slope; 1 is proportional. With atoms per structure, pairs make it
approach 2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from benchmarks.common import in_turns, parser, random_crystals, random_model, report, slope, start
from irlkit.flows.dynamics import Dynamics
from irlkit.networks.cspnet import PairTopology

WIDTH, N_LAYERS = 128, 4
STRUCTURES = (64, 128, 256, 512)
ATOMS = (10, 25, 50, 100, 200)
STEPS = (5, 10, 20, 40)


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark."""
    options = parser(__doc__).parse_args(arguments)
    device = start(options)
    structures: Sequence[int] = STRUCTURES
    atoms: Sequence[int] = ATOMS
    steps: Sequence[int] = STEPS
    width, n_layers = WIDTH, N_LAYERS
    if options.quick:
        structures, atoms, steps, width, n_layers = (4, 8), (4, 8), (1, 2), 16, 1
    model = random_model("linear-ode", width, n_layers).to(device)

    def generate(n_structures: int, n_steps: int) -> Callable[[], object]:
        # Of one size each, or the mix of sizes would change with their number.
        batch = random_crystals(n_structures, n_atoms=8).to(device)
        return lambda: Dynamics(model).generate(batch, n_steps, x_0=batch)

    def evaluate(n_atoms: int) -> Callable[[], object]:
        batch = random_crystals(max(400 // n_atoms, 2), n_atoms=n_atoms).to(device)
        topology = PairTopology.from_n_atoms(batch.n_atoms)
        t = torch.tensor(0.5, device=device)

        @torch.no_grad()
        def run() -> object:
            return model.network(t, batch.species, batch.pos, batch.cell, topology)

        return run

    rows = []
    for what, sizes, sides in (
        ("structures, generation", structures, {n: generate(n, 4) for n in structures}),
        ("steps, generation", steps, {n: generate(64, n) for n in steps}),
        ("atoms, one evaluation per structure", atoms, {n: evaluate(n) for n in atoms}),
    ):
        seconds = in_turns(
            {str(n): side for n, side in sides.items()},
            device,
            options.repeats,
            options.seconds,
            options.clock,
        )
        per_structure = {n: max(400 // n, 2) if what.startswith("atoms") else 1 for n in sizes}
        values = [seconds[str(n)] / per_structure[n] for n in sizes]
        rows.append(
            {
                "case": what,
                "ratio": slope(sizes, values),
                "sizes": list(sizes),
                "seconds": [float(f"{value:.4g}") for value in values],
            }
        )
    report("scaling", rows, device)


if __name__ == "__main__":
    main()
