"""Geometry of structures as plain arrays: cells, atoms, bonds, polyhedra, and meshes of them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from irlkit.crystals.symmetry import SYMPREC
from irlkit.lab.plots.style import COLORS, GREY

if TYPE_CHECKING:
    from pymatgen.core import Structure

    from irlkit.crystals import CrystalBatch

Crystal: TypeAlias = "CrystalBatch | Structure"
"""A batch of one structure or a pymatgen structure."""
ElementColors: TypeAlias = Literal["vesta", "jmol", "distinct"]
"""Of VESTA, of Jmol, or colours that colour-blind people tell apart, given out in each figure."""
Mesh: TypeAlias = tuple[np.ndarray, np.ndarray]
"""Vertices, float32 of shape (n, 3), in Å, and triangles, int32 of shape (m, 3)."""

MIN_VOLUME = 0.1
"""Cells of less, in Å³, are not drawn with atoms."""
MAX_BOND = 1.15
"""Length of a bond, in sums of covalent radii."""
# The 12 edges of a cell as pairs of corners.
_CORNERS = np.stack(np.meshgrid([0, 1], [0, 1], [0, 1], indexing="ij"), axis=-1).reshape(8, 3)
_EDGES = [(i, i | bit) for i in range(8) for bit in (1, 2, 4) if not i & bit]


@dataclass
class Geometry:
    """What is drawn of a structure of n atoms, images included; coordinates are Cartesian, in Å.

    Attributes:
        cell: rows are a, b and c.
        species: atomic numbers, shape (n,).
        atoms: shape (n, 3).
        bonds: pairs of atoms, shape (m, 2).
        polyhedra: atom -> the atoms at the corners of the polyhedron around it.
    """

    cell: np.ndarray
    species: np.ndarray
    atoms: np.ndarray
    bonds: np.ndarray
    polyhedra: dict[int, np.ndarray] = field(default_factory=dict)


def to_structure(crystal: Crystal, name: str = "crystal") -> Structure:
    """Return a pymatgen structure; `name` is what the argument is called in errors.

    Raises:
        ValueError: a batch of none or several structures, or an object that is neither.
    """
    if hasattr(crystal, "frac_coords"):
        return crystal
    if not hasattr(crystal, "to_structures"):
        raise ValueError(
            f"{name} must be a CrystalBatch of one structure or a pymatgen Structure, got "
            f"{type(crystal).__name__}"
        )
    if len(crystal) != 1:
        raise ValueError(
            f"{name} must hold one structure, got {len(crystal)}; take one with [i], or use "
            "plots.structures"
        )
    return crystal.wrap().to_structures()[0]


def check_elements(structure: Structure, name: str) -> None:
    """Raise a ValueError unless there is one element at every site; `name` is as above."""
    from pymatgen.core import DummySpecies

    if not structure.is_ordered or any(isinstance(s.specie, DummySpecies) for s in structure):
        raise ValueError(
            f"{name} must hold structures with one element at every site, got {structure.formula}; "
            "choose an element where several share a site or a dummy such as X stands"
        )


def is_drawable(cell: np.ndarray, pos: np.ndarray) -> bool:
    """Return whether all coordinates are finite and the cell has a volume."""
    finite = np.isfinite(cell).all() and np.isfinite(pos).all()
    return bool(finite and abs(np.linalg.det(cell)) > MIN_VOLUME)


def geometry(
    species: np.ndarray,
    pos: np.ndarray,
    cell: np.ndarray,
    *,
    images: bool = True,
    bonds: bool = True,
    polyhedra: bool = False,
) -> Geometry:
    """Return what to draw of a structure; one that is not drawable has no atoms.

    Args:
        species: atomic numbers, shape (n,).
        pos: fractional coordinates, shape (n, 3).
        cell: rows are the lattice vectors, Å.
        images: repeat atoms on faces of the cell at the opposite ones.
        bonds: seek bonds between what is drawn.
        polyhedra: seek coordination polyhedra around small cations; they add the atoms at their
            corners outside the cell.
    """
    none = np.empty((0, 2), dtype=int)
    if not is_drawable(cell, pos):
        return Geometry(cell, np.empty(0, dtype=int), np.empty((0, 3)), none)
    near = np.minimum(SYMPREC / np.linalg.norm(cell, axis=1), 0.05)
    pos = pos - np.floor(pos + near)
    on_face = pos < near  # (n, 3)
    shifts = _CORNERS if images else _CORNERS[:1]
    atom, shift = np.nonzero((on_face[:, None] | (shifts == 0)).all(-1))
    shown = pos[atom] + shifts[shift]
    drawn = Geometry(cell, species[atom], shown @ cell, none)
    if polyhedra:
        _add_polyhedra(drawn, species, pos)
    if bonds:
        pairs = _bonds(drawn.species, drawn.atoms, drawn.species, drawn.atoms)
        inside = np.arange(len(drawn.atoms)) < len(shown)
        # Corners outside the cell are bonded to the middle of their polyhedra alone.
        middle = np.isin(pairs, list(drawn.polyhedra))
        keep = (pairs[:, 0] < pairs[:, 1]) & (inside[pairs] | middle[:, ::-1]).all(1)
        drawn.bonds = pairs[keep]
    return drawn


def _add_polyhedra(drawn: Geometry, species: np.ndarray, pos: np.ndarray) -> None:
    shifts = np.stack(np.meshgrid(*[np.arange(-1, 3)] * 3), -1).reshape(-1, 3)
    everywhere = (pos[None] + shifts[:, None]).reshape(-1, 3) @ drawn.cell
    numbers = np.tile(species, len(shifts))
    cation, holds = _roles(drawn.species)
    middles = np.flatnonzero(cation & holds & _element_data()[3][drawn.species])
    pairs = _bonds(drawn.species[middles], drawn.atoms[middles], numbers, everywhere)
    for i, atom in enumerate(middles):
        corners = pairs[pairs[:, 0] == i, 1]
        if len(corners) < 4:
            continue
        around = everywhere[corners] - everywhere[corners].mean(axis=0)
        if np.linalg.matrix_rank(around, tol=0.5) < 3:  # flat
            continue
        at = np.linalg.norm(drawn.atoms - everywhere[corners][:, None], axis=-1)
        new = corners[at.min(axis=1) > 0.01]
        drawn.atoms = np.concatenate([drawn.atoms, everywhere[new]])
        drawn.species = np.concatenate([drawn.species, numbers[new]])
        at = np.linalg.norm(drawn.atoms - everywhere[corners][:, None], axis=-1)
        drawn.polyhedra[int(atom)] = at.argmin(axis=1)


def _roles(species: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which atoms are cations, and which of them hold the structure: small ones, or all."""
    _, chi, _, small = _element_data()
    cation = chi[species] < np.nanmax(chi[species], initial=0.0) - 0.8
    few = cation & small[species]
    return cation, few if few.any() else cation


