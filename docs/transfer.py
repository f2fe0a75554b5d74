"""Schedules that were learned on one data set, used on another, with the rule beside them.

    python docs/transfer.py --checkpoint runs/perov_5/model.safetensors --dataset perov_5.csv.gz

Both ways; one data set is the embedded one, with the model and the schedule that come with the
package, on the other a schedule is learned here. As notebook 04 does it with `transfer_checkpoint`
and `transfer_dataset`, but without what else it measures; goes on where it was stopped. Settings
are those of the preset `laptop`, but for those that are named here.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch

from irlkit.flows.schedules import load_annealing
from irlkit.lab import experiments
from irlkit.lab.experiments.finished import SHIPPED


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--out-dir", type=Path, default=Path("runs/transfer"))
    parser.add_argument("--iterations", type=int, default=60)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="of base samples")
    parser.add_argument("--training-seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--structures", type=int, default=400, help="of the test splits, about")
    parser.add_argument("--tuning", type=int, default=128, help="validation structures of the rule")
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 10])
    options = parser.parse_args()
    torch.set_num_threads(1)
    preset = replace(
        experiments.presets("annealing")["laptop"],
        iterations=options.iterations,
        seeds=tuple(options.training_seeds),
        test_size=options.structures,
        rule_size=options.tuning,
        n_workers=0,
    )
    pair = [
        experiments.VelocityAnnealing(
            checkpoint, dataset, preset, out_dir=options.out_dir / name, progress=False
        )
        for name, checkpoint, dataset in (
            ("embedded", preset.checkpoint, preset.dataset),
            ("other", options.checkpoint, options.dataset),
        )
    ]
    shipped, other = pair
    shipped.policies[0] = shipped.policy(0)
    learned = load_annealing(SHIPPED / "schedule_seed_0.safetensors")
    shipped.policies[0].annealing = learned.to(next(shipped.model.parameters()))
    other.train_schedules()
    for experiment in pair:
        experiment.preset = replace(preset, seeds=tuple(options.seeds))
        experiment.sweep_rule(*options.steps)
        for k in options.steps:
            print(experiment.dataset, k, experiment.best_rule(k), flush=True)
    pd.set_option("display.width", 250, "display.max_columns", None)
    table = shipped.transfer(other, *options.steps)
    print(f"{[len(experiment.test) for experiment in pair]} structures, seeds {options.seeds}")
    print(table.to_string())


if __name__ == "__main__":
    main()
