"""Annealing and energy reinforcement by number of atoms (2 to 28) and of elements (1 to 4).

    python docs/by_size.py            # goes on where it was stopped
    python docs/by_size.py --table    # of what was measured
    python docs/by_size.py --old-set  # beside linear-ode on the test split of prototypes alone

On the test split of both embedded sets, ten steps, all from the same base samples: no annealing,
the rule with its constants tuned on validation, a schedule learned as in notebook 04, and the
velocity reinforced for its energy as in notebook 03, alone and on top of the rule. Settings are
those of the presets `laptop`, but for those that are named here. Differences are paired, with 95 %
intervals from a bootstrap over compositions and, for training seeds, Student's t.
"""

import argparse
import itertools
import time
from dataclasses import replace
from pathlib import Path

import irlkit  # isort: skip (before torch: its idle threads then sleep)
import numpy as np
import pandas as pd
import torch

from irlkit import data, potentials
from irlkit.evaluate import metrics
from irlkit.evaluate.evidence import Bootstrap, Estimate
from irlkit.flows.dynamics import Dynamics
from irlkit.flows.schedules import EndpointAnnealing, NoAnnealing, SquareRootNoise
from irlkit.lab import experiments
from irlkit.rewards import EnergyReward
from irlkit.rl import GRPOTrainer, TrainerConfig, VelocityPolicy

STEPS, BASE_SEEDS = 10, (0, 1)
ENDS = (4, 8, 12, 20, 28)
"""Of the ranges of numbers of atoms."""


def make_experiment(options):
    preset = replace(
        experiments.presets("annealing")["laptop"],
        iterations=options.iterations,
        seeds=tuple(options.seeds),
        test_size=options.structures,
        rule_size=256,
        n_workers=0,
    )
    return experiments.VelocityAnnealing(
        options.checkpoint, "prototypes+complex", preset, out_dir=options.out_dir, progress=False
    )


def reinforced(options, experiment, rule, potential, seed):
    """The velocity, reinforced for its energy on top of a rule or of none."""
    preset = experiments.presets("energy")["laptop"]
    settings = {
        **preset.grpo,
        "n_steps": STEPS,
        "iterations": options.energy_iterations,
        "max_batch": preset.max_batch,
        "validate_every": 1_000_000,
    }
    config = TrainerConfig.from_settings(settings, seed)
    noise = {"pos": SquareRootNoise(preset.noise["medium"]["pos"])}
    trainer = GRPOTrainer(
        VelocityPolicy(experiment.model, noise, None, rule),
        EnergyReward(potential, config.group_size),
        experiment.train,
        config,
        out_dir=options.out_dir / f"energy_{'none' if rule is None else 'rule'}_seed_{seed}",
        resume=True,
    )
    trainer.run(progress=False)
    with trainer.averaged() as policy:
        return policy.deploy()


def measure(experiment, dynamics, potential, references, seed):
    """A row per structure."""
    batch = experiment.test.batch
    x_0 = experiment.model.sample_base(batch, torch.Generator().manual_seed(seed))
    sizes = np.digitize(batch.n_atoms.numpy(), ENDS, right=True)
    seconds, parts = np.zeros(len(batch)), []
    rows = [np.flatnonzero(sizes == size) for size in np.unique(sizes)]
    for part in rows:
        start = time.perf_counter()
        parts.append(dynamics.generate(batch[part], STEPS, x_0=x_0[part], max_batch=64).to("cpu"))
        seconds[part] = (time.perf_counter() - start) / len(part)
    made = irlkit.CrystalBatch.concatenate(parts)[np.argsort(np.concatenate(rows))]
    matched = metrics.evaluate(made, experiment.test, experiment.pool).table
    closest = matched["best_rmsd"]
    return pd.DataFrame(
        {
            "row": range(len(batch)),
            "seed": seed,
            "displacement": closest.fillna(experiment.pool.stol).to_numpy(),
            "matched": closest.notna().to_numpy(dtype=float),
            "own": matched["rmsd"].notna().to_numpy(dtype=float),
            "energy": potential(made).energy_per_atom - references,
            "seconds": seconds,
        }
    )


def run(options):
    experiment = make_experiment(options)
    potential = potentials.get("chgnet")
    experiment.sweep_rule(STEPS)
    rule = experiment.best_rule(STEPS)
    print(rule, len(experiment.test), "test structures", flush=True)
    experiment.train_schedules()
    references = potential(experiment.test.batch).energy_per_atom
    jobs = {("none", 0): Dynamics(experiment.model, NoAnnealing())}
    jobs["rule", 0] = Dynamics(experiment.model, rule)
    for seed in options.seeds:
        jobs["learned", seed] = Dynamics(experiment.model, experiment.learned[seed])
        for name, start in (("reinforced", None), ("reinforced rule", rule)):
            jobs[name, seed] = reinforced(options, experiment, start, potential, seed)
    parts = [
        measure(experiment, dynamics, potential, references, base).assign(
            policy=name, training_seed=seed
        )
        for (name, seed), dynamics in jobs.items()
        for base in BASE_SEEDS
    ]
    n_atoms = experiment.test.batch.n_atoms.numpy()
    kinds = np.array([len(set(one.species.tolist())) for one in experiment.test.batch])
    found = pd.concat(parts, ignore_index=True)
    found = found.assign(
        n_atoms=n_atoms[found["row"]],
        n_elements=kinds[found["row"]],
        formula=np.array(experiment.test.batch.reduced_formulas())[found["row"]],
    )
    found.to_parquet(options.out_dir / "by_size.parquet")


