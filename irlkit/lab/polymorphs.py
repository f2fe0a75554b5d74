"""Structures of a composition: described, compared with known ones, and what a model has seen."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from irlkit import data, potentials
from irlkit.crystals import CrystalBatch
from irlkit.crystals.compositions import from_formula
from irlkit.crystals.symmetry import conventional
from irlkit.data import CrystalDataset
from irlkit.data.loading import EMBEDDED
from irlkit.evaluate.matching import MatchPool
from irlkit.networks.flow_model import FlowModel
from irlkit.networks.pretrained import load_pretrained
from irlkit.potentials import Potential

_MODELS = ("linear-ode", "linear-ode-28")
"""Models of the package that predict structures of compositions, the one that knows less first."""
SAME_ENERGY = 1e-3
"""eV/atom."""
ANGLES = {"alpha": "α, °", "beta": "β, °", "gamma": "γ, °"}
PARAMETERS = {"a": "a, Å", "b": "b, Å", "c": "c, Å", **ANGLES}


def describe(batch: CrystalBatch, energy_per_atom: np.ndarray) -> pd.DataFrame:
    """Describe structures by what a chemist would look up.

    Args:
        batch: structures.
        energy_per_atom: eV/atom, nan where unknown, shape (B,).

    Returns:
        Columns formula, energy_per_atom, space_group (within 0.1 Å; empty where there is none),
        symmetry (the order of its point group, 0 where there is none), the lattice parameters a, b,
        c (Å), alpha, beta, gamma (degrees) of the conventional cell, density (g/cm³) and volume
        (Å³/atom).
    """
    rows = []
    for structure in batch.to_structures():
        shown, group, order = conventional(structure)
        rows.append([group, order, *shown.lattice.parameters])
    table = pd.DataFrame(rows, columns=["space_group", "symmetry", *PARAMETERS])
    table.insert(0, "formula", batch.reduced_formulas())
    table.insert(1, "energy_per_atom", np.asarray(energy_per_atom, dtype=float))
    volume = (batch.volume / batch.n_atoms).cpu().numpy()
    return table.assign(density=batch.density.cpu().numpy(), volume=volume)


def ranked(table: pd.DataFrame) -> np.ndarray:
    """Order structures of one composition from the best to those without an energy.

    Energies within 1 meV/atom of the lowest are one as far as potentials can tell: the most
    symmetric of these comes first. All others follow by their energy.

    Args:
        table: of ``describe``.

    Returns:
        Row numbers, shape (B,).
    """
    energy = table["energy_per_atom"].to_numpy()
    lowest = energy <= np.nanmin(energy, initial=np.inf) + SAME_ENERGY
    symmetry = np.where(lowest, -table["symmetry"], 0)
    return np.lexsort((energy, symmetry, ~lowest))


def known_structures(
    compositions: CrystalBatch, potential: Potential | None = None, dataset: str | None = None
) -> CrystalDataset:
    """Find the structures of some compositions in all splits of a data set; none, if it has none.

    >>> known_structures(CrystalBatch.from_formulas(["Na4Cl4"])).table["prototype"].tolist()
    ['B1', 'B8_1', 'B33', 'B4', 'B3', 'B2']

    Args:
        compositions: structures of these reduced formulas are taken.
        potential: to relax them with, so that their energies compare with those of others; None:
            they and their energies stay what they are in the data set.
        dataset: name or path; None: both embedded sets.

    Returns:
        The lowest energy of each formula first.
    """
    formulas = compositions.reduced_formulas()
    parts = [data.load(name) for name in ([dataset] if dataset else EMBEDDED)]
    parts = [part[part.table["formula"].isin(formulas)] for part in parts]
    table = pd.concat([part.table for part in parts], ignore_index=True)
    crystals = CrystalBatch.concatenate([part.batch for part in parts])
    known = CrystalDataset(dataset or "known", None, crystals, table)
    if potential is not None and len(known):
        relaxed, energy = relax_known(known.batch, potential)
        table = table.assign(energy_per_atom=energy)
        known = CrystalDataset(known.name, None, relaxed, table)
    if "energy_per_atom" not in table:
        return known
    return known[table.sort_values(["formula", "energy_per_atom"]).index.to_numpy()]


def find_known(batch: CrystalBatch, known: CrystalDataset) -> np.ndarray:
    """Say which known structure of its formula each one matches.

    Args:
        batch: structures.
        known: of ``known_structures``.

    Returns:
        Numbers among those of its formula, 0 being the first; -1 where there is none, shape (B,).
    """
    formulas, ours = known.table["formula"].to_numpy(), batch.reduced_formulas()
    pairs = [(i, int(j)) for i, f in enumerate(ours) for j in np.flatnonzero(formulas == f)]
    rank = known.table.groupby("formula").cumcount().to_numpy()
    found = np.full(len(batch), -1)
    if not pairs:
        return found
    with MatchPool(0) as pool:
        matched = np.isfinite(pool.rmsd(batch, known.batch, pairs))
    for i, j in np.array(pairs)[matched][::-1]:  # the first one last: it stays
        found[i] = rank[j]
    return found


def compare(
    batch: CrystalBatch, energy_per_atom: np.ndarray, known: CrystalDataset, names: Sequence[str]
) -> pd.DataFrame:
    """List structures beside the known ones of their formulas, in one table for people.

    Args:
        batch: structures.
        energy_per_atom: eV/atom, of the potential that `known` was relaxed with, shape (B,).
        known: of ``known_structures``.
        names: of the structures.

    Returns:
        A row for each structure and each known one, by formula. Numbers of known structures count
        from the lowest energy; a prototype is a Strukturbericht symbol or a compound.
    """
    ours = describe(batch, energy_per_atom).assign(name=list(names))
    which = find_known(batch, known)
    ours["what"] = [f"is known {k + 1}" if k >= 0 else "matches none" for k in which]
    unknown = pd.Series(np.nan, known.table.index)
    theirs = describe(known.batch, known.table.get("energy_per_atom", unknown).to_numpy())
    rank = known.table.groupby("formula").cumcount().to_numpy()
    kinds = known.table.get("prototype", pd.Series("", known.table.index))
    splits = known.table.get("split", pd.Series("", known.table.index))
    theirs["name"] = [f"known {k + 1}" for k in rank]
    theirs["what"] = [f"{kind} ({split})" for kind, split in zip(kinds, splits, strict=True)]
    table = pd.concat([ours, theirs[theirs["formula"].isin(ours["formula"])]])
    first = {formula: i for i, formula in enumerate(dict.fromkeys(ours["formula"]))}
    table = table.sort_values("formula", key=lambda f: f.map(first), kind="stable")
    units = {"density": "g/cm³", "energy_per_atom": "eV/atom", "space_group": "space group"}
    order = ["what", "space_group", *PARAMETERS, "density", "energy_per_atom"]
    shown = table.set_index(["formula", "name"])[order].rename(columns=PARAMETERS | units)
    return shown.round(3).round(dict.fromkeys(ANGLES.values(), 1))


def relax_known(
    batch: CrystalBatch, potential: Potential, progress: bool = False
) -> tuple[CrystalBatch, np.ndarray]:
    """Relax structures; those of elements that the potential does not know stay as they are.

    Args:
        batch: structures.
        potential: see ``potentials.relax``.
        progress: show a bar.

    Returns:
        The structures, and their energies in eV/atom, nan where there is none, shape (B,). A
        warning names the elements that are not known.
    """
    able = potential.knows(batch)
    try:
        potential.check(batch[~able])
    except ValueError as error:
        named = ", ".join(dict.fromkeys(batch[~able].formulas()))
        warnings.warn(f"{named}: not relaxed; {error}", stacklevel=2)
    energy = np.full(len(batch), np.nan)
    if not able.any():
        return batch, energy
    relaxed = potentials.relax(batch[able], potential, progress=progress)
    energy[able] = relaxed.energy_per_atom
    parts = CrystalBatch.concatenate([relaxed.crystals, batch[~able]])
    return parts[np.argsort(np.concatenate([np.flatnonzero(able), np.flatnonzero(~able)]))], energy


def seen(model: FlowModel, compositions: CrystalBatch) -> pd.DataFrame:
    """Say in words what of some compositions a model was trained on.

    Args:
        model: what it was trained on is known of models of this package alone.
        compositions: one or more.

    Returns:
        A row per different formula of a cell: "training data", whether its reduced formula is in
        them, and "beyond them", what of it no training structure has: elements, so many atoms, so
        many elements; empty where there is nothing.
    """
    name, limits, splits = model.info.get("dataset"), _limits(model), None
    if name and set(name.split("+")) <= set(EMBEDDED):
        splits = data.load(name).table.groupby("formula")["split"].agg(["first", "size"])
    rows = {}
    names = zip(compositions.formulas(), compositions.reduced_formulas(), strict=True)
    for (cell, formula), one in zip(names, compositions, strict=True):
        if limits is None:
            rows[cell] = ("not known here", "")
            continue
        said = "not recorded" if splits is None else "not among them"
        if splits is not None and formula in splits.index:
            split, size = splits.loc[formula]
            said = f"{size} structures" if split == "train" else f"not among them, but in {split}"
        rows[cell] = (said, _beyond(one.species.tolist(), limits))
    return pd.DataFrame.from_dict(rows, orient="index", columns=["training data", "beyond them"])


def _limits(model: FlowModel) -> dict[str, Any] | None:
    """What a model was trained on had at most; None where that is not known."""
    name = model.info.get("dataset")
    if name and set(name.split("+")) <= set(EMBEDDED):
        return data.load(name, "train").limits()
    return model.info.get("seen")


def choose_model(compositions: CrystalBatch, units: int = 4) -> str:
    """Choose a model of the package for some compositions: the smallest that knows such cells.

    >>> choose_model(CrystalBatch.from_formulas(["NaCl"]))
    'linear-ode'
    >>> choose_model(CrystalBatch.from_formulas(["LiFePO4"]))
    'linear-ode-28'

    Args:
        compositions: one or more.
        units: how often a cell may hold each.

    Returns:
        A name of `_MODELS`; the last, if none knows them all.
    """
    every = [one.species.tolist() * units for one in compositions]
    for name in _MODELS[:-1]:
        limits = _limits_of(name)
        if limits and not any(_beyond(species, limits) for species in every):
            return name
    return _MODELS[-1]


@functools.cache
def _limits_of(name: str) -> dict[str, Any] | None:
    """`_limits` of a model of the package, which is read once for all formulas."""
    return _limits(load_pretrained(name))


def formula_units(model: FlowModel, formula: str) -> list[int]:
    """Return those of 1, 2 and 4 formula units that make no larger cell than the model has seen.

    At least 1, and 1 alone where it is not known what the model was trained on.
    """
    limits, n_atoms = _limits(model), len(from_formula(formula).species)
    most = limits["max_atoms"] if limits else 0
    return [k for k in (1, 2, 4) if k == 1 or k * n_atoms <= most]


def _beyond(species: Sequence[int], limits: Mapping[str, Any]) -> str:
    """What of one composition, the atomic number of each atom, is beyond the training data."""
    from ase.data import chemical_symbols

    kinds = sorted(set(species))
    missing = [chemical_symbols[z] for z in kinds if z not in limits["elements"]]
    parts = [f"none has {', '.join(missing)}"] if missing else []
    for n, what in ((len(species), "atoms"), (len(kinds), "elements")):
        if n > (most := limits[f"max_{what}"]):
            parts.append(f"{n} {what}: they have at most {most}")
    return "; ".join(parts)
