"""Crystal skeletons whose sites are filled, and the elements they are filled with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from irlkit.crystals import CrystalBatch
from irlkit.data import CrystalDataset, load
from irlkit.rl.process import Request
from irlkit.utils.checks import checked

_SMALL = "Li Na K Rb Be Ca Mg Sr H C N O P S Se F Cl Br"
_MEDIUM = f"{_SMALL} B Si Ge Fe Cu Co Ni Mn Al Zn Sn Cr"
_LARGE = f"{_MEDIUM} In Sb V Mo Ga Ag Ti Ba Y Te I Pd Rh As Pt Cs Au Bi Zr La"
ELEMENTS = {
    name: tuple(text.split())
    for name, text in (("small", _SMALL), ("medium", _MEDIUM), ("large", _LARGE))
}
"""CrystalGym's action spaces of 18, 30 and 50 elements (appendix B.1)."""

Elements = str | Sequence[str]


@checked
def atomic_numbers(elements: Elements) -> np.ndarray:
    """Return the atomic numbers of a set of n elements, int64, shape (n,), in the actions' order.

    >>> atomic_numbers(["Na", "Cl"]).tolist()
    [11, 17]

    Args:
        elements: "small", "medium", "large", or symbols.

    Raises:
        ValueError: another name, a symbol that is none or beyond atomic number 100, or one twice.
    """
    if isinstance(elements, str):
        if elements not in ELEMENTS:
            raise ValueError(
                f"elements must be one of {sorted(ELEMENTS)} or a list of symbols, got {elements!r}"
            )
        elements = ELEMENTS[elements]
    from pymatgen.core import Element

    unknown = [symbol for symbol in elements if not Element.is_valid_symbol(symbol)]
    if unknown or not elements:
        raise ValueError(f"elements must be symbols such as 'Na', got {unknown or 'none'}")
    numbers = np.array([Element(symbol).Z for symbol in elements], dtype=np.int64)
    if numbers.max() > 100:
        raise ValueError("elements must have atomic numbers up to 100, got heavier ones")
    if len(set(numbers.tolist())) < len(numbers):
        raise ValueError(f"elements must differ, got {list(elements)}")
    return numbers


def _prototypes() -> dict[str, tuple[str, float, str, Any]]:
    """Name -> centring, cubic lattice constant (Å), symbols, positions in the primitive cell."""
    perovskite = [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
    x = 0.2339
    tetrahedron = [[0, 0, 0], [x, x, x], [x, -x, -x], [-x, x, -x], [-x, -x, x]]
    edges = [[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
    diagonal = [[0, 0, 0], [0.5, 0.5, 0.5], [0.25, 0.25, 0.25], [0.75, 0.75, 0.75]]
    cuprite = [
        [0, 0, 0],
        [0.5, 0.5, 0.5],
        [0.25, 0.25, 0.25],
        [0.75, 0.75, 0.25],
        [0.75, 0.25, 0.75],
        [0.25, 0.75, 0.75],
    ]
    halite = [*edges, [0.5, 0.5, 0.5], [0, 0, 0.5], [0, 0.5, 0], [0.5, 0, 0]]
    return {
        "RbVF3": ("P", 4.275, "Rb V F F F", perovskite),
        "RbCaH3": ("P", 4.544, "Rb Ca H H H", perovskite),
        "AuSb3": ("I", 5.969, "Au Sb Sb Sb", edges),
        "SnI4": ("P", 6.686, "Sn I I I I", tetrahedron),
        "Li3Bi": ("F", 6.708, "Bi Li Li Li", diagonal),
        "Ag2O": ("P", 4.740, "O O Ag Ag Ag Ag", cuprite),
        "NaCl": ("P", 5.640, "Na Na Na Na Cl Cl Cl Cl", halite),
    }


_CENTRING = {
    "P": np.eye(3),
    "I": np.array([[-1, 1, 1], [1, -1, 1], [1, 1, -1]]) / 2,
    "F": np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]]) / 2,
}
PROTOTYPES = tuple(_prototypes())
"""Names of the seven skeletons: cubic, of 4 to 8 atoms, five space groups. The first four are among
the paper's, the others are prototypes of other sizes and groups."""
UNSEEN = ("RbCaH3", "SnI4")
"""The two of them that mixed training leaves for the test: one like a training skeleton, the other
more open than any."""


