"""Batches of crystals of different sizes, and conversions from and to other packages.

A `CrystalBatch` holds all atoms of all structures in flat tensors. Two fields vary during
generation, `pos` (one row per atom) and `cell` (one matrix per structure); `species` and `n_atoms`
are fixed by the compositions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from irlkit.crystals import _pyg
from irlkit.crystals.formulas import MAX_ATOMIC_NUMBER, parse_formula, write_formula
from irlkit.utils.checks import checked

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.core import Structure

Index: TypeAlias = int | slice | Sequence[int] | np.ndarray | Tensor

FIELDS = ("species", "pos", "cell", "n_atoms")


@dataclass(frozen=True, eq=False)
class CrystalBatch:
    """Crystal structures, flattened into one set of tensors.

    All tensors share a device; `pos` and `cell` share a floating dtype. Instances are immutable:
    methods return new batches, which may share memory with this one.

    Attributes:
        species: Atomic numbers 1 to 100, int64, shape (n,).
        pos: Fractional coordinates, shape (n, 3). In [0, 1) unless a caller keeps them unwrapped.
        cell: Lattice vectors as rows, Å, shape (B, 3, 3).
        n_atoms: Atoms per structure, int64, shape (B,), summing to n.

    Raises:
        ValueError: a shape, dtype, device or value is not as above.
    """

    species: Tensor
    pos: Tensor
    cell: Tensor
    n_atoms: Tensor

    def __post_init__(self) -> None:
        for name in FIELDS:
            value = getattr(self, name)
            if not isinstance(value, Tensor):
                raise ValueError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
            if name in ("species", "n_atoms") and (value.ndim != 1 or value.dtype != torch.int64):
                raise ValueError(
                    f"{name} must be a one-dimensional int64 tensor, "
                    f"got {value.dtype} of shape {tuple(value.shape)}"
                )
        devices = {str(getattr(self, name).device) for name in FIELDS}
        if len(devices) > 1:
            raise ValueError(
                f"all tensors must be on one device, got {sorted(devices)}; use "
                "CrystalBatch.to(device) afterwards"
            )
        _check_fields(self.pos, self.cell, len(self.species), len(self.n_atoms))
        if len(self.n_atoms) and int(self.n_atoms.min()) < 1:
            raise ValueError(f"n_atoms must be at least 1, got {int(self.n_atoms.min())}")
        if int(self.n_atoms.sum()) != len(self.species):
            raise ValueError(
                f"n_atoms must sum to the number of atoms: it sums to {int(self.n_atoms.sum())}, "
                f"but species has {len(self.species)} entries"
            )
        unknown = self.species[(self.species < 1) | (self.species > MAX_ATOMIC_NUMBER)]
        if len(unknown):
            raise ValueError(
                f"species must be atomic numbers from 1 to {MAX_ATOMIC_NUMBER}, "
                f"got {sorted(set(unknown.tolist()))}"
            )

    @classmethod
    def _unchecked(
        cls, species: Tensor, pos: Tensor, cell: Tensor, n_atoms: Tensor
    ) -> CrystalBatch:
        """Builds from parts of a checked batch; spares a GPU the waits of the value checks."""
        batch = object.__new__(cls)
        batch.__dict__.update(species=species, pos=pos, cell=cell, n_atoms=n_atoms)
        return batch

    # --- size and place ---

    def __len__(self) -> int:
        return len(self.n_atoms)

    @property
    def device(self) -> torch.device:
        """Device of all tensors."""
        return self.pos.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of `pos` and `cell`."""
        return self.pos.dtype

    @cached_property
    def batch(self) -> Tensor:
        """Index of each atom's structure, int64, shape (n,)."""
        numbers = torch.arange(len(self), device=self.device)
        return torch.repeat_interleave(numbers, self.n_atoms, output_size=len(self.species))

    @cached_property
    def volume(self) -> Tensor:
        """Cell volumes |det cell|, Å³, shape (B,)."""
        return torch.linalg.det(self.cell).abs()

    @property
    def density(self) -> Tensor:
        """Mass per volume, g/cm³, shape (B,)."""
        from ase.data import atomic_masses

        masses = torch.from_numpy(atomic_masses).to(self.volume)[self.species]
        # An atomic mass unit is 1.66e-24 g.
        total = torch.zeros_like(self.volume).index_add(0, self.batch, 1.66053907 * masses)
        return total / self.volume

    def __repr__(self) -> str:
        sizes = f"n_structures={len(self)}, n={len(self.species)}"
        return f"CrystalBatch({sizes}, dtype={self.dtype}, device={self.device})"

    # --- other batches from this one ---

    def __getitem__(self, index: Index) -> CrystalBatch:
        """Return `select(index)`, also for a single number."""
        return self.select(index)

    def __iter__(self) -> Iterator[CrystalBatch]:
        """Yield batches of one structure each."""
        return (self.select(i) for i in range(len(self)))

    @checked
    def select(self, index: Index) -> CrystalBatch:
        """Return structures in the given order; an index may occur several times.

        Args:
            index: Number, slice, array of numbers (negative ones count from the end), or boolean
                mask of shape (B,).

        Raises:
            ValueError: a mask of another length, or an index that is neither.
            IndexError: a number beyond the batch.
        """
        chosen = self.structure_indices(index)
        atoms = self.atom_indices(chosen)
        return self._unchecked(
            self.species[atoms], self.pos[atoms], self.cell[chosen], self.n_atoms[chosen]
        )

    def atom_indices(self, structures: Tensor) -> Tensor:
        """Return the numbers of some structures' atoms, one structure after the other.

        Args:
            structures: Numbers from 0 to B - 1, int64, shape (m,).
        """
        starts = self.n_atoms.cumsum(0) - self.n_atoms
        n_atoms = self.n_atoms[structures]
        new_starts = n_atoms.cumsum(0) - n_atoms
        shift = torch.repeat_interleave(starts[structures] - new_starts, n_atoms)
        return torch.arange(len(shift), device=self.device) + shift

    def structure_indices(self, index: Index) -> Tensor:
        """Convert any index that `select` takes to numbers from 0 to B - 1, int64, shape (m,)."""
        if isinstance(index, slice):
            return torch.arange(*index.indices(len(self)), device=self.device)
        if not isinstance(index, Tensor):
            array = np.asarray(index)
            if array.size and array.dtype.kind not in "biuf":
                raise ValueError(
                    f"index must be an integer, a slice or an array of numbers, got {array.dtype}"
                )
            index = torch.from_numpy(array.copy() if array.size else array.astype(np.int64))
        index = index.to(self.device)
        if index.dtype == torch.bool:
            if index.shape != (len(self),):
                raise ValueError(
                    f"a boolean index must have shape ({len(self)},), got {tuple(index.shape)}"
                )
            return index.nonzero().flatten()
        if index.is_floating_point() or index.is_complex() or index.ndim > 1:
            raise ValueError(
                "index must be an integer, a slice, a one-dimensional array of integers or a "
                f"boolean mask, got {index.dtype} of shape {tuple(index.shape)}"
            )
        index = index.to(torch.int64).reshape(-1)
        if len(index) and not (-len(self) <= int(index.min()) and int(index.max()) < len(self)):
            raise IndexError(
                f"index from {int(index.min())} to {int(index.max())} is outside a batch of "
                f"{len(self)} structures"
            )
        return torch.where(index < 0, index + len(self), index)

    @checked
    def repeat(self, k: int) -> CrystalBatch:
        """Repeat each structure k times, copies next to each other (the groups of GRPO).

        Raises:
            ValueError: k < 1.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        return self.select(torch.arange(len(self), device=self.device).repeat_interleave(k))

    @staticmethod
    @checked
    def concatenate(batches: Sequence[CrystalBatch]) -> CrystalBatch:
        """Join the structures of several batches, in order.

        Raises:
            ValueError: no batches, or batches that differ in device or dtype.
        """
        batches = list(batches)
        if not batches:
            raise ValueError("batches must hold at least one CrystalBatch, got none")
        kinds = {(batch.device, batch.dtype) for batch in batches}
        if len(kinds) > 1:
            raise ValueError(
                f"batches must share device and dtype, got {sorted(map(str, kinds))}; "
                "convert them with .to() first"
            )
        return CrystalBatch._unchecked(
            *(torch.cat([getattr(batch, name) for batch in batches]) for name in FIELDS)
        )

    @checked
    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> CrystalBatch:
        """Move all tensors to a device and cast `pos` and `cell` to a dtype.

        Raises:
            ValueError: dtype is not a floating one.
        """
        if dtype is not None and not dtype.is_floating_point:
            raise ValueError(f"dtype must be a floating dtype, got {dtype}")
        return self._unchecked(
            self.species.to(device),
            self.pos.to(device=device, dtype=dtype),
            self.cell.to(device=device, dtype=dtype),
            self.n_atoms.to(device),
        )

    @checked
    def replace(self, pos: Tensor | None = None, cell: Tensor | None = None) -> CrystalBatch:
        """Return the same compositions with other positions (n, 3), cells (B, 3, 3) or both.

        Raises:
            ValueError: a shape does not fit, or `pos` and `cell` differ in dtype or device.
        """
        pos = self.pos if pos is None else pos
        cell = self.cell if cell is None else cell
        _check_fields(pos, cell, len(self.species), len(self))
        if pos.device != self.device or cell.device != self.device:
            raise ValueError(
                f"pos and cell must be on the batch's device {self.device}, "
                f"got {pos.device} and {cell.device}"
            )
        batch = self._unchecked(self.species, pos, cell, self.n_atoms)
        if "batch" in self.__dict__:
            batch.__dict__["batch"] = self.batch
        return batch

    def wrap(self) -> CrystalBatch:
        """Return the same crystals with positions in [0, 1)."""
        return self.replace(pos=wrap_positions(self.pos))

    def standard_orientation(self) -> CrystalBatch:
        """Rotate the crystals: first vector along x, second in the xy plane, right-handed.

        The lower triangular cell with a positive diagonal is unique for given lengths and angles.
        It comes from the factorisation cell = L Qᵀ, which needs no angles and so stays exact for
        right ones. A left-handed cell (a, b, c) becomes (-a, -b, -c), with positions negated to
        match: the crystal keeps its handedness.
        """
        r = torch.linalg.qr(self.cell.transpose(1, 2), mode="r").R
        lower = r.transpose(1, 2)
        signs = torch.diagonal(lower, dim1=1, dim2=2).sign()
        lower = torch.tril(lower * torch.where(signs == 0, 1.0, signs).unsqueeze(1))
        left_handed = torch.linalg.det(self.cell) < 0
        pos = torch.where(left_handed[self.batch].unsqueeze(1), -self.pos, self.pos)
        return self.replace(pos=wrap_positions(pos), cell=lower)

    # --- compositions ---

    def _formulas(self, reduced: bool) -> list[str]:
        counts = np.zeros((len(self), MAX_ATOMIC_NUMBER + 1), dtype=np.int64)
        np.add.at(counts, (self.batch.cpu().numpy(), self.species.cpu().numpy()), 1)
        unique, inverse = np.unique(counts, axis=0, return_inverse=True)
        written = []
        for row in unique:
            numbers = row.nonzero()[0]
            pairs = zip(numbers.tolist(), row[numbers].tolist(), strict=True)
            written.append(write_formula(tuple(pairs), reduced))
        return [written[i] for i in inverse.reshape(-1)]

    def formulas(self) -> list[str]:
        """Return the formula of each whole cell, elements in alphabetical order: "Cl4 Na4"."""
        return self._formulas(reduced=False)

    def reduced_formulas(self) -> list[str]:
        """Return pymatgen's reduced formula of each structure: "NaCl".

        >>> CrystalBatch.from_formulas(["Na4 Cl4", "TiO2"]).reduced_formulas()
        ['NaCl', 'TiO2']
        """
        return self._formulas(reduced=True)

    # --- conversions ---

    @classmethod
    @checked
    def from_arrays(
        cls,
        species: Sequence[Any],
        pos: Sequence[Any],
        cell: Sequence[Any],
        dtype: torch.dtype = torch.float32,
    ) -> CrystalBatch:
        """Make a batch on the CPU of one array per structure; positions are wrapped to [0, 1).

        Args:
            species: Atomic numbers, (n,) each.
            pos: Fractional coordinates, (n, 3) each.
            cell: Lattice vectors as rows, Å, (3, 3) each.
            dtype: Of `pos` and `cell`.

        Raises:
            ValueError: shapes do not fit, or an atomic number is not from 1 to 100.
        """
        try:
            numbers = np.concatenate(species) if len(species) else np.zeros(0)
            positions = np.concatenate(pos) if len(pos) else np.zeros((0, 3))
            cells = np.stack(cell) if len(cell) else np.zeros((0, 3, 3))
            tensors = [torch.from_numpy(entry).to(dtype) for entry in (positions, cells)]
            species_tensor = torch.from_numpy(numbers.astype(np.int64))
        except (TypeError, ValueError) as error:
            raise ValueError(f"species, pos and cell must be arrays of numbers: {error}") from error
        return cls(
            species=species_tensor,
            # Wrapped after the cast, which can round a coordinate just below 1 up to 1.
            pos=wrap_positions(tensors[0]),
            cell=tensors[1],
            n_atoms=torch.from_numpy(np.array([len(entry) for entry in species], dtype=np.int64)),
        )

    @classmethod
    @checked
    def from_formulas(
        cls, formulas: Sequence[str], dtype: torch.dtype = torch.float32
    ) -> CrystalBatch:
        """Make compositions to generate: all positions 0 and cells of 1 Å, as placeholders.

        Args:
            formulas: Content of each cell: "Na4 Cl4" stands for eight atoms.
            dtype: Of `pos` and `cell`.

        Raises:
            ValueError: what `irlkit.crystals.formulas.parse_formula` says.
        """
        return cls.from_species([parse_formula(formula) for formula in formulas], dtype)

    @classmethod
    def from_species(cls, species: Sequence[np.ndarray], dtype: torch.dtype) -> CrystalBatch:
        """Return placeholders as `from_formulas` does, from atomic numbers, shape (n,) each."""
        return cls.from_arrays(
            species, [np.zeros((len(z), 3)) for z in species], [np.eye(3)] * len(species), dtype
        )

    @classmethod
    @checked
    def from_structures(
        cls, structures: Sequence[Structure], dtype: torch.dtype = torch.float32
    ) -> CrystalBatch:
        """Make a batch on the CPU of pymatgen structures; positions are wrapped to [0, 1).

        Raises:
            ValueError: a structure is disordered or has no atoms (its number is given), or holds
                an element beyond atomic number 100.
        """
        for i, structure in enumerate(structures):
            if not structure.is_ordered:
                raise ValueError(
                    f"structures[{i}] ({structure.formula}) is disordered; "
                    "give every site one element with occupancy 1"
                )
            if not len(structure):
                raise ValueError(f"structures[{i}] has no atoms")
        return cls.from_arrays(
            [structure.atomic_numbers for structure in structures],
            [structure.frac_coords for structure in structures],
            [structure.lattice.matrix for structure in structures],
            dtype,
        )

    def to_structures(self) -> list[Structure]:
        """Return pymatgen structures, one per crystal."""
        from pymatgen.core import Element, Lattice, Structure

        elements = {z: Element.from_Z(z) for z in self.species.unique().tolist()}
        return [
            Structure(Lattice(cell), [elements[z] for z in species], pos)
            for species, pos, cell in self._to_arrays()
        ]

    @classmethod
    @checked
    def from_ase(cls, atoms: Sequence[Atoms], dtype: torch.dtype = torch.float32) -> CrystalBatch:
        """Make a batch on the CPU of ASE atoms; positions are wrapped to [0, 1).

        Raises:
            ValueError: an entry has no atoms, or is not periodic in three directions, or holds an
                element beyond atomic number 100.
        """
        for i, entry in enumerate(atoms):
            if not len(entry):
                raise ValueError(f"atoms[{i}] has no atoms")
            if not entry.pbc.all() or entry.cell.rank < 3:
                raise ValueError(
                    f"atoms[{i}] ({entry.symbols}) must have three lattice vectors and pbc=True, "
                    f"got a cell of rank {entry.cell.rank} and pbc={entry.pbc.tolist()}"
                )
        return cls.from_arrays(
            [entry.numbers for entry in atoms],
            [entry.get_scaled_positions() for entry in atoms],
            [entry.cell.array for entry in atoms],
            dtype,
        )

    def to_ase(self) -> list[Atoms]:
        """Return ASE atoms, periodic in three directions, one per crystal."""
        from ase import Atoms

        return [
            Atoms(numbers=species, scaled_positions=pos, cell=cell, pbc=True)
            for species, pos, cell in self._to_arrays()
        ]

    @classmethod
    def from_pyg(cls, data: Any, dtype: torch.dtype | None = None) -> CrystalBatch:
        """Build a batch from torch-geometric data, on its device.

        Args:
            data: one `Data`, a `Batch`, or a list of `Data`, with attributes `species` (n,), `pos`
                (n, 3) fractional, `cell` (B, 3, 3) or (3 B, 3), and `n_atoms` (B,) where several
                structures are batched (else `batch` or `ptr` tells them apart).
            dtype: of the result; None keeps that of `pos`.

        Raises:
            ValueError: an attribute is missing or does not fit.
        """
        batch = cls(**_pyg.from_data(data))
        return batch if dtype is None else batch.to(dtype=dtype)

    def to_pyg(self) -> Any:
        """Return a torch-geometric `Batch` with `species`, `pos`, `cell`, `n_atoms`, `batch`."""
        return _pyg.to_data(self.species, self.pos, self.cell, self.n_atoms)

    def _to_arrays(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yields (species, float64 pos, float64 cell) of each structure."""
        ends = self.n_atoms.cumsum(0)[:-1].tolist()
        species = np.split(self.species.cpu().numpy(), ends)
        pos = np.split(self.pos.detach().cpu().double().numpy(), ends)
        return zip(species, pos, self.cell.detach().cpu().double().numpy(), strict=False)


def _check_fields(pos: Tensor, cell: Tensor, n: int, n_structures: int) -> None:
    """Checks shapes and dtypes of the two fields; looks at no values."""
    if pos.shape != (n, 3):
        raise ValueError(f"pos must have shape ({n}, 3) to match species, got {tuple(pos.shape)}")
    if cell.shape != (n_structures, 3, 3):
        raise ValueError(
            f"cell must have shape ({n_structures}, 3, 3) to match n_atoms, got {tuple(cell.shape)}"
        )
    if not pos.is_floating_point() or pos.dtype != cell.dtype:
        raise ValueError(
            f"pos and cell must share one floating dtype, got {pos.dtype} and {cell.dtype}"
        )


def wrap_positions(pos: Tensor) -> Tensor:
    """Wrap fractional coordinates of any shape to [0, 1).

    >>> wrap_positions(torch.tensor([-0.25, 1.0, 0.5])).tolist()
    [0.75, 0.0, 0.5]
    """
    wrapped = pos - pos.floor()
    # A tiny negative number plus one rounds to one.
    return torch.where(wrapped >= 1, torch.zeros_like(wrapped), wrapped)
