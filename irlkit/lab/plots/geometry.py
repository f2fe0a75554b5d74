"""Geometry of structures: crystal-toolkit's scenes as plain arrays, and meshes made of them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from irlkit.lab.plots.style import COLORS

if TYPE_CHECKING:
    from pymatgen.core import Structure

    from irlkit.crystals import CrystalBatch

Crystal: TypeAlias = "CrystalBatch | Structure"
"""A batch of one structure or a pymatgen structure."""

MIN_VOLUME = 0.1
"""Cells of less, in Å³, are not drawn with bonds: they hold no sensible ones."""
_DISPLAY_HOOKS = ("_ipython_display_", "_repr_mimebundle_", "display_json", "to_plotly_json")
# The 12 edges of a cell as pairs of corners.
_CORNERS = np.stack(np.meshgrid([0, 1], [0, 1], [0, 1], indexing="ij"), axis=-1).reshape(8, 3)
_EDGES = [(i, i | bit) for i in range(8) for bit in (1, 2, 4) if not i & bit]


@dataclass
class Geometry:
    """What is drawn of a structure; all coordinates are Cartesian, in Å.

    Attributes:
        edges: of the cell, ends of lines separated by nan, shape (36, 3).
        atoms: element -> centres, shape (n, 3); atoms on a face of the cell are there twice.
        radii: element -> radius.
        bonds: element -> starts and ends of the half of each bond that is this element's,
            shape (n, 2, 3).
        polyhedra: element -> corners of each coordination polyhedron around such an atom.
    """

    edges: np.ndarray
    atoms: dict[str, np.ndarray]
    radii: dict[str, float]
    bonds: dict[str, np.ndarray] = field(default_factory=dict)
    polyhedra: dict[str, list[np.ndarray]] = field(default_factory=dict)


def element_colors(elements: Sequence[int]) -> dict[int, str]:
    """A colour per atomic number; from the eighth on they repeat.

    Args:
        elements: atomic numbers of a figure, in any order.
    """
    ordered = sorted(set(elements))
    return {z: COLORS[i % len(COLORS)] for i, z in enumerate(ordered)}


def to_structure(crystal: Crystal, name: str = "crystal") -> Structure:
    """A pymatgen structure; `name` is what the argument is called in errors.

    Raises:
        ValueError: a batch of none or several structures, or an object that is neither.
    """
    if hasattr(crystal, "to_structures"):
        if len(crystal) != 1:
            raise ValueError(
                f"{name} must hold one structure, got {len(crystal)}; take one with [i], or use "
                "plots.structures"
            )
        return crystal.wrap().to_structures()[0]
    if not hasattr(crystal, "frac_coords"):
        raise ValueError(
            f"{name} must be a CrystalBatch of one structure or a pymatgen Structure, got "
            f"{type(crystal).__name__}"
        )
    return crystal


def cell_edges(cell: np.ndarray) -> np.ndarray:
    """The 12 edges of a cell (3, 3) as ends of lines separated by nan, shape (36, 3)."""
    corners = _CORNERS @ cell
    return np.concatenate([[*corners[[i, j]], [np.nan] * 3] for i, j in _EDGES])


def is_drawable(structure: Structure) -> bool:
    """All coordinates are finite and the cell has a volume."""
    finite = (
        np.isfinite(structure.lattice.matrix).all() and np.isfinite(structure.frac_coords).all()
    )
    return bool(finite and abs(np.linalg.det(structure.lattice.matrix)) > MIN_VOLUME)


def geometry(structure: Structure, bonds: bool = True, polyhedra: bool = False) -> Geometry:
    """What to draw of a structure.

    Atoms, their images on the faces of the cell, bonds (of CrystalNN) and polyhedra come from
    crystal-toolkit's scene. Without crystal-toolkit, or where no bonds can be found, there are the
    atoms of the cell alone.

    Args:
        structure: any; one that is not drawable has no atoms.
        bonds: seek bonds.
        polyhedra: draw coordination polyhedra; needs bonds.
    """
    from ase.data import covalent_radii

    edges = cell_edges(structure.lattice.matrix)
    if not is_drawable(structure):
        return Geometry(edges, {}, {})
    radii = {
        site.specie.symbol: 0.25 + 0.25 * float(covalent_radii[site.specie.Z]) for site in structure
    }
    scene = _scene(structure, bonds or polyhedra)
    if scene is None:
        symbols = np.array([site.specie.symbol for site in structure])
        atoms = {s: structure.cart_coords[symbols == s] for s in radii}
        return Geometry(edges, atoms, radii)
    symbol_of, parts = scene
    points: dict[str, list] = {symbol: [] for symbol in radii}
    halves: dict[str, list] = {symbol: [] for symbol in radii}
    hulls: dict[str, list] = {symbol: [] for symbol in radii}
    for sphere in parts.get("atoms", ()):
        points[symbol_of[sphere.color]] += list(sphere.positions)
    if bonds:
        for tube in parts.get("bonds", ()):
            halves[symbol_of[tube.color]] += list(tube.positionPairs)
    if polyhedra:
        for hull in parts.get("polyhedra", ()):
            hulls[symbol_of[hull.color]].append(np.asarray(hull.positions, dtype=float))
    return Geometry(
        edges,
        {s: np.asarray(entries, dtype=float).reshape(-1, 3) for s, entries in points.items()},
        radii,
        {s: np.asarray(pairs, dtype=float) for s, pairs in halves.items() if pairs},
        {s: entries for s, entries in hulls.items() if entries},
    )


def _scene(structure: Structure, bonds: bool) -> tuple[dict[str, str], dict[str, list]] | None:
    """Colour -> element, and part -> primitives of crystal-toolkit's scene."""
    toolkit = import_crystal_toolkit()
    if toolkit is None:
        return None
    from pymatgen.analysis.graphs import StructureGraph
    from pymatgen.analysis.local_env import CrystalNN

    # Each element gets a colour of its own as a mark; the figure chooses what is seen.
    symbols = sorted({site.specie.symbol for site in structure})
    marks = {symbol: f"#{i:06x}" for i, symbol in enumerate(symbols)}
    marked = structure.copy(
        site_properties={"display_color": [marks[site.specie.symbol] for site in structure]}
    )
    scene = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if bonds and _is_compact(structure):
            try:
                graph = StructureGraph.from_local_env_strategy(marked, CrystalNN())
                scene = graph.get_scene(bonded_sites_outside_unit_cell=True)
            except Exception:  # whatever atoms on top of each other do to a Voronoi construction
                scene = None
        if scene is None:
            scene = marked.get_scene()
    parts = {part.name: part.contents for part in scene.contents}
    return {mark: symbol for symbol, mark in marks.items()}, parts