def _bonds(
    species: np.ndarray, atoms: np.ndarray, other_species: np.ndarray, others: np.ndarray
) -> np.ndarray:
    """Return pairs of atoms and others, shape (m, 2), that are close enough for a bond.

    Two cations, of which at least one is a metal, have none, nor have large cations where there
    are small ones: a perovskite is a net of octahedra, with the rest between them.
    """
    radii, _, metal, _ = _element_data()
    cation, holds = _roles(np.concatenate([species, other_species]))
    n = len(species)
    length = np.linalg.norm(atoms[:, None] - others[None], axis=-1)
    close = length < MAX_BOND * (radii[species][:, None] + radii[other_species][None])
    any_metal = metal[species][:, None] | metal[other_species][None]
    apart = cation[:n, None] & cation[None, n:] & any_metal
    between = cation & ~holds
    return np.argwhere(close & ~apart & ~between[:n, None] & ~between[None, n:] & (length > 0.1))


@lru_cache
def _element_data() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return by atomic number: covalent radius (Å), electronegativity, is it a metal, a small ion.

    Small are cations of less than 1 Å.
    """
    from ase.data import covalent_radii
    from pymatgen.core import Element

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # noble gases have no electronegativity
        elements = [Element.from_Z(z) for z in range(1, 119)]
        chi = np.array([np.nan, *(float(element.X) for element in elements)])
        cations = [float(element.average_cationic_radius) for element in elements]
    metal = np.array([False, *(element.is_metal for element in elements)])
    small = np.array([False, *(0 < r < 1.0 for r in cations)])
    return np.asarray(covalent_radii), chi, metal, small


def element_radius(number: int) -> float:
    """Return the radius, in Å, of the balls that stand for an element."""
    return 0.25 + 0.25 * float(_element_data()[0][number])


def element_colors(species: Iterable[int], colors: ElementColors = "vesta") -> dict[int, str]:
    """Return a colour per atomic number.

    Args:
        species: atomic numbers of a figure, in any order.
        colors: those of "distinct" repeat from the eighth element on.

    >>> element_colors([8, 22])
    {8: '#fe0300', 22: '#78caff'}
    """
    from pymatgen.core import Element

    ordered = sorted({int(z) for z in species})
    if colors == "distinct":
        return {z: COLORS[i % len(COLORS)] for i, z in enumerate(ordered)}
    table = _color_tables()["VESTA" if colors == "vesta" else "Jmol"]
    rgb = {z: table.get(Element.from_Z(z).symbol) for z in ordered}
    return {z: GREY if c is None else "#{:02x}{:02x}{:02x}".format(*c) for z, c in rgb.items()}


@lru_cache
def _color_tables() -> dict[str, dict[str, list[int]]]:
    from importlib.resources import files

    import yaml

    return yaml.safe_load((files("pymatgen.vis") / "ElementColorSchemes.yaml").read_text())


# --------------------------------------------------------------------------------------------------
# Meshes
# --------------------------------------------------------------------------------------------------


def cell_edges(cell: np.ndarray) -> np.ndarray:
    """Return the 12 edges of a cell (3, 3) as ends of lines separated by nan, shape (36, 3)."""
    corners = _CORNERS @ cell
    return np.concatenate([[*corners[[i, j]], [np.nan] * 3] for i, j in _EDGES])


def join(meshes: Sequence[Mesh]) -> Mesh:
    """Return several meshes as one."""
    starts = np.cumsum([0, *(len(vertices) for vertices, _ in meshes)])
    faces = [faces + start for (_, faces), start in zip(meshes, starts, strict=False)]
    vertices = np.concatenate([v for v, _ in meshes]).astype(np.float32)
    return vertices, np.concatenate(faces).astype(np.int32)


def spheres(centers: np.ndarray, radius: float, rounds: int = 2) -> Mesh:
    """Return spheres around centres, shape (n, 3), all of one radius.

    `rounds` is how often the faces of an icosahedron are divided by four.
    """
    points, faces = _icosphere(rounds)
    shifted = faces + len(points) * np.arange(len(centers))[:, None, None]
    vertices = (centers[:, None] + radius * points).reshape(-1, 3)
    return vertices.astype(np.float32), shifted.reshape(-1, 3).astype(np.int32)


@lru_cache
def _icosphere(rounds: int) -> Mesh:
    golden = (1 + 5**0.5) / 2
    short = np.array([[0, a, b] for a in (-1, 1) for b in (-golden, golden)])
    points = np.concatenate([np.roll(short, shift, axis=1) for shift in range(3)])
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    for _ in range(rounds):
        triangles = points[hull(points)[1]]
        middles = (triangles + np.roll(triangles, 1, axis=1)).reshape(-1, 3)
        middles /= np.linalg.norm(middles, axis=1, keepdims=True)
        points = np.unique(np.concatenate([points, middles]).round(9), axis=0)
        points /= np.linalg.norm(points, axis=1, keepdims=True)
    return points, hull(points)[1]


def hull(points: np.ndarray) -> Mesh:
    """Return the convex hull of points around their mean, its triangles turned outwards."""
    from scipy.spatial import ConvexHull

    faces = ConvexHull(points).simplices
    a, b, c = (points[faces[:, i]] for i in range(3))
    inward = (np.cross(b - a, c - a) * (a - points.mean(axis=0))).sum(1) < 0
    return points, np.where(inward[:, None], faces[:, ::-1], faces)


def tubes(pairs: np.ndarray, radius: float, sides: int = 6) -> Mesh:
    """Return open tubes of one radius between starts and ends, shape (n, 2, 3)."""
    axis = pairs[:, 1] - pairs[:, 0]
    axis = axis / np.maximum(np.linalg.norm(axis, axis=1, keepdims=True), 1e-12)
    # Any direction that is not nearly parallel to the axis will do.
    u = np.cross(axis, np.eye(3)[np.abs(axis).argmin(axis=1)])
    u /= np.maximum(np.linalg.norm(u, axis=1, keepdims=True), 1e-12)
    angle = 2 * np.pi * np.arange(sides)[:, None] / sides
    ring = radius * (np.cos(angle) * u[:, None] + np.sin(angle) * np.cross(axis, u)[:, None])
    vertices = (pairs[:, :, None] + ring[:, None]).reshape(-1, 3)
    i, j = np.arange(sides), (np.arange(sides) + 1) % sides
    faces = np.concatenate([np.stack([i, j, i + sides], 1), np.stack([j, j + sides, i + sides], 1)])
    shifted = faces + 2 * sides * np.arange(len(pairs))[:, None, None]
    return vertices.astype(np.float32), shifted.reshape(-1, 3).astype(np.int32)
