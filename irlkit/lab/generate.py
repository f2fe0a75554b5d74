"""Structures for formulas from the command line: generated, relaxed, ranked, compared, written.

irlkit generate NaCl MgO SrTiO3 -n 20 --relax -o out/
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from irlkit import data, potentials
from irlkit.crystals import CrystalBatch, compositions
from irlkit.data.writers import write
from irlkit.evaluate.matching import MatchPool
from irlkit.flows.dynamics import Dynamics
from irlkit.flows.schedules import Annealing, EndpointAnnealing, NoAnnealing, load_annealing
from irlkit.lab.experiments.finished import SHIPPED
from irlkit.networks.pretrained import load_pretrained
from irlkit.potentials import Potential

ANNEALINGS = ("learned", "rule", "none")
SYMPREC = 0.1
"""Å, of the space groups: structures from a network are not exact."""


def generate(
    formulas: Sequence[str],
    n_structures: int = 20,
    *,
    z: Sequence[int] = (1,),
    model: str = "linear-ode",
    annealing: str = "learned",
    n_steps: int = 10,
    relax: bool = True,
    potential: str | Potential = "chgnet",
    seed: int = 0,
    device: str = "cpu",
    progress: bool = False,
) -> tuple[CrystalBatch, pd.DataFrame]:
    """Generate structures of formulas and rank those of each by their energy.

    Args:
        formulas: such as "SrTiO3".
        n_structures: per formula and number of formula units.
        z: numbers of formula units per cell.
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
        The structures, those of a formula together and the lowest energy first; and a row for each:
        formula, rank, z, energy_per_atom (eV/atom), above_lowest (eV/atom, of its formula), volume
        per atom (Å^3), density (g/cm^3), space_group, converged, and known: the number of the known
        structure of the embedded data set that it matches, counted from the lowest energy, or -1.

    Raises:
        ValueError: a formula that is none, or other arguments that make no sense.
        FileNotFoundError: no such model or annealing.
    """
    cells = [compositions.from_formula(formula, k) for formula in formulas for k in z]
    requested = CrystalBatch.concatenate(cells).repeat(n_structures)
    names = np.repeat([formula for formula in formulas for _ in z], n_structures)
    units = np.tile(np.repeat(list(z), n_structures), len(formulas))
    network = load_pretrained(model, device)
    generator = torch.Generator().manual_seed(seed)
    found = Dynamics(network, _annealing(annealing)).generate(
        requested.to(device, network.dtype), n_steps, generator=generator, progress=progress
    )
    energies = potentials.get(potential, **({"device": device} if _is_name(potential) else {}))
    if relax:
        relaxed = potentials.relax(found, energies, progress=progress)
        found, values = relaxed.crystals, relaxed.energy_per_atom
        converged = relaxed.converged
    else:
        values = energies(found).energy_per_atom
        converged = np.zeros(len(found), dtype=bool)
    found = found.to("cpu", torch.float64)
    # Ordered by formula as given, and within it by energy; those without one come last.
    place = np.array([list(formulas).index(name) for name in names])
    order = np.lexsort((values, place))
    found, values = found[order], values[order]
    table = pd.DataFrame(
        {
            "formula": names[order],
            "z": units[order],
            "energy_per_atom": values,
            "volume": (found.volume / found.n_atoms).numpy(),
            "density": _densities(found),
            "space_group": _space_groups(found),
            "converged": converged[order],
            "known": _known(found),
        }
    )
    groups = table.groupby("formula", sort=False)["energy_per_atom"]
    table.insert(1, "rank", groups.cumcount() + 1)
    table.insert(4, "above_lowest", table["energy_per_atom"] - groups.transform("min"))
    return found, table


def _is_name(potential: Any) -> bool:
    return not isinstance(potential, Potential)


def _annealing(name: str) -> Annealing:
    if name == "learned":
        return load_annealing(SHIPPED / "schedule_seed_0.safetensors")
    if name == "rule":
        return EndpointAnnealing()
    return NoAnnealing() if name == "none" else load_annealing(name)


def _densities(batch: CrystalBatch) -> np.ndarray:
    """Of each structure, g/cm^3."""
    return np.array([float(s.density) for s in batch.to_structures()])


def _space_groups(batch: CrystalBatch) -> list[str]:
    """Symbol of each structure's space group; empty where none is found."""
    import spglib

    symbols = []
    for crystal in batch:
        cell: Any = (crystal.cell[0].numpy(), crystal.pos.numpy(), crystal.species.numpy())
        dataset = spglib.get_symmetry_dataset(cell, symprec=SYMPREC)
        symbols.append("" if dataset is None else dataset.international)
    return symbols


def _known(batch: CrystalBatch) -> np.ndarray:
    """Which known structure of its formula each one matches, the lowest energy being 0."""
    dataset = data.load("prototypes")
    known, energy = dataset.batch, dataset.table["energy_per_atom"].to_numpy(float)
    formulas, ours = np.array(known.reduced_formulas()), batch.reduced_formulas()
    of_formula = {
        name: (rows := np.flatnonzero(formulas == name))[np.argsort(energy[rows])]
        for name in set(ours)
    }
    pairs = [(i, int(j)) for i, name in enumerate(ours) for j in of_formula[name]]
    matched = np.full(len(batch), -1)
    with MatchPool(0) as pool:
        rmsd = pool.rmsd(batch, known, pairs) if pairs else np.zeros(0)
    for (i, j), distance in zip(pairs, rmsd, strict=True):
        if np.isfinite(distance) and matched[i] < 0:
            matched[i] = int(np.flatnonzero(of_formula[ours[i]] == j)[0])
    return matched


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="irlkit generate", description=__doc__)
    parser.add_argument("formulas", nargs="+", help="such as NaCl MgO SrTiO3")
    parser.add_argument("-n", type=int, default=20, help="structures per formula and z")
    parser.add_argument("-z", type=int, nargs="+", default=[1], help="formula units per cell")
    parser.add_argument("-o", "--out", type=Path, default=Path("generated"), help="folder")
    parser.add_argument("--relax", action="store_true", help="relax with the potential")
    parser.add_argument("--model", default="linear-ode", help="name or path")
    parser.add_argument(
        "--annealing", default="learned", help=f"one of {', '.join(ANNEALINGS)}, or a path"
    )
    parser.add_argument("--steps", type=int, default=10, help="integration steps")
    parser.add_argument("--potential", default="chgnet", help="of the energies")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    given = parser.parse_args(argv)
    try:
        found, table = generate(
            given.formulas,
            given.n,
            z=given.z,
            model=given.model,
            annealing=given.annealing,
            n_steps=given.steps,
            relax=given.relax,
            potential=given.potential,
            seed=given.seed,
            device=given.device,
            progress=True,
        )
    except (FileNotFoundError, ImportError, ValueError) as error:
        parser.error(str(error))
    ids = [f"{row.formula}_{row.rank:03d}" for row in table.itertuples()]
    named = table.assign(material_id=ids)
    settings = {name: str(value) for name, value in vars(given).items()}
    write(given.out / "cifs", found, named, settings)
    write(given.out / "structures.extxyz", found, named, settings)
    named.to_csv(given.out / "structures.csv", index=False)
    best = table.groupby("formula", sort=False).head(1).set_index("formula")
    print(best.drop(columns=["rank", "above_lowest"]).round(3).to_string())
    print(f"{len(table)} structures, the best of each formula first, in {given.out}")


if __name__ == "__main__":
    main()
