"""Train notebook 07's policies with several seeds and measure what they generate.

    python docs/denovo.py --out runs/denovo [--iterations 25] [--structures 1000] [--seeds 0 1 2]

Prints the tables of docs/results.md: metrics with 95 % intervals (formulas and training seeds drawn
again), and the notebook's claims. It continues where it was stopped: trainings from their
checkpoints. About an hour on two cores, without the rule, which --rule adds.
"""

import argparse
from dataclasses import replace

import irlkit  # isort: skip (before torch: its idle threads then sleep)
import pandas as pd

from irlkit.lab.experiments import claims_table, denovo


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="runs/denovo")
    parser.add_argument("--iterations", type=int, default=denovo.SIZES["laptop"].iterations)
    parser.add_argument("--structures", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rule", action="store_true", help="evaluate the colder start as well")
    given = parser.parse_args()
    size = replace(
        denovo.SIZES["laptop"],
        n_structures=given.structures,
        iterations=given.iterations,
        seeds=tuple(given.seeds),
    )
    model, judge = irlkit.load_pretrained("denovo-mask"), denovo.find_judge("auto")
    experiment = denovo.DeNovoReinforcement(size, model, given.out, judge=judge)
    experiment.train(denovo.REINFORCED, denovo.GAP)
    if given.rule:
        print(experiment.tune_temperature())
        experiment.evaluate(denovo.RULE)
    experiment.evaluate(denovo.START, denovo.REINFORCED, denovo.GAP)
    with pd.option_context("display.width", 250, "display.max_colwidth", None):
        print(experiment.table().T.to_string())
        print(claims_table(experiment.claims()).to_string())


if __name__ == "__main__":
    main()
