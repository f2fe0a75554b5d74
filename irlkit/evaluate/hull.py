"""Energies above the convex hull, and whether the hull knows enough to say so.

The hull is the lowest energy that a mixture of known entries reaches at a composition: a linear
program in their amounts. Where no entry competes, everything seems stable; a policy that is paid
for stability then leaves what the hull knows. So each value comes with its coverage.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pymatgen.core import Composition
from scipy.optimize import linprog

from irlkit.crystals import CrystalBatch
from irlkit.data import load
from irlkit.utils.checks import checked

VIRTUAL_ENTRIES = Path(__file__).parents[1] / "data" / "prototypes" / "virtual_entries.parquet"
_PLAIN = re.compile(r"([A-Z][a-z]?)(\d*)")
POTENTIAL = "chgnet-0.3.0"
"""Of the energies of the embedded data set."""
HULLS = (POTENTIAL, "7net-0")
"""Potentials whose energies of the embedded data set come with the package."""
METASTABLE = 0.1
"""Largest energy above the hull of a metastable structure, eV/atom."""
_SURVEYED_ORDER = 3
"""Virtual entries stand for all systems of so many elements."""


@dataclass(frozen=True)
class HullResult:
    """Where B structures are relative to a hull.

    Attributes:
        value: energy above the hull of the entries, below 0 where a structure is more stable than
            they are, eV/atom, nan without energy or coverage, shape (B,).
        covered: whether the hull covers the chemical system, shape (B,).
        decomposition: of each structure, reduced formula -> share of the atoms of what it would
            decompose to; empty without coverage.
    """

    value: np.ndarray
    covered: np.ndarray
    decomposition: tuple[Mapping[str, float], ...]


class Hull:
    """Entries, formulas with energies per atom, and what follows for others.

    A chemical system is covered if every element of it has an entry, every pair and every three of
    its elements have an entry with just these elements or were surveyed, and, if it has four or
    more elements, there is an entry with just these. Surveyed are the systems of one to three of
    the elements that virtual entries, of predicted energies, stand for: no such entry then means
    that none was predicted to matter.

    Args:
        energies: formula -> eV/atom, or pairs of them; of equal compositions, the lowest counts.
        potential: what computed the energies.
        virtual: formula -> predicted formation energy, eV/atom, from the lowest entries of its
            elements; it counts where the composition has no other entry.
        surveyed: elements that the virtual entries stand for.
        strict: False calls every system of known elements covered, to see what comes of it.

    Raises:
        ValueError: no entries, an energy that is not finite, or a virtual entry or a surveyed
            element without an entry of the element.

    >>> hull = Hull({"Na": -1.3, "Cl": -1.8, "NaCl": -3.4}, "toy")
    >>> batch = CrystalBatch.from_formulas(["Na1 Cl1", "Na3 Cl1", "Na1 K1"])
    >>> result = hull.energy_above_hull(batch, [-3.3, -2.3, 0.0])
    >>> result.value.round(3).tolist(), result.covered.tolist()
    ([0.1, 0.05, nan], [True, True, False])
    >>> result.decomposition[1]
    {'Na': 0.5, 'NaCl': 0.5}
    """

    @checked
    def __init__(
        self,
        energies: Mapping[str, float] | Iterable[tuple[str, float]],
        potential: str,
        virtual: Mapping[str, float] | None = None,
        surveyed: Sequence[str] = (),
        strict: bool = True,
    ) -> None:
        pairs = list(energies.items() if isinstance(energies, Mapping) else energies)
        if not pairs:
            raise ValueError("energies must hold at least one entry, got none")
        self.potential, self.strict = potential, strict
        real: dict[str, float] = {}
        for formula, energy in pairs:
            if not np.isfinite(energy):
                raise ValueError(f"energies[{formula!r}] must be finite, in eV/atom, got {energy}")
            name = Composition(formula).reduced_formula
            real[name] = min(float(energy), real.get(name, np.inf))
        of_elements = {name: _shares(name) for name in real}
        pure = ((next(iter(of)), real[name]) for name, of in of_elements.items() if len(of) == 1)
        self._elements = dict(pure)
        if missing := sorted(set(surveyed) - set(self._elements)):
            raise ValueError(f"surveyed must name elements that have entries, got {missing} too")
        self.surveyed = frozenset(surveyed)
        # What is not an element matters by its formation energy: system -> formula -> eV/atom.
        self._real: dict[frozenset[str], dict[str, float]] = defaultdict(dict)
        self._virtual: dict[frozenset[str], dict[str, float]] = defaultdict(dict)
        for name, of in of_elements.items():
            if of.keys() <= self._elements.keys():
                self._real[frozenset(of)][name] = real[name] - self._mixed(of)
        for name, energy in (virtual or {}).items():
            of = _shares(name)
            if not of.keys() <= self._elements.keys():
                missing = sorted(of.keys() - self._elements.keys())
                raise ValueError(f"virtual[{name!r}] needs entries of the elements {missing}")
            if not np.isfinite(energy):
                raise ValueError(f"virtual[{name!r}] must be finite, in eV/atom, got {energy}")
            system = frozenset(of)
            if system in self._real:  # named as a real entry is, which then replaces it
                name = Composition(name).reduced_formula
            self._virtual[system][name] = float(energy)
        self._found: dict[str, tuple[float, dict[str, float]]] = {}

    def _mixed(self, shares: Mapping[str, float]) -> float:
        """Energy of the elements by themselves, eV/atom."""
        return sum(x * self._elements[e] for e, x in shares.items())

    def _entries(self, system: Iterable[str]) -> dict[str, float]:
        """Formation energies of one system's entries; a real one stands before a virtual one."""
        part = frozenset(system)
        return {**self._virtual.get(part, {}), **self._real.get(part, {})}

    def __len__(self) -> int:
        systems = self._real.keys() | self._virtual.keys()
        return sum(len(self._entries(system)) for system in systems)

    @property
    def digest(self) -> str:
        """Eight digits that tell hulls with other entries apart."""
        tables = (
            sorted(
                (sorted(of), sorted(entries.items())) for of, entries in table.items() if entries
            )
            for table in (self._real, self._virtual)
        )
        content = (self.potential, self.strict, sorted(self.surveyed), *tables)
        elements = sorted(self._elements.items())
        return hashlib.sha256(repr((elements, content)).encode()).hexdigest()[:8]

    @property
    def elements(self) -> frozenset[str]:
        """Symbols of the elements that have an entry."""
        return frozenset(self._elements)

    @classmethod
    @checked
    def from_entries(cls, entries: Sequence[Any] | str | Path, potential: str) -> Hull:
        """Take a user's own entries.

        Args:
            entries: pymatgen's, such as ``PDEntry`` or ``ComputedEntry``; or a JSON file with a
                list of them, or of Materials Project's summaries (``formula_pretty`` and
                ``energy_per_atom``).
            potential: what computed the energies.

        Raises:
            ValueError: something among them is neither.
        """
        if isinstance(entries, str | Path):
            content = json.loads(Path(entries).read_text(encoding="utf-8"))
            rows: Any = content.get("data") if isinstance(content, dict) else content
            if not isinstance(rows, list):
                raise ValueError(
                    f'entries: {entries} must hold a list of entries, or one as its "data"'
                )
        else:
            rows = entries
        return cls([_entry(i, entry) for i, entry in enumerate(rows)], potential)

    @classmethod
    @checked
    def prototypes(
        cls,
        completed: bool = True,
        without: Iterable[str] = (),
        strict: bool = True,
        potential: str = POTENTIAL,
    ) -> Hull:
        """Take the embedded data set's entries, and virtual ones for what it lacks.

        Args:
            completed: with the virtual entries, predicted formation energies of binary and ternary
                compounds (see the card of the data set).
            without: chemical systems whose entries of the data set are left out, such as "Na-Cl".
            strict: see the class.
            potential: of the energies: "chgnet-0.3.0", which relaxed these structures, or "7net-0",
                for a judge, which computed them as they are. Virtual entries of the latter are
                shifted by what, element by element, formation energies of the two differ by.

        Raises:
            ValueError: another potential, or a system of elements that are not in the data set.
        """
        return _prototypes(completed, frozenset(without), strict, potential)

    def without(self, system: str) -> Hull:
        """Return a hull without the real entries of a chemical system such as "Na-Cl".

        Raises:
            ValueError: that is none of the hull's elements, or an element by itself.
        """
        (part,) = _systems("system", [system], self.elements)
        if len(part) == 1:
            raise ValueError(
                f"system must have two elements or more, got {system!r}: energies are above those "
                "of the elements"
            )
        other = copy.copy(self)
        other._found = {}
        kept = {of: entries for of, entries in self._real.items() if of != part}
        other._real = defaultdict(dict, kept)
        return other

    @checked
    def check(self, batch: CrystalBatch) -> None:
        """Raise a ValueError that names an element of the structures that has no entry."""
        used = {symbol for formula in set(batch.reduced_formulas()) for symbol in _shares(formula)}
        if missing := sorted(used - self.elements):
            raise ValueError(
                f"hull has no entry of the elements {', '.join(missing)}, but of "
                f"{len(self._elements)} others; add one, or exclude them"
            )

    def _check_potential(self, potential: str, name: str = "hull") -> None:
        """Raise a ValueError for energies that do not compare with those of the entries."""
        if potential != self.potential:
            raise ValueError(
                f"{name} holds energies of the potential {self.potential}, which do not compare "
                f"with those of {potential}: give a hull of {potential} (Hull.from_entries)"
            )

    def covers(self, elements: Iterable[str]) -> bool:
        """Return whether a chemical system is covered (see above)."""
        system = frozenset(elements)
        if not system <= self._elements.keys():
            return False
        if not self.strict:
            return True
        if len(system) > _SURVEYED_ORDER and not self._entries(system):
            return False
        return all(
            self.surveyed.issuperset(part) or bool(self._entries(part))
            for size in range(2, min(len(system), _SURVEYED_ORDER) + 1)
            for part in combinations(system, size)
        )

    @checked
    def energy_above_hull(
        self, batch: CrystalBatch, energies: np.ndarray | Sequence[float]
    ) -> HullResult:
        """Compare structures with the hull.

        Args:
            batch: B structures.
            energies: of the same potential, eV/atom, nan where there is none, shape (B,).

        Raises:
            ValueError: another number of energies.
        """
        energies = np.asarray(energies, dtype=np.float64)
        if energies.shape != (len(batch),):
            raise ValueError(
                f"energies must have one number for each of {len(batch)} structures, "
                f"got shape {energies.shape}"
            )
        formulas = batch.reduced_formulas()
        found = {formula: self._find(formula) for formula in set(formulas)}
        lowest = np.array([found[formula][0] for formula in formulas])
        return HullResult(
            energies - lowest, np.isfinite(lowest), tuple(found[formula][1] for formula in formulas)
        )

    def _find(self, formula: str) -> tuple[float, dict[str, float]]:
        """Energy of the hull at a composition and what it consists of; nan without coverage."""
        if formula not in self._found:
            of = _shares(formula)
            self._found[formula] = self._solve(of) if self.covers(of) else (np.nan, {})
        return self._found[formula]

    def _solve(self, of: Mapping[str, float]) -> tuple[float, dict[str, float]]:
        elements = sorted(of)
        entries: dict[str, float] = {}
        for size in range(1, len(elements) + 1):
            for part in combinations(elements, size):
                entries |= self._entries(part)
        names = list(entries)
        shares = [_shares(name) for name in names]
        table = np.array([[of_entry.get(e, 0.0) for of_entry in shares] for e in elements])
        amounts = [of[e] for e in elements]
        solved = linprog(list(entries.values()), A_eq=table, b_eq=amounts, method="highs")
        parts = {n: float(w) for n, w in zip(names, solved.x, strict=True) if w > 1e-9}
        return float(solved.fun) + self._mixed(of), parts


