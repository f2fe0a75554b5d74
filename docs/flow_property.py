"""Reinforce a flow that makes whole crystals for a property of CrystalGym, beside site filling.

    python docs/flow_property.py density 3 [--seeds 0 1 2] [--evaluations 3840]
    python docs/flow_property.py bulk_modulus 300

The model denovo-mask chooses species, positions and cells, where site filling has a fixed skeleton;
reward, potential (CHGNet) and number of evaluations are those of docs/crystal_gym.py. Prints mean
rewards of fresh samples before and after, with 95 % intervals over training seeds (Student's t).
"""

import argparse

import irlkit  # isort: skip (before torch: its idle threads then sleep)
import numpy as np
import torch

from irlkit.envs import EvaluationCache, Evaluator, PropertyReward, get_backend
from irlkit.evaluate.evidence import Estimate, _mean_of_runs
from irlkit.rl import GRPOConfig, GRPOTrainer, Request, TrainerConfig, generate
from irlkit.rl.policies import SpeciesPolicy

N_STEPS, N_GROUPS, GROUP_SIZE = 20, 5, 64


def requests(model, n, seed):
    return Request(model.base.sample_n_atoms(n, torch.Generator().manual_seed(seed)))


def measure(policy, model, reward, n, seed):
    """Means over fresh samples, and how many of those on target are different."""
    draws = torch.Generator().manual_seed(1000 + seed)
    made = generate(
        policy, requests(model, n, 1000 + seed), N_STEPS, generator=draws, max_batch=160
    )
    result = reward(made)
    near = np.abs(np.asarray(result.info["value"], float) / reward.target - 1) <= 0.05
    formulas = np.array(made.reduced_formulas())
    return {
        "mean reward": float(result.values.mean()),
        "within 5 %": float(near.mean()),
        "different formulas within 5 %": float(len(set(formulas[near]))),
        "different formulas": float(len(set(formulas))),
        "failed": float(np.mean(result.info["failed"])),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("property")
    parser.add_argument("target", type=float)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--evaluations", type=int, default=3840)
    parser.add_argument("--samples", type=int, default=640)
    parser.add_argument("--cache", help="file of evaluations")
    given = parser.parse_args()
    evaluator = Evaluator(given.property, get_backend("chgnet"), EvaluationCache(given.cache))
    reward = PropertyReward(evaluator, given.target)
    rows = {"before": [], "after": []}
    for seed in given.seeds:
        model = irlkit.load_pretrained("denovo-mask")
        policy = SpeciesPolicy(model)
        rows["before"].append(measure(policy, model, reward, given.samples, seed))
        config = TrainerConfig(
            GRPOConfig(clip_eps=0.2, normalization="per_atom_surrogate"),
            n_groups=N_GROUPS,
            group_size=GROUP_SIZE,
            n_steps=N_STEPS,
            n_ppo_epochs=2,
            learning_rate=4e-3,
            max_batch=160,
            seed=seed,
        )
        trainer = GRPOTrainer(policy, reward, requests(model, 2000, seed), config)
        history = trainer.run(given.evaluations // (N_GROUPS * GROUP_SIZE))
        rows["after"].append(measure(policy, model, reward, given.samples, seed))
        print(seed, history["reward"].round(3).tolist(), flush=True)
        for metric in rows["after"][0]:
            found = {k: np.array([row[metric] for row in of]) for k, of in rows.items()}
            found["gain"] = found["after"] - found["before"]
            said = [f"{k} {Estimate.of(_mean_of_runs(v))}" for k, v in found.items()]
            print(f"{given.property}, {metric}:", "; ".join(said), flush=True)


if __name__ == "__main__":
    main()
