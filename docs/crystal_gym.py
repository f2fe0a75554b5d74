"""Compare algorithms on CrystalGym's targets, as notebook 08 does, with several seeds.

    python docs/crystal_gym.py --out runs/crystal_gym [--tasks TASK ...] [--algorithms GRPO PPO ...]
        [--seeds 0 1 2] [--evaluations 4000] [--alpha 0.2] [--relax]

Prints the tables of docs/results.md: metrics with 95 % intervals (Student's t over seeds), the
unseen skeletons, the notebook's claims; with --relax how many of the best fillings are metastable.
A run that is finished is read from its file. A run of 4,000 evaluations takes half a minute
(GRPO, density) to some minutes of one core.
"""

import argparse

import irlkit  # noqa: F401  # isort: skip (before torch: its idle threads then sleep)
import pandas as pd

from irlkit.lab.experiments import claims_table, crystal_gym


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="runs/crystal_gym")
    parser.add_argument("--tasks", nargs="+", default=[crystal_gym.DENSITY, crystal_gym.BULK])
    parser.add_argument("--algorithms", nargs="+", default=["GRPO"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--evaluations", type=int, default=4000)
    parser.add_argument("--best", type=int, default=50, help="fillings that are relaxed")
    parser.add_argument("--alpha", type=float, help="temperature of SAC")
    parser.add_argument("--relax", action="store_true")
    given = parser.parse_args()
    size = crystal_gym.CrystalGymSize(
        given.evaluations,
        tasks=tuple(given.tasks),
        hard=(),
        algorithms=tuple(given.algorithms),
        seeds=tuple(given.seeds),
        n_best=given.best,
        settings={} if given.alpha is None else {"SAC": {"alpha": given.alpha}},
    )
    experiment = crystal_gym.SkeletonFilling(size, given.out)
    print(experiment)
    with pd.option_context("display.width", 250, "display.max_colwidth", None):
        print(experiment.train(*given.tasks).T.to_string())
        for task in given.tasks:
            print(task, experiment.unseen(task).to_string(), sep="\n")
        if given.relax:
            print(experiment.relax_best(*given.tasks).T.to_string())
        print(claims_table(experiment.claims()).to_string())


if __name__ == "__main__":
    main()
