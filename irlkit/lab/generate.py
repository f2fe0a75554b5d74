"""Structures for formulas from the command line: generated, relaxed, ranked, compared, written.

irlkit generate NaCl MgO SrTiO3 -n 20 --relax -o out/
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
from irlkit.networks.flow_model import FlowModel
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
    model: str | FlowModel = "auto",
    annealing: str = "auto",
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
        model: what ``load_pretrained`` takes; a model; or "auto", which is chosen for each formula
            (``polymorphs.choose_model``).
        annealing: "learned" (with 10 steps, for linear-ode), "rule" (``EndpointAnnealing``),
            "none", the path of one, or "auto": the learned one for linear-ode, else the rule.
        n_steps: integration steps.
        relax: relax positions and cells before they are ranked.
        potential: of the energies.
        seed: of the base samples.
        device: of the networks.
        progress: show bars.

    Returns:
        The structures, those of a formula together, as ``polymorphs.ranked``; and a row for each:
        formula, rank, model, z, above_lowest (eV/atom, of its formula), what
        ``polymorphs.describe`` says, converged, and known: which known structure of the embedded
        data sets it matches, 0 being that of the lowest energy; or -1. And those known structures,
        relaxed with the potential.
        What is beyond the training data of the model is a warning.

    Raises:
        ValueError: a formula that is none, or other arguments that make no sense.
        FileNotFoundError: no such model or annealing.
    """
    named = isinstance(potential, str)
    energies = potentials.get(potential, **({"device": device} if named else {}))
    names_of, networks = _networks(formulas, z, model, device)
    pairs = [
        (formula, k, n_structures // len(tried) + (i < n_structures % len(tried)))
        for formula in formulas
        for tried in [list(z or polymorphs.formula_units(networks[names_of[formula]], formula))]
        for i, k in enumerate(tried)
    ]
    asked = CrystalBatch.concatenate([compositions.from_formula(f, k) for f, k, _ in pairs])
    energies.check(asked)
    names, units, counts = (np.array(column) for column in zip(*pairs, strict=True))
    chosen = np.array([names_of[formula] for formula in names])
    _warn_beyond(asked, chosen, networks)
    requested = asked[np.arange(len(asked)).repeat(counts)]
    names, chosen, units = (column.repeat(counts) for column in (names, chosen, units))
    settings = {"n_steps": n_steps, "progress": progress}
    found = _generated(requested, chosen, networks, annealing, seed, settings)
    if relax:
        relaxed = potentials.relax(found, energies, progress=progress)
        found, values, converged = relaxed.crystals, relaxed.energy_per_atom, relaxed.converged
    else:
        values, converged = energies(found).energy_per_atom, np.zeros(len(found), dtype=bool)
    found = found.to("cpu", torch.float64)
    known = polymorphs.known_structures(asked, energies)
    table = polymorphs.describe(found, values).assign(formula=names)
    table.insert(1, "model", chosen)
    table.insert(2, "z", units)
    table = table.assign(converged=converged, known=polymorphs.find_known(found, known))
    groups = [table[table["formula"] == name] for name in dict.fromkeys(formulas)]
    order = np.concatenate([group.index.to_numpy()[polymorphs.ranked(group)] for group in groups])
    found, table = found[order], table.iloc[order].reset_index(drop=True)
    energy = table.groupby("formula", sort=False)["energy_per_atom"]
    table.insert(1, "rank", energy.cumcount() + 1)
    table.insert(5, "above_lowest", table["energy_per_atom"] - energy.transform("min"))
    return found, table, known


def _networks(
    formulas: Sequence[str],
    z: Sequence[int] | None,
    model: str | FlowModel,
    device: str,
) -> tuple[dict[str, str], dict[str, FlowModel]]:
    """Formula -> name of its model, and name -> model."""
    if isinstance(model, FlowModel):
        return dict.fromkeys(formulas, "given"), {"given": model}
    names = dict.fromkeys(formulas, model)
    if model == "auto":
        most = max(z) if z else 4
        names = {f: polymorphs.choose_model(compositions.from_formula(f), most) for f in formulas}
    return names, {name: load_pretrained(name, device) for name in dict.fromkeys(names.values())}


def _warn_beyond(
    asked: CrystalBatch, chosen: np.ndarray, networks: Mapping[str, FlowModel]
) -> None:
    """Warn of compositions with what no structure had that their model was trained on."""
    for name, network in networks.items():
        table = polymorphs.seen(network, asked[chosen == name])
        for cell, words in table.loc[table["beyond them"] != "", "beyond them"].items():
            said = f"{cell} is beyond the training data of the model {name}: {words}"
            warnings.warn(said, stacklevel=4)


def _generated(
    requested: CrystalBatch,
    chosen: np.ndarray,
    networks: Mapping[str, FlowModel],
    annealing: str,
    seed: int,
    settings: Mapping[str, Any],
) -> CrystalBatch:
    """Structures of compositions, each by the network of its name, in their order."""
    parts = []
    for name, network in networks.items():
        generator = torch.Generator().manual_seed(seed)  # whatever else is asked for
        batch = requested[chosen == name].to(network.device, network.dtype)
        dynamics = Dynamics(network, _annealing(annealing, name))
        made = dynamics.generate(batch, generator=generator, **settings)
        parts.append(made.to("cpu", torch.float64))
    order = np.concatenate([np.flatnonzero(chosen == name) for name in networks])
    return CrystalBatch.concatenate(parts)[np.argsort(order)]


def _annealing(name: str, model: str) -> Annealing:
    if name == "auto":
        name = "learned" if model == "linear-ode" else "rule"
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
    parser.add_argument(
        "--model",
        default="auto",
        help="name or path; by itself, for each formula the smallest of the package's models that "
        "knows such cells",
    )
    parser.add_argument(
        "--annealing",
        default="auto",
        help=f"one of {', '.join(ANNEALINGS)}, or a path; by itself, the one learned for "
        "linear-ode with that model, else the rule",
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
    for name, part in table.groupby("model", sort=False):
        print(f"{', '.join(dict.fromkeys(part['formula']))}: by {name}")
    print(f"{len(table)} structures, the best of each formula first, in {out}")


if __name__ == "__main__":
    main()
