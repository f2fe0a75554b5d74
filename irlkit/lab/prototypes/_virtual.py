"""Virtual entries: predicted formation energies of binary and ternary compounds for the hull.

The embedded set has no structure in most chemical systems, where a hull of it alone calls all
stable. A network of formation energies from the composition (Roost, trained on the OQMD) is asked
about all binary and ternary systems of its elements; its answers are shifted to the potential of
the set, and those that lie on the hull of each system are kept.
"""

from __future__ import annotations

from itertools import combinations, product
from math import gcd
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from ase.data import atomic_numbers, chemical_symbols
from pymatgen.core import Composition
from safetensors.torch import save_file
from scipy.optimize import linprog
from scipy.spatial import ConvexHull, QhullError

from irlkit.data import load
from irlkit.evaluate.hull import VIRTUAL_ENTRIES
from irlkit.lab.prototypes._convert import convert
from irlkit.networks.composition import ASSETS, CompositionNetwork
from irlkit.utils.progress import progress_bar

_MOST = {2: 6, 3: 4}
"""Largest count of an element."""
_SUM = {2: 12, 3: 7}
"""Most atoms in a formula."""
_RIDGE = 3.0
MARGIN = 0.05
"""Added to predictions, eV/atom: the lowest of many is too low. Chosen on the validation split."""
DEPTH = 0.02
"""A ternary compound is kept if it lies deeper below the hull of binary ones, eV/atom."""


def formation_energies(formulas: list[str], energies: np.ndarray) -> pd.Series:
    """Return lowest formation energies by reduced formula, of the elements' own, eV/atom."""
    table = pd.Series(energies, index=formulas).groupby(level=0).min()
    elements = {f: e for f, e in table.items() if len(Composition(f)) == 1}
    by_symbol = {str(next(iter(Composition(f)))): e for f, e in elements.items()}
    found = {}
    for formula, energy in table.items():
        shares = Composition(formula).fractional_composition.as_dict()
        if set(shares) <= set(by_symbol):
            found[formula] = energy - sum(x * by_symbol[e] for e, x in shares.items())
    return pd.Series(found)


class Predictor:
    """Formation energies as the potential of the embedded set would have them.

    The difference between both, on the compositions of the training split, is fitted by a
    ridge regression on the shares of the elements and on their products with the share of anions.

    Args:
        wheel: of the network, see `convert`.
    """

    def __init__(self, wheel: str | Path) -> None:
        state = convert(wheel, "formation-energy")
        self.network = CompositionNetwork(state["features"].shape[1])
        self.network.load_state_dict(state)
        self.known = ~self.network.features.isnan().any(1).numpy()
        whole = load("prototypes", progress=False)
        train = load("prototypes", "train", progress=False)
        formulas, energy = whole.batch.reduced_formulas(), whole.table["energy_per_atom"]
        self.measured = formation_energies(formulas, energy.to_numpy())
        # Whole compositions are in one split; elements give the zero.
        self.fitted = sorted(set(train.batch.reduced_formulas()) & set(self.measured.index))
        self.fitted = [f for f in self.fitted if len(Composition(f)) > 1 and self._knows(f)]
        shares = np.stack([_shares(f) for f in self.fitted])
        target = self.measured[self.fitted].to_numpy() - self._raw(shares)
        x = _features(shares)
        self.weights = np.linalg.solve(x.T @ x + _RIDGE * np.eye(x.shape[1]), x.T @ target)

    def _knows(self, formula: str) -> bool:
        return bool(self.known[np.flatnonzero(_shares(formula))].all())

    def _raw(self, shares: np.ndarray) -> np.ndarray:
        parts = torch.from_numpy(shares).float().split(20_000)
        with torch.no_grad():
            return torch.cat([self.network._predict(part) for part in parts]).double().numpy()

    def __call__(self, shares: np.ndarray) -> np.ndarray:
        """Predict formation energies, eV/atom, of shares of elements (B, 118)."""
        return self._raw(shares) + _features(shares) @ self.weights


_ANIONS = np.array(
    [
        s in {"N", "O", "F", "P", "S", "Cl", "As", "Se", "Br", "Te", "I", "H", "C"}
        for s in chemical_symbols[1:119]
    ]
)


def _features(shares: np.ndarray) -> np.ndarray:
    anions = shares[:, _ANIONS].sum(1, keepdims=True)
    return np.concatenate([shares, shares * anions * (1 - anions) * 4], axis=1)


def _shares(formula: str) -> np.ndarray:
    result = np.zeros(118)
    for element, share in Composition(formula).fractional_composition.items():
        result[element.Z - 1] = share
    return result


def ratios(n_elements: int) -> np.ndarray:
    """Return the coprime counts of elements that are asked about, shape (n, n_elements)."""
    counts = range(1, _MOST[n_elements] + 1)
    return np.array(
        [
            c
            for c in product(counts, repeat=n_elements)
            if gcd(*c) == 1 and sum(c) <= _SUM[n_elements]
        ]
    )


