"""Reinforce discrete flow and latent diffusion alike, as notebook 09 does, with several seeds.

    python docs/latent.py --out runs/latent [--iterations 25] [--structures 1000] [--seeds 0 1 2]

Prints what both cost, the table of metrics with 95 % intervals (formulas and training seeds drawn
again), the scan of guidance, and the notebook's claims; writes tables, structures and networks.
Trainings continue where they were stopped; measurements are made again. Some hours on two cores.
"""

import argparse
from dataclasses import replace

import irlkit  # isort: skip (before torch: its idle threads then sleep)
import pandas as pd

from irlkit.lab.experiments import claims_table, denovo, latent
from irlkit.networks.latent_diffusion import LatentDiffusion


def main():
    laptop = latent.SIZES["laptop"]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="runs/latent")
    parser.add_argument("--checkpoint", default="chemeleon-dit")
    parser.add_argument("--iterations", type=int, default=laptop.iterations)
    parser.add_argument("--gap-iterations", type=int, default=laptop.gap_iterations)
    parser.add_argument("--structures", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--group-size", type=int, default=laptop.group_size)
    parser.add_argument("--learning-rate", type=float, default=laptop.latent_learning_rate)
    given = parser.parse_args()
    size = replace(
        laptop,
        n_structures=given.structures,
        iterations=given.iterations,
        gap_iterations=given.gap_iterations,
        seeds=tuple(given.seeds),
        group_size=given.group_size,
        latent_learning_rate=given.learning_rate,
    )
    comparison = latent.GeneratorComparison(
        size,
        irlkit.load_pretrained("denovo-mask"),
        LatentDiffusion.load(given.checkpoint),
        given.out,
        judge=denovo.find_judge("auto"),
    )
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


if __name__ == "__main__":
    main()
