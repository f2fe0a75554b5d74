"""Structures for formulas from the command line: generated, relaxed, ranked, compared, written.

irlkit generate NaCl MgO SrTiO3 -n 20 --relax -o out/
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from irlkit import potentials
from irlkit.crystals import CrystalBatch, compositions
from irlkit.data import CrystalDataset
from irlkit.data.writers import write
from irlkit.flows.dynamics import Dynamics
from irlkit.flows.schedules import Annealing, EndpointAnnealing, NoAnnealing, load_annealing
from irlkit.lab import polymorphs
from irlkit.lab.experiments.finished import SHIPPED
from irlkit.networks.pretrained import load_pretrained
from irlkit.potentials import Potential
from irlkit.utils.settings import torch_settings
from irlkit.utils.system import check_writable

ANNEALINGS = ("learned", "rule", "none")


@torch_settings(plain=True)
def generate(
    formulas: Sequence[str],
    n_structures: int = 20,
    *,
    z: Sequence[int] | None = None,
    model: str = "linear-ode",
    annealing: str = "learned",
    n_steps: int = 10,
    relax: bool = True,
    potential: str | Potential = "chgnet",
    seed: int = 0,
    device: str = "cpu",
    progress: bool = False,
) -> tuple[CrystalBatch, pd.DataFrame, CrystalDataset]:
    """Generate structures of formulas and rank those of each by their energy.

    Args:
        formulas: such as "SrTiO3".
        n_structures: per formula, shared evenly among the numbers of formula units.
        z: numbers of formula units per cell; None: ``polymorphs.formula_units``.
        model: what ``load_pretrained`` takes.
        annealing: "learned" (with 10 steps, for linear-ode), "rule" (``EndpointAnnealing``),
            "none", or the path of one.
        n_steps: integration steps.
        relax: relax positions and cells before they are ranked.
        potential: of the energies.
        seed: of the base samples.
        device: of the networks.
        progress: show bars.

    Returns:
        The structures, those of a formula together, as ``polymorphs.ranked``; and a row for each:
        formula, rank, z, above_lowest (eV/atom, of its formula), what ``polymorphs.describe`` says,
        converged, and known: which known structure of the embedded data set it matches, 0 being
        that of the lowest energy; or -1. And those known structures, relaxed with the potential.
        What is beyond the training data of the model is a warning.

    Raises:
        ValueError: a formula that is none, or other arguments that make no sense.
        FileNotFoundError: no such model or annealing.
    """
    named = isinstance(potential, str)
    energies = potentials.get(potential, **({"device": device} if named else {}))
    network = load_pretrained(model, device)
    pairs = [
        (formula, k, n_structures // len(tried) + (i < n_structures % len(tried)))
        for formula in formulas
        for tried in [list(z or polymorphs.formula_units(network, formula))]
        for i, k in enumerate(tried)
    ]
    asked = CrystalBatch.concatenate([compositions.from_formula(f, k) for f, k, _ in pairs])
    energies.check(asked)
    polymorphs.warn_beyond(network, asked)
    names, units, counts = (np.array(column) for column in zip(*pairs, strict=True))
    names, units = names.repeat(counts), units.repeat(counts)
    requested = asked[np.arange(len(asked)).repeat(counts)]
    generator = torch.Generator().manual_seed(seed)
    found = Dynamics(network, _annealing(annealing)).generate(
        requested.to(device, network.dtype), n_steps, generator=generator, progress=progress
    )
    if relax:
        relaxed = potentials.relax(found, energies, progress=progress)
        found, values = relaxed.crystals, relaxed.energy_per_atom
        converged = relaxed.converged
    else:
        values = energies(found).energy_per_atom
        converged = np.zeros(len(found), dtype=bool)
    found = found.to("cpu", torch.float64)
    known = polymorphs.known_structures(asked, energies)
    table = polymorphs.describe(found, values).assign(formula=names)
    table.insert(1, "z", units)
    table = table.assign(converged=converged, known=polymorphs.find_known(found, known))
    parts = [table[table["formula"] == name] for name in dict.fromkeys(formulas)]
    order = np.concatenate([part.index.to_numpy()[polymorphs.ranked(part)] for part in parts])
    found, table = found[order], table.iloc[order].reset_index(drop=True)
    groups = table.groupby("formula", sort=False)["energy_per_atom"]
    table.insert(1, "rank", groups.cumcount() + 1)
    table.insert(4, "above_lowest", table["energy_per_atom"] - groups.transform("min"))
    return found, table, known


def _annealing(name: str) -> Annealing:
    if name == "learned":
        return load_annealing(SHIPPED / "schedule_seed_0.safetensors")
    if name == "rule":
        return EndpointAnnealing()
    return NoAnnealing() if name == "none" else load_annealing(name)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="irlkit generate", description=__doc__)
    parser.add_argument("formulas", nargs="+", help="such as NaCl MgO SrTiO3")
    parser.add_argument("-n", type=int, default=20, help="structures per formula")
    parser.add_argument(
        "-z",
        type=int,
        nargs="+",
        help="formula units per cell, which share the structures; by itself, those of 1, 2 and 4 "
        "whose cells are not larger than what the model was trained on",
    )
    parser.add_argument("-o", "--out", type=Path, default=Path("generated"), help="folder")
    parser.add_argument("--relax", action="store_true", help="relax with the potential")
    parser.add_argument("--model", default="linear-ode", help="name or path")
    parser.add_argument(
        "--annealing", default="learned", help=f"one of {', '.join(ANNEALINGS)}, or a path"
    )
    parser.add_argument("--steps", dest="n_steps", type=int, default=10, help="integration steps")
    parser.add_argument("--potential", default="chgnet", help="of the energies")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    given = parser.parse_args(argv)
    options = vars(given).copy()
    formulas, n_structures, out = (options.pop(name) for name in ("formulas", "n", "out"))
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: print(message, file=sys.stderr)
        try:
            check_writable(out)
            if any((out / "cifs").glob("*.cif")):
                raise ValueError(f"{out} has structures of an earlier run: give another folder")
            found, table, known = generate(formulas, n_structures, **options, progress=True)
        except (ImportError, OSError, ValueError) as error:
            parser.error(str(error))
    ids = [f"{row.formula}_{row.rank:03d}" for row in table.itertuples()]
    named = table.assign(material_id=ids)
    settings = {name: str(value) for name, value in vars(given).items()}
    write(out / "cifs", found, named, settings)
    write(out / "structures.extxyz", found, named, settings)
    named.to_csv(out / "structures.csv", index=False)
    best = (table["rank"] == 1).to_numpy()
    energies = table.loc[best, "energy_per_atom"].to_numpy()
    names = ["generated"] * int(best.sum())
    print(polymorphs.compare(found[best], energies, known, names).to_string())
    print(f"{len(table)} structures, the best of each formula first, in {out}")


if __name__ == "__main__":
    main()
