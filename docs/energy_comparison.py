"""Advantages, sizes of groups and noise of energy reinforcement at equal numbers of rewards.

    python docs/energy_comparison.py --seeds 0 1     # goes on where it was stopped
    python docs/energy_comparison.py --table         # of what is there
    python docs/energy_comparison.py --gain          # is that of the first row real?

Short trainings with the settings of notebook 03's preset `laptop`; what comes out at the end, not
the best of several, is measured on validation structures. Each is compared with the first row,
structure by structure from the same base samples: 95 % intervals from a bootstrap over compositions
and, for training seeds, Student's t. Whether a gain is real is asked as in notebook 03, on the test
split.
"""

import argparse
import copy
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from irlkit.evaluate import metrics
from irlkit.evaluate.evidence import Bootstrap, Estimate
from irlkit.lab.experiments import EnergyReinforcement, Variant, claims_table, presets
from irlkit.rewards import EnergyReward
from irlkit.rl import GRPOTrainer
from irlkit.utils.system import write_atomically

ADVANTAGES = ("standard", "median", "ranks", "leave_one_out")
SIZES, REWARDS = (8, 16, 32), 128
OFFSETS = (0.0, 0.04)
BASE_SEEDS = (0, 1)
VALIDATED_ON, RELAXED = 192, 96


def name_of(policy, advantages, size, offset):
    return f"{policy}, {advantages}, groups of {size}, offset {offset:g}"


CONDITIONS = [
    (policy, *rest)
    for rest in sorted(product(ADVANTAGES, SIZES, OFFSETS), key=lambda c: (c[1] != 8, c[2]))
    for policy in ("score", "velocity")
]


def make_experiment(options):
    preset = presets("energy")["laptop"]
    variants = {
        name_of(*condition): Variant(
            condition[0],
            noise_offset=condition[3],
            grpo={
                "advantages": condition[1],
                "group_size": condition[2],
                "n_groups": REWARDS // condition[2],
            },
        )
        for condition in CONDITIONS
    }
    preset = replace(
        preset,
        iterations=options.iterations,
        policies=dict([*variants.items()][:2]),
        noise_study=dict([*variants.items()][2:]),
        n_relaxed=(1, RELAXED),
        test_size=RELAXED,
        seeds=tuple(options.seeds),
        n_workers=0,
    )
    return EnergyReinforcement(
        preset.checkpoint,
        preset.dataset,
        preset,
        judge="7net-0" if options.gain else "none",
        out_dir=options.out_dir,
        progress=False,
    )


def path_of(options, condition, seed):
    name = name_of(*condition).replace(", ", "_").replace(" ", "_")
    return options.out_dir / f"{name}_seed_{seed}"


def trainer_of(options, experiment, condition, seed):
    name = name_of(*condition)
    config = replace(experiment.preset.config(name, seed), validate_every=1_000_000)
    return GRPOTrainer(
        experiment.policy(name),
        EnergyReward(experiment.potential, config.group_size),
        experiment.train,
        config,
        out_dir=path_of(options, condition, seed),
        resume=True,
    )


def train(options, experiment, validation, condition, seed):
    """Energies above the reference at the end, a row per structure and base seed."""
    folder = path_of(options, condition, seed)
    if (folder / "energies.parquet").exists():
        return
    trainer = trainer_of(options, experiment, condition, seed)
    trainer.run(options.iterations, False)
    with trainer.averaged() as policy:
        measure(experiment, validation, policy.deploy(), folder)
    print(f"{name_of(*condition)}, seed {seed}: {trainer.iteration} iterations", flush=True)


def gain(options, experiment):
    for condition, seed in product(CONDITIONS[:2], options.seeds):
        trainer = trainer_of(options, experiment, condition, seed)
        trainer.run(options.iterations, False)
        with trainer.averaged() as policy:
            experiment.policies[name_of(*condition), seed] = copy.deepcopy(policy)
    experiment.measure_gain().to_parquet(options.out_dir / "gain.parquet")
    print(f"{len(experiment.test)} test structures, {experiment.preset.relax_steps} steps")
    print(experiment.table("gain").to_string())
    print(claims_table(experiment._gain_claims()).to_string())


def measure(experiment, validation, dynamics, folder):
    energies = {}
    for seed in BASE_SEEDS:
        made = experiment.generate(validation.batch, experiment.preset.n_steps, dynamics, seed)
        found = metrics.evaluate_energies(made.to("cpu"), validation, experiment.potential)
        energies[str(seed)] = found.table["energy_above_reference"]
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "energies.parquet", pd.DataFrame(energies).to_parquet())


def read(options, condition):
    """Shape (training seeds, base seeds, structures), and the seeds."""
    seeds = [
        s
        for s in options.seeds
        if all(
            (path_of(options, c, s) / "energies.parquet").exists()
            for c in (condition, (condition[0], *CONDITIONS[0][1:]))
        )
    ]
    paths = [path_of(options, condition, s) / "energies.parquet" for s in seeds]
    return seeds, [pd.read_parquet(path).to_numpy().T for path in paths]


def table(options, experiment, validation):
    draw = Bootstrap(validation.batch.reduced_formulas())
    print(
        f"{len(validation)} validation structures, base seeds {BASE_SEEDS}, {REWARDS} rewards in "
        f"each of {options.iterations} iterations"
    )
    columns = ("policy", "advantages", "groups", "offset", "seeds", "mean", "median")
    print(f"| {' | '.join((*columns, 'mean - first', 'median - first'))} |")
    print(f"|{'--|' * (len(columns) + 2)}")
    for policy in ("score", "velocity"):
        first = None
        for condition in (c for c in CONDITIONS if c[0] == policy):
            seeds, found = read(options, condition)
            if not seeds:
                continue
            first = first or dict(zip(seeds, found, strict=True))
            values, theirs = np.stack(found), np.stack([first[s] for s in seeds])
            levels, words = [], []
            for statistic in (draw.mean, draw.median):
                ours = statistic(values)
                gain = Estimate.of(ours - statistic(theirs))
                levels.append(f"{ours[0]:.3f}")
                words.append(f"{gain.value:+.3f} ({gain.low:+.3f} to {gain.high:+.3f})")
            cells = (*condition, ", ".join(map(str, seeds)), *levels, *words)
            print(f"| {' | '.join(map(str, cells))} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="of trainings")
    parser.add_argument("--iterations", type=int, default=15)
    parser.add_argument("--out-dir", type=Path, default=Path("runs/energy_comparison"))
    parser.add_argument("--table", action="store_true", help="train nothing")
    parser.add_argument("--gain", action="store_true", help="of the first rows, by a judge")
    options = parser.parse_args()
    torch.set_num_threads(1)
    experiment = make_experiment(options)
    if options.gain:
        gain(options, experiment)
        return
    validation = experiment._with_energies(experiment.validation.subset(VALIDATED_ON))
    if not options.table:
        for seed, condition in product(options.seeds, CONDITIONS):
            train(options, experiment, validation, condition, seed)
    table(options, experiment, validation)


if __name__ == "__main__":
    main()
