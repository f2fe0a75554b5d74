"""Reinforcement at few steps against the rule that needs none; trains, measures, prints a table.

    python docs/few_steps.py train --seed 0          # and 1 and 2; goes on where it was stopped
    python docs/few_steps.py measure                 # all seeds that are there, on the test split

Both policies start as the same rule, `START`, which is the control: what learning adds is the
difference from it. What is trained, and which iteration is kept, is decided on
the training and validation splits; the rule they are compared with has its two constants tuned on
validation for each number of steps by itself. Differences are paired, with 95 % intervals from a
bootstrap over compositions and, for training seeds, Student's t.
"""

import argparse
import json
from dataclasses import astuple
from pathlib import Path

import irlkit  # isort: skip (before torch: its idle threads then sleep)
import numpy as np
import torch

from irlkit import data
from irlkit.evaluate import metrics
from irlkit.evaluate.evidence import Bootstrap, Estimate, spread_of_seeds
from irlkit.flows.dynamics import Dynamics
from irlkit.flows.schedules import (
    ConstantNoise,
    EndpointAnnealing,
    StateAnnealing,
    load_annealing,
)
from irlkit.lab.experiments import Rung
from irlkit.lab.experiments._handcrafted import RULE_TRIALS, SWEEP_SEED, best_of, sweep
from irlkit.rewards import CRMSEReward, Reward, RewardResult
from irlkit.rl import (
    FewStepPolicy,
    GRPOTrainer,
    StateAnnealingPolicy,
    TrainerConfig,
    load_dynamics,
)
from irlkit.utils.system import write_atomically

START = EndpointAnnealing(10.0, 0.9)
TUNED_ON, VALIDATED_ON, BASE_SEEDS = 256, 400, (0, 1, 2)
SETTINGS = {
    "few_step": {
        "n_groups": 64,
        "group_size": 4,
        "n_steps": (3, 5, 5, 10),
        "n_ppo_epochs": 2,
        "minibatch_updates": 3,
        "learning_rate": 1.5e-4,
        "final_learning_rate": 3e-5,
        "policy_weight": {"pos": 1.0, "cell": 0.3},
        "advantages": "positive",
        "clip_eps": 0.2,
        "iterations": 20,
        "average_decay": 0.9,
    },
    "state_annealing": {
        "n_groups": 16,
        "group_size": 16,
        "n_steps": (3, 5, 5, 10, 20),
        "n_ppo_epochs": 4,
        "learning_rate": 3e-3,
        "final_learning_rate": 1e-3,
        "clip_eps": 0.2,
        "iterations": 20,
        "average_decay": 0.95,
    },
}
SHARED = {
    "shared_x_0": True,
    "max_batch": 128,
    "max_minibatch": 640,
    "validate_every": 5,
    "validation_n_steps": (5, 10),
}


class MetricReward(Reward):
    """The metric itself, for choosing an iteration: r = stol - cRMSE of a reference."""

    compares = True

    def __init__(self, references, pool):
        self.references, self.pool = references, pool

    def __call__(self, batch):
        table = metrics.evaluate(batch, self.references, self.pool).table
        values = self.pool.stol - table["best_rmsd"].fillna(self.pool.stol).to_numpy()
        return RewardResult(torch.from_numpy(values))


def policy_of(kind, model, known, seed):
    """A policy before training."""
    if kind == "state_annealing":
        annealing = StateAnnealing(START, generator=torch.Generator().manual_seed(seed))
        noise = {field: ConstantNoise(0.15) for field in ("pos", "cell")}
        return StateAnnealingPolicy(model, annealing, noise)
    noise = {"pos": ConstantNoise(0.1), "cell": ConstantNoise(0.3)}
    return FewStepPolicy(model, noise, annealing=START, references=known, noise_share=0.05)


def train(options, model):
    known, validation = (data.load(options.dataset, split=name) for name in ("train", "val"))
    validation = validation.subset(VALIDATED_ON)
    pool = metrics.MatchPool(0)
    settings = {**SHARED, **SETTINGS[options.kind]}
    trainer = GRPOTrainer(
        policy_of(options.kind, model, known, options.seed),
        CRMSEReward(known, pool),
        known,
        TrainerConfig.from_settings(settings, options.seed),
        validation=validation,
        validation_reward=MetricReward(validation, pool),
        out_dir=folder_of(options, options.seed),
        resume=True,
    )
    history = trainer.run()
    columns = ["iteration", "validation_reward"]
    print(history.loc[history["validation_reward"].notna(), columns].to_string())


def folder_of(options, seed):
    return options.out_dir / f"{options.kind}_{seed}"