@dataclass(frozen=True, eq=False)
class Skeletons:
    """Crystals of which only the sites count.

    Attributes:
        names: of the skeletons.
        crystals: one structure each, float64; the species are those of the prototype.

    Raises:
        ValueError: other numbers of names and crystals, or none.
    """

    names: tuple[str, ...]
    crystals: CrystalBatch

    def __post_init__(self) -> None:
        if len(self.names) != len(self.crystals) or not self.names:
            raise ValueError(
                f"names must name {len(self.crystals)} skeletons (at least one), got {self.names}"
            )

    def __len__(self) -> int:
        return len(self.names)

    @property
    def n_atoms(self) -> np.ndarray:
        """Sites of each, int64, shape (B,)."""
        return self.crystals.n_atoms.numpy()

    @cached_property
    def space_groups(self) -> tuple[int, ...]:
        """Number of each prototype's space group."""
        import spglib

        dataset: Any = spglib.get_symmetry_dataset
        return tuple(
            int(dataset((cell, pos, species), symprec=1e-3).number)
            for species, pos, cell in self.crystals._to_arrays()
        )

    @classmethod
    @checked
    def get(cls, which: Any = "all") -> Skeletons:
        """Return skeletons from whatever names or holds them.

        >>> Skeletons.get(["AuSb3", "NaCl"]).n_atoms.tolist()
        [4, 8]

        Args:
            which: "all" seven, "train" (five) or "test" (two) of them; a name of `PROTOTYPES`; the
                path of a file of crystals; a `CrystalBatch` or `CrystalDataset`; a pymatgen
                structure; or a sequence of these.

        Raises:
            ValueError: an unknown name, partial occupancies, or nothing.
            FileNotFoundError: no such file.
        """
        if isinstance(which, cls):
            return which
        if isinstance(which, CrystalDataset):
            which = which.batch
        if isinstance(which, CrystalBatch):
            batch = which.to("cpu", torch.float64)
            formulas = batch.reduced_formulas()
            return cls(tuple(f"{f}-{i}" for i, f in enumerate(formulas)), batch)
        if isinstance(which, str | Path):
            return cls._named(str(which))
        if hasattr(which, "frac_coords"):
            batch = CrystalBatch.from_structures([which], torch.float64)
            return cls(tuple(batch.reduced_formulas()), batch)
        if not isinstance(which, Sequence) or not which:
            raise ValueError(
                "skeletons must be names, paths, structures or a CrystalBatch, "
                f"got {type(which).__name__}"
            )
        parts = [cls.get(entry) for entry in which]
        names = tuple(name for part in parts for name in part.names)
        return cls(names, CrystalBatch.concatenate([part.crystals for part in parts]))

    @classmethod
    def _named(cls, name: str) -> Skeletons:
        groups = {
            "all": PROTOTYPES,
            "train": tuple(n for n in PROTOTYPES if n not in UNSEEN),
            "test": UNSEEN,
        }
        if name in groups:
            return cls.get(groups[name])
        known = _prototypes()
        if name in known:
            centring, a, symbols, pos = known[name]
            batch = CrystalBatch.from_arrays(
                [_numbers_of(symbols)],
                [np.array(pos)],
                [a * _CENTRING[centring]],
                torch.float64,
            )
            return cls((name,), batch)
        if "." not in name and "/" not in name:
            raise ValueError(
                f"skeletons must be 'all', 'train', 'test', one of {sorted(known)} or the path of "
                f"a file, got {name!r}"
            )
        data = load(name, niggli=False, cache=False, progress=False, dtype=torch.float64)
        stem = Path(name).name.split(".")[0]
        numbers = range(len(data))
        return cls(tuple(f"{stem}-{i}" if len(data) > 1 else stem for i in numbers), data.batch)

    def requests(self, target: float | None = None) -> Request:
        """Return a request for one filling of each, for `SiteFilling`.

        Args:
            target: value of the property, for a policy that is told it.
        """
        targets: dict[str, Tensor] = {"skeleton": torch.arange(len(self))}
        if target is not None:
            targets["target"] = torch.full((len(self),), float(target), dtype=torch.float64)
        return Request(self.crystals.n_atoms, self.crystals, targets)

    def filled(self, skeleton: np.ndarray, species: np.ndarray) -> CrystalBatch:
        """Return crystals.

        Args:
            skeleton: number of each crystal's skeleton, shape (B,).
            species: atomic numbers, padded, shape (B, at least the most sites).
        """
        empty = self.crystals[skeleton]
        there = np.arange(species.shape[1]) < self.n_atoms[skeleton][:, None]
        return CrystalBatch(
            torch.from_numpy(species[there].astype(np.int64)), empty.pos, empty.cell, empty.n_atoms
        )


def _numbers_of(symbols: str) -> np.ndarray:
    """Return the atomic numbers of symbols with spaces between them."""
    from pymatgen.core import Element

    return np.array([Element(symbol).Z for symbol in symbols.split()], dtype=np.int64)


def _symbols_of(numbers: np.ndarray) -> list[str]:
    """Return the symbols of atomic numbers."""
    from pymatgen.core import Element

    return [str(Element.from_Z(int(z)).symbol) for z in numbers]