def _is_compact(structure: Structure) -> bool:
    """Whether bonds are found in a time that is worth waiting for: no needle, no sheet."""
    lattice = structure.lattice
    spacing = 1 / np.asarray(lattice.reciprocal_lattice_crystallographic.abc)
    return bool(spacing.min() > 0.5 and max(lattice.abc) < 200)


def import_crystal_toolkit() -> Any:
    """crystal-toolkit without its changes to how pymatgen's objects are displayed, or None.

    Its import makes every structure that ends a notebook's cell start a web server. Where somebody
    imported it before, that stays as they have it.
    """
    import sys

    if "crystal_toolkit" in sys.modules:
        return sys.modules["crystal_toolkit"]
    try:
        from monty.json import MSONable

        before = {name: vars(MSONable).get(name) for name in _DISPLAY_HOOKS}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import crystal_toolkit
    except (ImportError, AttributeError):  # not there, or not fitting the pymatgen that is
        return None
    for name, method in before.items():
        if method is not None:
            setattr(MSONable, name, method)
        elif name in vars(MSONable):
            delattr(MSONable, name)
    return crystal_toolkit


# --------------------------------------------------------------------------------------------------
# Meshes
# --------------------------------------------------------------------------------------------------


def spheres(centers: np.ndarray, radius: float, rounds: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Spheres as one mesh.

    Args:
        centers: shape (n, 3).
        radius: of all.
        rounds: how often an icosahedron's faces are divided by four.

    Returns:
        Vertices, float32 of shape (n v, 3), and faces, int32 of shape (n f, 3).
    """
    points, faces = _icosphere(rounds)
    n = len(centers)
    vertices = (centers[:, None] + radius * points).reshape(-1, 3)
    shifted = faces + len(points) * np.arange(n)[:, None, None]
    return vertices.astype(np.float32), shifted.reshape(-1, 3).astype(np.int32)


@lru_cache
def _icosphere(rounds: int) -> tuple[np.ndarray, np.ndarray]:
    from scipy.spatial import ConvexHull

    golden = (1 + 5**0.5) / 2
    short = np.array([[0, a, b] for a in (-1, 1) for b in (-golden, golden)])
    points = np.concatenate([np.roll(short, shift, axis=1) for shift in range(3)])
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    for _ in range(rounds):
        triangles = points[_outward(points, ConvexHull(points).simplices)]
        middles = (triangles + np.roll(triangles, 1, axis=1)).reshape(-1, 3)
        middles /= np.linalg.norm(middles, axis=1, keepdims=True)
        points = np.unique(np.concatenate([points, middles]).round(9), axis=0)
        points /= np.linalg.norm(points, axis=1, keepdims=True)
    return points, _outward(points, ConvexHull(points).simplices)


def _outward(points: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """The faces, each in the order that makes its normal point away from the origin."""
    a, b, c = (points[faces[:, i]] for i in range(3))
    inward = (np.cross(b - a, c - a) * a).sum(1) < 0
    return np.where(inward[:, None], faces[:, ::-1], faces)


def tubes(pairs: np.ndarray, radius: float, sides: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Open tubes as one mesh.

    Args:
        pairs: starts and ends, shape (n, 2, 3).
        radius: of all.
        sides: of the polygon that stands for a circle.

    Returns:
        Vertices and faces, as of ``spheres``.
    """
    axis = pairs[:, 1] - pairs[:, 0]
    length = np.linalg.norm(axis, axis=1, keepdims=True)
    axis = axis / np.where(length == 0, 1, length)
    # Any direction that is not nearly parallel to the axis will do.
    other = np.eye(3)[np.abs(axis).argmin(axis=1)]
    u = np.cross(axis, other)
    u /= np.maximum(np.linalg.norm(u, axis=1, keepdims=True), 1e-12)
    v = np.cross(axis, u)
    angle = 2 * np.pi * np.arange(sides) / sides
    ring = radius * (
        np.cos(angle)[:, None] * u[:, None] + np.sin(angle)[:, None] * v[:, None]
    )  # (n, sides, 3)
    vertices = (pairs[:, :, None] + ring[:, None]).reshape(-1, 3)
    i, j = np.arange(sides), (np.arange(sides) + 1) % sides
    faces = np.concatenate([np.stack([i, j, i + sides], 1), np.stack([j, j + sides, i + sides], 1)])
    shifted = faces + 2 * sides * np.arange(len(pairs))[:, None, None]
    return vertices.astype(np.float32), shifted.reshape(-1, 3).astype(np.int32)
