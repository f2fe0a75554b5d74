"""What generated compositions are bound to: elements, systems, formulas, fractions, fixed sites.

Constraints are hard: they mask logits, so that what they forbid has probability zero at every step.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from irlkit.crystals.formulas import atomic_number, parse_formula, write_formula
from irlkit.flows._species import SpeciesRules
from irlkit.utils.checks import checked

MIN_SITE_DISTANCE = 0.02
"""Of fixed sites, in fractional coordinates (periodic): closer ones overlap in any cell."""


@checked
@dataclass(frozen=True)
class Constraints:
    """What all structures of a request have to obey.

    Attributes:
        elements: only these may occur; None: all that the model knows.
        exclude: these may not occur.
        chemical_system: such as "Li-Fe-O": these occur, each at least once, and no others.
        formula: such as "SrTiO3": the cell holds a whole number of units of it.
        fractions: element -> its share of the atoms, adding up to 1; kept exactly.
        sites: (element, fractional coordinates) of atoms that are there from the start and stay.

    Raises:
        ValueError: constraints that no composition meets, in words.

    >>> Constraints(chemical_system="Li-Fe-O", exclude=["Fe"])
    Traceback (most recent call last):
    ValueError: exclude names Fe, which the other constraints ask for
    """

    elements: Sequence[str] | None = None
    exclude: Sequence[str] = ()
    chemical_system: str | None = None
    formula: str | None = None
    fractions: Mapping[str, float] | None = None
    sites: Sequence[tuple[str, Sequence[float]]] = ()

    def __post_init__(self) -> None:
        if sum(x is not None for x in (self.chemical_system, self.formula, self.fractions)) > 1:
            raise ValueError("give one of chemical_system, formula and fractions, got several")
        if self.fractions is not None:
            total = sum(self.fractions.values())
            if any(not share > 0 for share in self.fractions.values()) or abs(total - 1) > 1e-6:
                raise ValueError(
                    "fractions must be positive and add up to 1, got "
                    f"{dict(self.fractions)} with a sum of {total:.6g}"
                )
            if sum(self._ratio().values()) != 1:
                raise ValueError(
                    "fractions must be ratios of whole numbers of atoms, such as 1/3 and 2/3, got "
                    f"{dict(self.fractions)}"
                )
        allowed = None if self.elements is None else _numbers("elements", self.elements)
        wanted = set(self._ratio()) | set(self._system()) | {z for z, _ in self._sites()}
        if clash := sorted(wanted & set(_numbers("exclude", self.exclude))):
            raise ValueError(
                f"exclude names {_symbols(clash)}, which the other constraints ask for"
            )
        if allowed is not None and (clash := sorted(wanted - set(allowed))):
            raise ValueError(
                f"elements lacks {_symbols(clash)}, which the other constraints ask for"
            )
        bound = set(self._ratio()) or set(self._system())
        if bound and (clash := sorted({z for z, _ in self._sites()} - bound)):
            raise ValueError(f"sites hold {_symbols(clash)}, which the composition does not allow")
        self._check_overlaps()

    def _check_overlaps(self) -> None:
        pos = torch.tensor([xyz for _, xyz in self._sites()], dtype=torch.float64)
        if len(pos) < 2:
            return
        difference = pos[:, None] - pos[None]
        distance = (difference - difference.round()).norm(dim=-1).fill_diagonal_(1.0)
        if float(distance.min()) < MIN_SITE_DISTANCE:
            i, j = divmod(int(distance.argmin()), len(pos))
            raise ValueError(
                f"sites {i} and {j} overlap: {float(distance.min()):.3g} apart in fractional "
                f"coordinates, at least {MIN_SITE_DISTANCE} is needed"
            )

    def _ratio(self) -> dict[int, Fraction]:
        """Atomic number -> exact share of the atoms; empty where there is none."""
        if self.formula is not None:
            atoms = parse_formula(self.formula).tolist()
            return {z: Fraction(count, len(atoms)) for z, count in Counter(atoms).items()}
        shares = self.fractions or {}
        numbers = _numbers("fractions", tuple(shares))
        # Thirds and the like, which decimals cannot hold.
        exact = [Fraction(float(x)).limit_denominator(1000) for x in shares.values()]
        return dict(zip(numbers, exact, strict=True))

    def _system(self) -> tuple[int, ...]:
        """Atomic numbers of the chemical system; empty where there is none."""
        if self.chemical_system is None:
            return ()
        return _numbers("chemical_system", self.chemical_system.replace(" ", "").split("-"))

    def _sites(self) -> list[tuple[int, tuple[float, ...]]]:
        found = []
        for site in self.sites:
            if len(site) != 2 or isinstance(site[1], str) or len(site[1]) != 3:
                raise ValueError(
                    f"sites must be pairs of an element and three coordinates, got {site!r}"
                )
            if not all(math.isfinite(x) for x in site[1]):
                raise ValueError(f"sites must have finite coordinates, got {site!r}")
            (number,) = _numbers("sites", (site[0],))
            found.append((number, tuple(float(x) for x in site[1])))
        return found

    def divisor(self) -> int:
        """Return what the number of atoms must be a multiple of."""
        if self.formula is not None:
            return len(parse_formula(self.formula))
        return math.lcm(1, *(share.denominator for share in self._ratio().values()))

    def least(self) -> int:
        """Return the smallest number of atoms that can meet the constraints."""
        sites = Counter(z for z, _ in self._sites())
        if ratio := self._ratio():
            return int(max([self.divisor(), *(-(-n // ratio[z]) for z, n in sites.items())]))
        return max(1, sum(sites.values()) + len(set(self._system()) - set(sites)))

    def rules(self, n_atoms: Tensor, allowed: Tensor) -> SpeciesRules:
        """Return what they mean for structures of so many atoms.

        Args:
            n_atoms: int64, shape (B,).
            allowed: classes that the model knows, bool, shape (S,); class j is atomic number j + 1.

        Raises:
            ValueError: an element that the model has not seen, none left, or a number of atoms
                that does not fit.
        """
        ratio, system, sites = self._ratio(), self._system(), self._sites()
        only = None if self.elements is None else _numbers("elements", self.elements)
        named = set(ratio) | set(system) | {z for z, _ in sites} | set(only or ())
        seen = {int(j) + 1 for j in allowed.nonzero()}
        if unknown := sorted(named - seen):
            raise ValueError(
                f"the constraints ask for {_symbols(unknown)}, which the model has not seen in "
                f"training; it knows {_symbols(sorted(seen))}"
            )
        kept = (set(ratio) or set(system) or set(only if only is not None else seen)) & seen
        kept -= set(_numbers("exclude", self.exclude))
        if not kept:
            raise ValueError("the constraints leave no element that the model has seen")
        allowed = torch.zeros_like(allowed)
        allowed[torch.tensor(sorted(kept), device=allowed.device) - 1] = True
        wrong = (n_atoms % self.divisor() != 0) | (n_atoms < self.least())
        if bool(wrong.any()):
            raise ValueError(
                f"n_atoms must be multiples of {self.divisor()} of at least {self.least()} to meet "
                f"the constraints, got {sorted(set(n_atoms[wrong].tolist()))}"
            )
        rules = SpeciesRules.free(n_atoms, allowed)
        starts = n_atoms.cumsum(0) - n_atoms
        pos = None
        if sites:
            pos = torch.zeros(len(rules.batch), 3, dtype=torch.float64, device=n_atoms.device)
        for k, (number, xyz) in enumerate(sites):
            assert pos is not None
            rules.given[starts + k] = number
            pos[starts + k] = torch.tensor(xyz, dtype=torch.float64, device=n_atoms.device) % 1.0
        counts = required = None
        if ratio:
            counts = n_atoms.new_zeros(len(n_atoms), len(allowed))
            for number, share in ratio.items():
                counts[:, number - 1] = n_atoms * share.numerator // share.denominator
        if system:
            required = torch.zeros(len(allowed), dtype=torch.bool, device=n_atoms.device)
            required[torch.tensor(system, device=n_atoms.device) - 1] = True
        return SpeciesRules(allowed, rules.batch, n_atoms, rules.given, pos, counts, required)


def _numbers(name: str, symbols: Sequence[str]) -> tuple[int, ...]:
    try:
        return tuple(atomic_number(symbol) for symbol in symbols)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _symbols(numbers: Sequence[int]) -> str:
    return ", ".join(write_formula(((z, 1),), False)[:-1] for z in numbers)
