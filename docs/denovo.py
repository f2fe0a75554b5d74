"""Train notebook 07's policies with several seeds and measure what they generate.

    python docs/denovo.py --out runs/denovo [--iterations 25] [--structures 1000] [--seeds 0 1 2]

Prints the tables of docs/results.md: metrics with 95 % intervals (formulas drawn again, Student's t
for training seeds), and the notebook's claims. It continues where it was stopped: trainings from
their checkpoints, measurements from their files. About an hour on two cores for the first two
variants; --rule adds the colder start, --also others, such as "pure elements too" or "open hull".
"""

import argparse
from dataclasses import replace
from pathlib import Path

import irlkit  # isort: skip (before torch: its idle threads then sleep)
import pandas as pd

from irlkit.crystals import CrystalBatch
from irlkit.evaluate.denovo import DeNovoMetrics
from irlkit.lab.experiments import claims_table, denovo
from irlkit.rl.policies import SpeciesPolicy


def measure(experiment, variant):
    """Measure what a variant generates, seed by seed, and keep the tables."""
    for seed in experiment.size.seeds:
        file = Path(experiment.out_dir) / f"{variant.replace(' ', '_')}_{seed}.parquet"
        if file.exists():
            table = pd.read_parquet(file)
            found = DeNovoMetrics(
                table, table, CrystalBatch.from_formulas(table["formula"].tolist())
            )
            experiment.metrics[variant, seed] = found
        else:
            policy = experiment.policies.get((variant, seed)) or SpeciesPolicy(experiment.model)
            made = experiment.generate(policy, experiment.size.n_structures, seed)
            judged = variant in (denovo.START, denovo.REINFORCED)
            experiment.metrics[variant, seed] = found = experiment.measure(made, judged)
            found.table.to_parquet(file)
        print(variant, seed, found.table["msun"].mean(), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="runs/denovo")
    parser.add_argument("--iterations", type=int, default=denovo.SIZES["laptop"].iterations)
    parser.add_argument("--ablation-iterations", type=int, default=10, help="of --also")
    parser.add_argument("--structures", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rule", action="store_true", help="evaluate the colder start as well")
    parser.add_argument("--also", nargs="*", default=[], help="variants to train and evaluate")
    given = parser.parse_args()
    size = replace(
        denovo.SIZES["laptop"],
        n_structures=given.structures,
        iterations=given.iterations,
        ablation_iterations=given.ablation_iterations,
        seeds=tuple(given.seeds),
    )
    model, judge = irlkit.load_pretrained("denovo-mask"), denovo.find_judge("auto")
    experiment = denovo.DeNovoReinforcement(size, model, given.out, judge=judge)
    trained = (denovo.REINFORCED, denovo.GAP, *given.also)
    experiment.train(*trained)
    if given.rule:
        print(experiment.tune_temperature())
    for variant in (denovo.START, *trained, *([denovo.RULE] if given.rule else [])):
        measure(experiment, variant)
    with pd.option_context("display.width", 250, "display.max_colwidth", None):
        print(experiment.table().T.to_string())
        print(claims_table(experiment.claims()).to_string())


if __name__ == "__main__":
    main()
