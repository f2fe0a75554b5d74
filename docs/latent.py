"""Reinforce discrete flow and latent diffusion alike, as notebook 09 does, with several seeds.

    python docs/latent.py --out runs/latent [--iterations 25] [--structures 1000] [--seeds 0 1 2]
    python docs/latent.py --only-latents --iterations 50 --steps 9 --renoised 28
    python docs/latent.py --gradients 10 --steps 9
    python docs/latent.py --only-gap 2 --gap-iterations 8 --structures 300

Prints what both cost, the table of metrics with 95 % intervals (formulas drawn again, and
Student's t for training seeds), the scan of guidance, and the notebook's claims; writes tables,
structures and networks.
With --only-latents: table and claims of notebook 07 for the latent diffusion alone; with
--iterations 0 as well, of what needs no training. With --gradients: how alike gradients of so many
batches are, at the start, of all parameters and of each kind. With --trained: those whose names
hold one of these parts are trained, the others stay. With --only-gap: latent diffusion and a band
gap of 3 eV, reinforced, and guided by that scale; nothing is relaxed. Trainings continue where they
were stopped; measurements are made again. Some hours on two cores.
"""

import argparse
import re
from collections import defaultdict
from dataclasses import replace
from functools import partial

import irlkit  # isort: skip (before torch: its idle threads then sleep)
import pandas as pd
import torch

from irlkit.lab.experiments import claims_table, denovo, latent
from irlkit.networks.latent_diffusion import LatentDiffusion
from irlkit.rl import group_advantages, grpo_loss, rollout

RENOISED_UPDATES = {"n_ppo_epochs": 2, "step_fraction": 0.5, "max_minibatch": 3000}