def make(wheel: str | Path) -> pd.DataFrame:
    """Return virtual entries: `formula` and `formation_energy_per_atom`."""
    predict = Predictor(wheel)
    elements = sorted({e for f in predict.measured.index for e in Composition(f).as_dict()})
    elements = [e for e in elements if predict.known[atomic_numbers[e] - 1]]
    binary: dict[tuple[str, ...], tuple[np.ndarray, np.ndarray]] = {}
    rows: list[tuple[str, float]] = []
    for size in (2, 3):
        counts = ratios(size)
        fractions = counts / counts.sum(1, keepdims=True)
        systems = list(combinations(elements, size))
        with progress_bar(total=len(systems), desc=f"systems of {size} elements") as bar:
            for begin in range(0, len(systems), 400):
                part = systems[begin : begin + 400]
                shares = np.zeros((len(part), len(counts), 118))
                for k, system in enumerate(part):
                    shares[k][:, [atomic_numbers[e] - 1 for e in system]] = fractions
                energies = predict(shares.reshape(-1, 118)).reshape(len(part), -1)
                for system, energy in zip(part, energies, strict=True):
                    kept = _on_hull(system, fractions, energy, binary)
                    if size == 2:
                        binary[system] = fractions[kept], energy[kept]
                    rows += [(_formula(system, counts[i]), float(energy[i])) for i in kept]
                bar.update(len(part))
    table = pd.DataFrame(rows, columns=["formula", "formation_energy_per_atom"])
    return prune(table)


def prune(table: pd.DataFrame) -> pd.DataFrame:
    """Add the margin, and drop what then matters little."""
    energy = table["formation_energy_per_atom"].to_numpy(dtype=float) + MARGIN
    shares = [_symbols(formula) for formula in table["formula"]]
    binary: dict[frozenset[str], list[tuple[dict[str, float], float]]] = {}
    for of, e in zip(shares, energy, strict=True):
        if len(of) == 2 and e < 0:
            binary.setdefault(frozenset(of), []).append((of, e))
    kept = energy < 0
    ternary = [i for i, of in enumerate(shares) if kept[i] and len(of) == 3]
    for row in progress_bar(iterable=ternary, unit="compound"):
        of = shares[row]
        entries = [x for pair in combinations(of, 2) for x in binary.get(frozenset(pair), ())]
        if entries:
            columns = [x for x, _ in entries] + [{e: 1.0} for e in of]
            costs = [e for _, e in entries] + [0.0] * 3
            matrix = [[x.get(e, 0.0) for x in columns] for e in of]
            solved = linprog(costs, A_eq=matrix, b_eq=list(of.values()), method="highs")
            kept[row] = energy[row] < solved.fun - DEPTH
    return pd.DataFrame(
        {
            "formula": table["formula"].to_numpy()[kept],
            "formation_energy_per_atom": energy[kept].round(3).astype(np.float32),
        }
    )


def _symbols(formula: str) -> dict[str, float]:
    return Composition(formula).fractional_composition.as_dict()


def _on_hull(
    system: tuple[str, ...], fractions: np.ndarray, energy: np.ndarray, binary: dict
) -> np.ndarray:
    """Rows of a system that lie on its lower hull, below its elements and binary compounds."""
    below = np.flatnonzero(energy < 0)
    if not len(below):
        return below
    size = len(system)
    points = [np.c_[np.eye(size), np.zeros(size)]]
    for pair in combinations(range(size), 2) if size == 3 else ():
        at, of = binary[tuple(system[i] for i in pair)]
        placed = np.zeros((len(of), size + 1))
        placed[:, list(pair)], placed[:, -1] = at, of
        points.append(placed)
    first = sum(map(len, points))
    points.append(np.c_[fractions[below], energy[below]])
    every = np.concatenate(points)[:, 1:]
    try:
        hull = ConvexHull(every)
    except QhullError:
        return below
    lower = hull.simplices[hull.equations[:, -2] < -1e-9]
    on = np.unique(lower)
    return below[on[on >= first] - first]


def _formula(system: tuple[str, ...], counts: np.ndarray) -> str:
    text = "".join(e + (str(n) if n > 1 else "") for e, n in zip(system, counts, strict=True))
    return Composition(text).reduced_formula


def write(wheel: str | Path) -> None:
    """Make the file of virtual entries again, and the network of band gaps."""
    gap = {name: value.half().contiguous() for name, value in convert(wheel, "band-gap").items()}
    save_file(gap, ASSETS / "band-gap.safetensors")
    table = make(wheel)
    table.to_parquet(VIRTUAL_ENTRIES, index=False, compression="zstd")
    print(f"{len(table)} entries in {VIRTUAL_ENTRIES}")