def _shift_of_elements(lowest: pd.DataFrame, potential: str) -> dict[str, float]:
    """By what formation energies of two potentials differ, as a sum over the atoms, eV/atom.

    Args:
        lowest: energies of the lowest entries by both potentials, by reduced formula.
        potential: whose formation energies differ from the embedded data set's.
    """
    difference = {str(f): float(e) for f, e in (lowest[potential] - lowest[POTENTIAL]).items()}
    shares = {name: _shares(name) for name in difference}
    pure = {next(iter(of)): difference[name] for name, of in shares.items() if len(of) == 1}
    compounds = {n: of for n, of in shares.items() if len(of) > 1 and pure.keys() >= of.keys()}
    x = np.array([[of.get(e, 0.0) for e in pure] for of in compounds.values()])
    y = np.array([difference[name] for name in compounds]) - x @ np.array(list(pure.values()))
    # The small ridge leaves elements alone that hardly any compound has.
    shift = np.linalg.solve(x.T @ x + 1e-3 * np.eye(len(pure)), x.T @ y)
    return dict(zip(pure, shift.tolist(), strict=True))


@functools.lru_cache(maxsize=8)
def _prototypes(completed: bool, without: frozenset[str], strict: bool, potential: str) -> Hull:
    """`Hull.prototypes`, each made once."""
    dataset = load("prototypes", progress=False)
    table = pd.DataFrame({"formula": dataset.batch.reduced_formulas()})
    known_elements = {e for f in table["formula"].unique() for e in _shares(f)} if without else ()
    left_out = _systems("without", without, known_elements)
    table[POTENTIAL] = dataset.table["energy_per_atom"]
    if potential != POTENTIAL:
        if potential not in HULLS:
            raise ValueError(
                f"potential must be {POTENTIAL} or 7net-0, whose energies of the embedded data "
                f"set are known, got {potential!r}; for others, see Hull.from_entries"
            )
        file = VIRTUAL_ENTRIES.with_name(f"{potential}.parquet")
        known = pd.read_parquet(file).set_index("material_id")["energy_per_atom"]
        table[potential] = known.loc[dataset.table["material_id"]].to_numpy(np.float64)
    if left_out:
        table = table[[frozenset(_shares(f)) not in left_out for f in table["formula"]]]
    kept = list(zip(table["formula"], table[potential], strict=True))
    if not completed:
        return Hull(kept, potential, strict=strict)
    entries = pd.read_parquet(VIRTUAL_ENTRIES)
    virtual = dict(zip(*(entries[name] for name in entries.columns), strict=True))
    surveyed = sorted({e for f in virtual for e in _shares(f)})
    if potential != POTENTIAL:
        shift = _shift_of_elements(table.groupby("formula").min(), potential)
        for f in virtual:
            virtual[f] += sum(x * shift[e] for e, x in _shares(f).items())
    return Hull(kept, potential, virtual, surveyed, strict)