def evaluated(dynamics, dataset, n_steps, seed, pool):
    draws = torch.Generator().manual_seed(seed)
    found = dynamics.generate(dataset.batch, n_steps, generator=draws, max_batch=128)
    return metrics.evaluate(found, dataset, pool)


def displacements(dynamics, dataset, n_steps, seed, pool):
    """Displacement of the best match of each reference, ``stol`` without one; and METRe."""
    measured = evaluated(dynamics, dataset, n_steps, seed, pool)
    return measured.table["best_rmsd"].fillna(pool.stol).to_numpy(), measured.metre


def tuned_rule(options, model, n_steps, pool):
    """The constants with the lowest cRMSE on validation structures, as notebook 04 seeks them."""
    path = options.out_dir / "rules.json"
    rules = json.loads(path.read_text()) if path.exists() else {}
    if str(n_steps) not in rules:
        validation = data.load(options.dataset, split="val")
        # Above 50 steps bounds hardly matter, and trials take long.
        trials = RULE_TRIALS if n_steps <= 50 else RULE_TRIALS[::7]

        def measured(part, k, rule):
            return evaluated(Dynamics(model, rule), part, k, SWEEP_SEED, pool)

        rung = Rung(len(trials), TUNED_ON, n_steps)
        tried = sweep(measured, validation, [rung], trials, False, EndpointAnnealing)
        rules[str(n_steps)] = astuple(best_of(tried, EndpointAnnealing))
        write_atomically(path, json.dumps(rules).encode())
    return EndpointAnnealing(*rules[str(n_steps)])


def learned_dynamics(options, model, seed):
    path = folder_of(options, seed) / "best.safetensors"
    if options.kind == "state_annealing":
        return Dynamics(model, load_annealing(path))
    return load_dynamics(path, model)


def measure(options, model):
    test = data.load(options.dataset, split="test").subset(options.structures)
    seeds = [s for s in range(3) if (folder_of(options, s) / "best.safetensors").exists()]
    draw = Bootstrap(test.batch.reduced_formulas())
    print(
        f"{options.kind}, training seeds {seeds}, base seeds {BASE_SEEDS}, {len(test)} structures"
    )
    print("| steps | tuned rule | its cRMSE (METRe) | start | learned | learned - rule | - start |")
    print("|--:|:--|--:|--:|--:|--:|--:|")
    with metrics.MatchPool(0) as pool:
        for n_steps in options.steps:
            rule = tuned_rule(options, model, n_steps, pool)
            base = BASE_SEEDS if n_steps <= 50 else BASE_SEEDS[: options.base_seeds_at_many]

            def of(dynamics, n_steps=n_steps, base=base):
                runs = [displacements(dynamics, test, n_steps, seed, pool) for seed in base]
                return np.stack([run[0] for run in runs]), np.mean([run[1] for run in runs])

            rules, rule_metre = of(Dynamics(model, rule))
            starts, start_metre = of(Dynamics(model, START))
            runs = [of(learned_dynamics(options, model, seed)) for seed in seeds]
            learned, metre = np.stack([run[0] for run in runs]), np.mean([run[1] for run in runs])
            gains = [
                Estimate.of(draw.mean(learned) - draw.mean(other)) for other in (rules, starts)
            ]
            words = [
                f"{gain.value:+.4f} ({gain.low:+.4f} to {gain.high:+.4f}), {gain.verdict('< 0')}"
                for gain in gains
            ]
            spread = spread_of_seeds(learned.mean(-1))["training"]
            print(
                f"| {n_steps} | {rule.pos:g}, {rule.cell:g} | {rules.mean():.4f} ({rule_metre:.3f})"
                f" | {starts.mean():.4f} ({start_metre:.3f}) | {learned.mean():.4f} ({metre:.3f}),"
                f" training seeds {spread:.4f} | {' | '.join(words)} |",
                flush=True,
            )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=("train", "measure"))
    parser.add_argument("--kind", choices=tuple(SETTINGS), default="few_step")
    parser.add_argument("--seed", type=int, default=0, help="of the training")
    parser.add_argument("--checkpoint", default="linear-ode")
    parser.add_argument("--dataset", default="prototypes")
    parser.add_argument("--out-dir", type=Path, default=Path("runs/few_steps"))
    parser.add_argument("--structures", type=int, default=480, help="of the test split, about")
    parser.add_argument("--steps", type=int, nargs="+", default=[3, 5, 10, 20, 50, 100, 500])
    parser.add_argument("--base-seeds-at-many", type=int, default=3, help="above 50 steps")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = irlkit.load_pretrained(options.checkpoint)
    options.out_dir.mkdir(parents=True, exist_ok=True)
    {"train": train, "measure": measure}[options.task](options, model)


if __name__ == "__main__":
    main()