def show(found):
    sizes = np.digitize(found["n_atoms"], ENDS, right=True)
    groups = {f"{n} elements": found["n_elements"] == n for n in range(1, 5)}
    groups |= {
        f"{low + 1} to {high} atoms": sizes == k
        for k, (low, high) in enumerate(itertools.pairwise((0, *ENDS)))
    }
    groups["all"] = found["row"] >= 0
    pd.set_option("display.width", 250, "display.max_columns", None, "display.max_rows", None)
    rows = {name: describe(found[inside]) for name, inside in groups.items() if inside.any()}
    print(pd.DataFrame(rows).to_string())


def describe(found):
    """What is said of some structures."""
    found = found.sort_values(["training_seed", "seed", "row"], kind="stable")
    draw = Bootstrap(found.drop_duplicates("row")["formula"].to_numpy())

    def values(policy, column):
        of = found[found["policy"] == policy]
        return of[column].to_numpy().reshape(of["training_seed"].nunique(), len(BASE_SEEDS), -1)

    policies = found["policy"].unique()
    closest = {name: draw.mean(values(name, "displacement")) for name in policies}
    energy = {name: draw.median(values(name, "energy")) for name in policies}
    matched = {name: 100 * draw.mean(values(name, "matched")) for name in policies}
    row = {"structures": found["row"].nunique()}
    row["ms each"] = f"{1e3 * values('rule', 'seconds').mean():.1f}"
    row |= {f"METRe, {name}": f"{v[0]:.1f}" for name, v in matched.items()}
    row |= {f"match rate, {name}": f"{100 * values(name, 'own').mean():.1f}" for name in policies}
    for what, of, pairs in (
        ("cRMSE", closest, (("rule", "none"), ("learned", "rule"))),
        (
            "energy",
            energy,
            (
                ("rule", "none"),
                ("learned", "rule"),
                ("reinforced", "none"),
                ("reinforced", "rule"),
                ("reinforced rule", "rule"),
            ),
        ),
        ("METRe", matched, (("reinforced", "none"), ("reinforced rule", "rule"))),
    ):
        if what != "METRe":
            row |= {f"{what}, {name}": format(Estimate.of(v), ".3f") for name, v in of.items()}
        for one, other in pairs:
            row[f"{what}, {one} - {other}"] = format(Estimate.of(of[one] - of[other]), "+.3f")
    return row


def compare(options):
    """Both models on the set that linear-ode was trained on, METRe with an interval."""
    test = data.load("prototypes", "test")
    draw, rows, matched = Bootstrap(test.batch.reduced_formulas()), [], {}
    with metrics.MatchPool(0) as pool:
        for checkpoint in ("linear-ode", options.checkpoint):
            model = irlkit.load_pretrained(checkpoint)
            for steps, annealing in itertools.product(
                (STEPS, 50), (NoAnnealing(), EndpointAnnealing())
            ):
                runs = []
                for seed in BASE_SEEDS:
                    draws = torch.Generator().manual_seed(seed)
                    made = Dynamics(model, annealing).generate(
                        test.batch, steps, generator=draws, max_batch=64
                    )
                    runs.append(metrics.evaluate(made, test, pool))
                found = np.stack([run.table["best_rmsd"].notna() for run in runs])
                key = (type(annealing).__name__, steps)
                matched.setdefault(key, []).append(100 * draw.mean(found))
                change = matched[key][-1] - matched[key][0]
                values = [(run.metre, run.crmse, run.match_rate) for run in runs]
                rows.append([checkpoint, *key, *np.mean(values, 0), Estimate.of(change)])
    columns = ["model", "annealing", "steps", "METRe", "cRMSE", "match rate", "METRe, change in %"]
    print(pd.DataFrame(rows, columns=columns).to_string())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default="linear-ode-28")
    parser.add_argument("--out-dir", type=Path, default=Path("runs/by_size"))
    parser.add_argument("--iterations", type=int, default=80, help="of the schedules")
    parser.add_argument("--energy-iterations", type=int, default=60)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="of trainings")
    parser.add_argument("--structures", type=int, help="of the test split, about; default: all")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--old-set", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.old_set:
        compare(options)
        return
    if not options.table:
        run(options)
    show(pd.read_parquet(options.out_dir / "by_size.parquet"))


if __name__ == "__main__":
    main()
