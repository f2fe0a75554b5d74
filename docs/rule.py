"""The closed-form annealing against the learned one, on the test split of the embedded data set.

    python docs/rule.py [--structures 480]

The rule's two constants are chosen on the validation split, for each number of steps; the learned
schedule is the one that comes with the package. All start from the same base samples. Differences
are paired, with 95 % intervals from a bootstrap over compositions (seeds of a structure together).
"""

import argparse
from itertools import product

import irlkit  # isort: skip (before torch: its idle threads then sleep)
import numpy as np
import pandas as pd
import torch

from irlkit import data
from irlkit.evaluate import metrics
from irlkit.flows.dynamics import Dynamics
from irlkit.flows.schedules import EndpointAnnealing, NoAnnealing, load_annealing
from irlkit.lab.experiments.finished import SHIPPED

POS, CELL = (3.0, 4.0, 6.0, 8.0, 10.0), (0.9, 1.0, 1.1, 1.2, 1.3)
SEEDS = (0, 1, 2)
TUNING_SEED = 1_000_003


def displacements(model, dataset, annealing, n_steps, seed, pool):
    """Displacement of the best match of each reference, 0.5 without one; and all metrics."""
    generator = torch.Generator().manual_seed(seed)
    x_0 = model.sample_base(dataset.batch, generator)
    found = Dynamics(model, annealing).generate(dataset.batch, n_steps, x_0=x_0, max_batch=128)
    measured = metrics.evaluate(found, dataset, pool)
    return measured.table["best_rmsd"].fillna(pool.stol).to_numpy(), measured


def interval(difference, compositions, n=4000):
    """95 % interval of a mean over structures (n, seeds), compositions drawn with replacement."""
    groups = pd.DataFrame({"c": compositions, "d": difference.mean(1)}).groupby("c")["d"]
    sums, counts = groups.sum().to_numpy(), groups.size().to_numpy()
    weights = np.random.default_rng(0).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), n)
    return np.quantile(weights @ sums / (weights @ counts), [0.025, 0.975])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--structures", type=int, default=480, help="of the test split, about")
    parser.add_argument("--tuning", type=int, default=256, help="of the validation split, about")
    options = parser.parse_args()
    model = irlkit.load_pretrained("linear-ode")
    validation = data.load("prototypes", split="val").subset(options.tuning)
    test = data.load("prototypes", split="test").subset(options.structures)
    learned = load_annealing(SHIPPED / "schedule_seed_0.safetensors")
    compositions = test.batch.reduced_formulas()
    with metrics.MatchPool() as pool:
        for n_steps in (5, 10):
            trials = {
                (pos, cell): displacements(
                    model, validation, EndpointAnnealing(pos, cell), n_steps, TUNING_SEED, pool
                )[1].crmse
                for pos, cell in product(POS, CELL)
            }
            best = min(trials, key=trials.get)
            schedules = {
                "none": NoAnnealing(),
                f"rule, {best[0]:g} and {best[1]:g}": EndpointAnnealing(*best),
                "learned": learned,
            }
            rows, each = [], {}
            for name, annealing in schedules.items():
                runs = [displacements(model, test, annealing, n_steps, s, pool) for s in SEEDS]
                each[name] = np.stack([run[0] for run in runs], 1)
                values = [[m.metre, m.crmse] for _, m in runs]
                rows.append([name, *np.mean(values, 0)])
            print(f"\n{n_steps} steps, {len(test)} structures, seeds {SEEDS}")
            print(pd.DataFrame(rows, columns=["annealing", "METRe", "cRMSE"]).round(4).to_string())
            rule = list(schedules)[1]
            for name in ("none", "learned"):
                low, high = interval(each[rule] - each[name], compositions)
                mean = (each[rule] - each[name]).mean()
                print(f"rule minus {name}: {mean:+.4f} (95 % {low:+.4f} to {high:+.4f})")


if __name__ == "__main__":
    main()