def _systems(name: str, systems: Iterable[str], elements: Collection[str]) -> set[frozenset[str]]:
    """Chemical systems such as "Na-Cl" as sets of elements, all of them known ones."""
    found = {system: frozenset(system.split("-")) for system in systems}
    for system, part in found.items():
        if unknown := sorted(part - set(elements)):
            raise ValueError(
                f"{name} must be a chemical system such as 'Na-Cl', got {system!r}: there is no "
                f"entry of an element {unknown[0]!r}"
            )
    return set(found.values())


@functools.lru_cache(maxsize=2**18)
def _shares(formula: str) -> Mapping[str, float]:
    """Symbol -> share of the atoms."""
    parts = _PLAIN.findall(formula)
    if "".join(a + b for a, b in parts) == formula and len({a for a, _ in parts}) == len(parts):
        total = sum(int(n or 1) for _, n in parts)
        return {symbol: int(n or 1) / total for symbol, n in parts}
    composition = Composition(formula)
    return {str(e.symbol): float(composition.get_atomic_fraction(e)) for e in composition}


def _entry(i: int, entry: Any) -> tuple[str, float]:
    """Formula and energy per atom of an entry, of an object or of a row of JSON."""
    try:
        if isinstance(entry, Mapping):
            if "energy_per_atom" in entry:
                formula = entry.get("formula_pretty") or entry.get("formula")
                return str(formula), float(entry["energy_per_atom"])
            composition = Composition(entry["composition"])
            energy = float(entry["energy"]) + float(entry.get("correction") or 0.0)
            return composition.reduced_formula, energy / composition.num_atoms
        return entry.composition.reduced_formula, float(entry.energy_per_atom)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"entries[{i}] must be an entry of pymatgen, or a row with formula_pretty and "
            f"energy_per_atom, or with composition and energy, got {type(entry).__name__}: {error}"
        ) from error
