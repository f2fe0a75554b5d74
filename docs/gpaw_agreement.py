"""Compare bulk moduli by CHGNet and by GPAW: fillings that GRPO liked, and fillings at random.

    python docs/gpaw_agreement.py --out runs/08_gpaw [--n 5] [--seeds 0]

Of each training skeleton with at most five atoms, `n` different fillings of the highest reward in
GRPO's runs for 300 GPa (of docs/crystal_gym.py, which are read from the same folder or made), and
as many at random that have a minimum by CHGNet. GPAW takes one to ten minutes of a core for each;
what is computed is kept, and a run that is stopped goes on. Prints the tables of docs/results.md
and writes the table and the figure to the folder (docs/draw.py draws the page's from it).
"""

import argparse
from pathlib import Path

import irlkit  # noqa: F401  # isort: skip (before torch: its idle threads then sleep)
import numpy as np
import pandas as pd
import plotly.express as px

from irlkit import envs
from irlkit.crystals import CrystalBatch
from irlkit.envs.skeletons import atomic_numbers
from irlkit.evaluate.evidence import Bootstrap, Estimate
from irlkit.lab.experiments import crystal_gym

LIKED, RANDOM = "liked by GRPO", "at random"


def at_random(experiment, skeleton, n, generator):
    """Fillings of a skeleton, drawn evenly; the first with a minimum by the potential."""
    elements = atomic_numbers(experiment.size.elements)
    number = experiment.skeletons.names.index(skeleton)
    species = generator.choice(elements, (8 * n, experiment.skeletons.n_atoms[number]))
    crystals = experiment.skeletons.filled(np.full(len(species), number), species)
    values = experiment.reward(crystal_gym.BULK).evaluator(crystals).values
    return crystals[np.flatnonzero(np.isfinite(values))[:n]]


def spearman(first, second):
    return pd.Series(first).corr(pd.Series(second), method="spearman")


def agreement(rows, ours, theirs, rng):
    """Rank correlation and ratio of the fillings for which both have a modulus."""
    both = rows.dropna(subset=[ours, theirs])
    a, b = (both[name].to_numpy(float) for name in (ours, theirs))
    members = list(both.groupby("formula").indices.values())
    drawn = (rng.integers(0, len(members), len(members)) for _ in range(2000))
    drawn = (np.concatenate([members[k] for k in some]) for some in drawn)
    correlation = [spearman(a, b), *(spearman(a[i], b[i]) for i in drawn)]
    ratio = Bootstrap(both["formula"].to_numpy(str)).mean(b / a)
    error = Bootstrap(both["formula"].to_numpy(str)).mean(np.abs(a - b))
    return {
        "fillings": len(rows),
        "both have a minimum": len(both),
        "rank correlation": str(Estimate.of(np.array(correlation))),
        "GPAW / CHGNet": str(Estimate.of(ratio)),
        "mean absolute difference, GPa": str(Estimate.of(error)),
        "median of GPAW / CHGNet": round(float(np.median(b / a)), 3),
        "median by CHGNet, GPa": round(float(np.median(a)), 1),
        "median by GPAW, GPa": round(float(np.median(b)), 1),
        "seconds each": round(float(rows["seconds"].mean())),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="runs/08_gpaw")
    parser.add_argument("--n", type=int, default=5, help="fillings per skeleton and kind")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument(
        "--k-density",
        type=float,
        default=2.0,
        help="k-points per 1/Å of GPAW, fewer than its default 3.5 for time",
    )
    given = parser.parse_args()
    size = crystal_gym.CrystalGymSize(
        4000, tasks=(crystal_gym.BULK,), hard=(), seeds=tuple(given.seeds)
    )
    experiment = crystal_gym.SkeletonFilling(size, given.out)
    experiment.train(crystal_gym.BULK)
    small = [
        name
        for name, n in zip(
            experiment.skeletons.names, experiment.skeletons.n_atoms.tolist(), strict=True
        )
        if n <= 5
    ]
    generator = np.random.default_rng(0)
    parts, labels = [], []
    for name in small:
        liked = experiment.best(crystal_gym.BULK, "GRPO", given.n, [name])
        drawn = at_random(experiment, name, given.n, generator)
        parts += [liked, drawn]
        labels += [(name, LIKED)] * len(liked) + [(name, RANDOM)] * len(drawn)
    judge = envs.get_backend("gpaw", n_workers=given.workers, k_density=given.k_density)
    table = experiment.check_by(judge, CrystalBatch.concatenate(parts))
    table[["skeleton", "chosen"]] = labels
    ours, theirs = experiment.backend.name, judge.name
    print(table.round(1).to_string())
    rng = np.random.default_rng(1)
    found = {kind: agreement(rows, ours, theirs, rng) for kind, rows in table.groupby("chosen")}
    found["all"] = agreement(table, ours, theirs, rng)
    print(pd.DataFrame(found).to_string())
    table.to_parquet(Path(given.out) / "gpaw.parquet")
    figure = px.scatter(
        table.dropna(subset=[ours, theirs]),
        x=ours,
        y=theirs,
        color="chosen",
        symbol="skeleton",
        hover_name="formula",
        labels={ours: "bulk modulus by CHGNet, GPa", theirs: "bulk modulus by GPAW (PBE), GPa"},
        template="simple_white",
    )
    figure.update_layout(height=480)
    most = float(table[[ours, theirs]].max(axis=None))
    line = {"color": "gray", "dash": "dot", "width": 1}
    figure.add_shape(type="line", x0=0, y0=0, x1=most, y1=most, line=line)
    path = Path(given.out) / "figures" / "gpaw.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.write_html(path)


if __name__ == "__main__":
    main()
