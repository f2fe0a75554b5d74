"""The closed-form annealing against the learned one, on the test split of the embedded data set.

    python docs/rule.py [--structures 480]

The rule's two constants are chosen on the validation split, for each number of steps; the learned
schedule is the one that comes with the package. All start from the same base samples. Differences
are paired, with 95 % intervals from a bootstrap over compositions (seeds of a structure together).
"""

import argparse

import irlkit  # isort: skip (before torch: its idle threads then sleep)
import numpy as np
import pandas as pd
import torch

from irlkit import data
from irlkit.evaluate import metrics
from irlkit.evaluate.evidence import Bootstrap, Estimate
from irlkit.flows.dynamics import Dynamics
from irlkit.flows.schedules import EndpointAnnealing, NoAnnealing, load_annealing
from irlkit.lab.experiments._handcrafted import RULE_TRIALS, SWEEP_SEED
from irlkit.lab.experiments.finished import SHIPPED

SEEDS = (0, 1, 2)


def displacements(model, dataset, annealing, n_steps, seed, pool):
    """Displacement of the best match of each reference, 0.5 without one; and all metrics."""
    generator = torch.Generator().manual_seed(seed)
    x_0 = model.sample_base(dataset.batch, generator)
    found = Dynamics(model, annealing).generate(dataset.batch, n_steps, x_0=x_0, max_batch=128)
    measured = metrics.evaluate(found, dataset, pool)
    return measured.table["best_rmsd"].fillna(pool.stol).to_numpy(), measured


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--structures", type=int, default=480, help="of the test split, about")
    parser.add_argument("--tuning", type=int, default=256, help="of the validation split, about")
    options = parser.parse_args()
    model = irlkit.load_pretrained("linear-ode")
    validation = data.load("prototypes", split="val").subset(options.tuning)
    test = data.load("prototypes", split="test").subset(options.structures)
    learned = load_annealing(SHIPPED / "schedule_seed_0.safetensors")
    draw = Bootstrap(test.batch.reduced_formulas())
    with metrics.MatchPool() as pool:
        for n_steps in (5, 10):
            trials = {
                (pos, cell): displacements(
                    model, validation, EndpointAnnealing(pos, cell), n_steps, SWEEP_SEED, pool
                )[1].crmse
                for pos, cell in RULE_TRIALS
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
                each[name] = draw.mean(np.stack([run[0] for run in runs]))
                values = [[m.metre, m.crmse] for _, m in runs]
                rows.append([name, *np.mean(values, 0)])
            print(f"\n{n_steps} steps, {len(test)} structures, seeds {SEEDS}")
            print(pd.DataFrame(rows, columns=["annealing", "METRe", "cRMSE"]).round(4).to_string())
            rule = list(schedules)[1]
            for name in ("none", "learned"):
                found = Estimate.of(each[rule] - each[name])
                ends = f"{found.low:+.4f} to {found.high:+.4f}"
                print(f"rule minus {name}: {found.value:+.4f} (95 % {ends})")


if __name__ == "__main__":
    main()