def main():
    laptop = latent.SIZES["laptop"]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="runs/latent")
    parser.add_argument("--checkpoint", default="chemeleon-dit")
    parser.add_argument("--iterations", type=int, default=laptop.iterations)
    parser.add_argument("--gap-iterations", type=int, default=laptop.gap_iterations)
    parser.add_argument("--structures", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--groups", type=int, default=laptop.n_groups)
    parser.add_argument("--group-size", type=int, default=laptop.group_size)
    parser.add_argument("--learning-rate", type=float, default=laptop.latent_learning_rate)
    parser.add_argument("--steps", type=int, default=laptop.latent_steps)
    parser.add_argument("--renoised", type=int, help="steps of the paths of an update")
    parser.add_argument("--advantages", default="standard", help="see `group_advantages`")
    parser.add_argument("--only-latents", action="store_true")
    parser.add_argument("--only-gap", type=float, help="scale of the guidance beside it")
    parser.add_argument("--gradients", type=int, help="batches")
    parser.add_argument("--trained", nargs="+", help="parts of names of parameters; None: all")
    parser.add_argument("--judge", default="auto", help="7net-0, auto or none")
    parser.add_argument("--threads", type=int, help="of torch")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    size = replace(
        laptop,
        n_structures=given.structures,
        iterations=max(given.iterations, 1),
        gap_iterations=given.gap_iterations,
        seeds=tuple(given.seeds),
        n_groups=given.groups,
        group_size=given.group_size,
        latent_learning_rate=given.learning_rate,
        latent_steps=given.steps,
    )
    comparison = latent.GeneratorComparison(
        size,
        irlkit.load_pretrained("denovo-mask"),
        LatentDiffusion.load(given.checkpoint),
        given.out,
        judge=denovo.find_judge(given.judge),
        n_workers=0 if given.threads == 1 else None,
    )
    generator = comparison.experiments[latent.LATENT].generator
    generator.grpo = replace(generator.grpo, advantages=given.advantages)
    if given.renoised:
        generator.renoised, generator.updates = given.renoised, RENOISED_UPDATES
    if given.trained:
        generator.policy = partial(policy_of, generator.policy, given.trained)
    if given.gradients:
        return gradients(comparison.experiments[latent.LATENT], given.gradients)
    if given.only_gap:
        return only_gap(comparison, given.only_gap)
    if given.only_latents:
        return only_latents(comparison, given)
    with pd.option_context("display.width", 250, "display.max_colwidth", None):
        comparison.train(denovo.REINFORCED)
        faster = comparison.train_equal_seconds()
        comparison.train(denovo.GAP, latent.LATENT)
        for variant in (denovo.REINFORCED, latent.LONGER):
            print(comparison.seconds(variant).round(1).to_string())
        print(comparison.tune_temperature().to_string())
        for variant in (denovo.START, denovo.RULE, denovo.REINFORCED):
            comparison.evaluate(variant)
        comparison.evaluate(latent.LONGER, faster)
        comparison.evaluate(denovo.GAP, latent.LATENT)
        print(comparison.tune_guidance().to_string())
        print(comparison.table().T.to_string())
        claims = comparison.claims()
        print(claims_table(claims).to_string())
    comparison.write_results(claims, {}, vars(given))


def policy_of(make, trained, temperature=1.0):
    """Make a policy of which the named parameters alone are trained."""
    policy = make(temperature)
    for name, weight in policy.named_parameters():
        weight.requires_grad_(any(part in name for part in trained))
    return policy


def gradients(experiment, n_batches):
    """Print the mean cosine of gradients of batches that were drawn one by one."""
    config, reward = experiment.config(denovo.REINFORCED, 0), experiment.reward()
    policy, draws = experiment.generator.policy(), torch.Generator().manual_seed(0)
    found = {None: [], 9: [], 27: []}
    for seed in range(n_batches):
        request = experiment.request(config.n_groups, seed).repeat(config.group_size)
        x_0 = policy.process.initial(request, draws)
        trajectory = rollout(policy, x_0, config.n_steps, draws, max_batch=config.max_batch)
        values = reward.in_groups(trajectory.final, config.group_size).values
        advantages = group_advantages(values, config.group_size)
        for renoised, of in found.items():
            policy.renoised = renoised
            path = policy.retrace(trajectory, draws)
            policy.zero_grad()
            for i in range(path.n_steps):
                grpo_loss(policy, path, advantages, config.grpo, torch.tensor([i])).total.backward()
            grads = defaultdict(list)
            for name, weight in policy.named_parameters():
                if weight.grad is not None:
                    grads[re.sub(r"\.\d+", "", name)].append(weight.grad.flatten())
            of.append({name: torch.cat(parts) for name, parts in grads.items()})
    pairs = torch.ones(n_batches, n_batches).triu(1).bool()
    for renoised, of in found.items():
        path = "the rollout's" if renoised is None else f"{renoised} renoised"
        print(f"{path} steps, cosines of {n_batches} gradients: mean, standard error over pairs")
        for names in ([*of[0]], *([name] for name in of[0])):
            rows = torch.stack([torch.cat([one[name] for name in names]) for one in of])
            unit = torch.nn.functional.normalize(rows, dim=1)
            likeness = (unit @ unit.T)[pairs]
            error = float(likeness.std()) / len(likeness) ** 0.5
            what = "all" if len(names) > 1 else names[0]
            print(f"{float(likeness.mean()):.3f} {error:.3f} {what}")


def only_gap(comparison, guidance):
    experiment, size = comparison.experiments[latent.LATENT], comparison.size
    history = experiment.train(denovo.GAP)
    print(history.groupby("seed")[["rollout_seconds", "reward_seconds", "update_seconds"]].sum())
    for seed in size.seeds:
        policies = {
            denovo.START: experiment.generator.policy(),
            denovo.GAP: experiment.policies[denovo.GAP, seed],
        }
        n = size.n_structures
        made = {name: experiment.generate(policy, n, seed) for name, policy in policies.items()}
        made[f"guided by {guidance:g}"] = comparison._guided(n, seed, guidance)
        for variant, structures in made.items():
            found = experiment.measure(structures, relax=False)
            both = found.table["on_target"].astype(bool) & found.table["unique"].astype(bool)
            table = found.table.assign(**{"unique and on target": both.astype(float)})
            experiment.metrics[variant, seed] = replace(found, table=table)
    metrics = "on_target", "unique and on target", "valid", "unique", "novel"
    with pd.option_context("display.width", 250, "display.max_colwidth", None):
        print(experiment.table((*metrics, "composition_diversity")).T.to_string())


def only_latents(comparison, given):
    experiment = comparison.experiments[latent.LATENT]
    variants = [denovo.START, denovo.RULE, denovo.REINFORCED][: 3 if given.iterations else 1]
    if given.iterations:
        print(experiment.train(denovo.REINFORCED).tail().T.to_string())
        print(experiment.tune_temperature().to_string())
    with pd.option_context("display.width", 250, "display.max_colwidth", None):
        print(experiment.evaluate(*variants).T.to_string())
        if given.iterations:
            print(claims_table(experiment.claims()).to_string())
    folder = experiment.out_dir
    for (variant, seed), found in experiment.metrics.items():
        found.table.to_parquet(folder / f"{variant}_{seed}_{given.steps}.parquet")


if __name__ == "__main__":
    main()
