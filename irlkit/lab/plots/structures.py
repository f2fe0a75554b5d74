"""Structures as still pictures: atoms, bonds, cell, and coordination polyhedra on request."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from irlkit.lab.plots._geometry import (
    Crystal,
    ElementColors,
    Geometry,
    Mesh,
    cell_edges,
    conventional,
    element_colors,
    element_radius,
    geometry,
    hull,
    is_drawable,
    join,
    spheres,
    to_structure,
    tubes,
)
from irlkit.lab.plots._panels import add, grid
from irlkit.lab.plots.style import GREY, style
from irlkit.utils.checks import as_numbers, checked

if TYPE_CHECKING:
    from pymatgen.core import Structure

    from irlkit.crystals import CrystalBatch

MAX_PANELS = 16
"""Browsers draw no more three-dimensional panels than about so many in one page."""
_LIGHTING = {"ambient": 0.55, "diffuse": 0.7, "specular": 0.15, "roughness": 0.6, "fresnel": 0.1}


@checked
def structure(
    crystal: Crystal,
    *,
    bonds: bool = True,
    polyhedra: bool = False,
    title: str = "",
    colors: ElementColors = "vesta",
) -> go.Figure:
    """Draw one structure; see ``structures``, which draws several.

    Args:
        crystal: a batch of one structure, or a pymatgen structure.
        bonds: draw bonds.
        polyhedra: draw coordination polyhedra.
        title: of the panel, before what is known of the structure.
        colors: of elements.

    Returns:
        A figure to turn; a structure that is not valid shows that in words.

    Raises:
        ValueError: ``crystal`` is not one structure.
    """
    panels = {title: to_structure(crystal)}
    return structures(panels, bonds=bonds, polyhedra=polyhedra, colors=colors)


@checked
def structures(
    panels: Mapping[str, Crystal] | Sequence[Crystal] | CrystalBatch,
    *,
    bonds: bool = True,
    polyhedra: bool = False,
    columns: int = 3,
    title: str = "",
    energies: Sequence[float] | None = None,
    colors: ElementColors = "vesta",
) -> go.Figure:
    """Draw several structures side by side, in their conventional cells, all at one scale.

    Atoms on faces of the cell are repeated at the opposite ones. Each panel is labelled with the
    formula, the space group (within 0.1 Å), and the energy where it is given.

    Args:
        panels: title -> structure; or a list of structures or a batch.
        bonds: draw bonds: distances below 1.15 times the sum of covalent radii, none between two
            cations of which one is a metal.
        polyhedra: draw coordination polyhedra around cations of less than 1 Å, or around all where
            there are none, with the atoms at their corners outside the cell.
        columns: panels per row.
        title: of the figure.
        energies: of the panels, eV/atom; nan where unknown.
        colors: of elements: those of VESTA or Jmol, or "distinct" ones that colour-blind people
            can tell apart, given out anew in each figure.

    Returns:
        The figure. Structures that cannot be drawn (a coordinate that is not a number, a cell
        without volume) say so in their panel.

    Raises:
        ValueError: no panel, too many, something that is not one structure, or another number of
            energies.
    """
    named: list[tuple[str, Crystal]] = (
        list(panels.items()) if isinstance(panels, Mapping) else [("", panel) for panel in panels]
    )
    if not 0 < len(named) <= MAX_PANELS:
        raise ValueError(f"panels must hold 1 to {MAX_PANELS} structures, got {len(named)}")
    values = np.full(len(named), np.nan)
    if energies is not None:
        values = as_numbers("energies, one for each of panels,", energies, len(named))
    labels, parts = [], []
    for (name, crystal), energy in zip(named, values, strict=True):
        drawn, group = to_structure(crystal, "panels"), "not a valid structure"
        if is_drawable(drawn.lattice.matrix, drawn.frac_coords):
            drawn, group = conventional(drawn)
        arrays = (np.array(drawn.atomic_numbers), drawn.frac_coords, drawn.lattice.matrix)
        parts.append(geometry(*arrays, bonds=bonds, polyhedra=polyhedra))
        labels.append(_label(name, drawn, group, energy))
    figure, places = grid(labels, columns, "scene", horizontal_spacing=0.02)
    n_columns, n_rows = max(place["col"] for place in places), places[-1]["row"]
    boxes = [box_of(part.cell, part.atoms) for part in parts]
    size = np.max([high - low for low, high in boxes], axis=0)
    by_number = element_colors(np.concatenate([part.species for part in parts]), colors)
    n_atoms = sum(len(part.atoms) for part in parts)
    # Rounder spheres where there are few: a figure stays well below a megabyte.
    rounds = 3 if n_atoms <= 30 else 2 if n_atoms <= 150 else 1
    shown: set[int] = set()
    for part, place, (low, high) in zip(parts, places, boxes, strict=True):
        add(figure, _traces(part, by_number, shown, rounds), place)
        figure.update_scenes(**fixed_axes((low + high) / 2, size, n_columns, n_rows), **place)
        shown |= set(part.species.tolist())
    legend = {"itemsizing": "constant", "orientation": "h", "y": 0, "x": 0.5, "xanchor": "center"}
    figure.update_layout(title={"text": title}, legend=legend)
    style(figure, 90 + (400 if n_rows == 1 else 320 * n_rows))
    return figure.update_layout(margin={"l": 10, "r": 10, "b": 20})


def _label(name: str, crystal: Structure, group: str, energy: float) -> str:
    """Return the title of a panel: the name, and what of the rest it does not say."""
    formula = crystal.composition.reduced_formula
    html = re.sub(r"([0-9.]+)", r"<sub>\1</sub>", formula)
    group = re.sub(r"_(\d)", r"<sub>\1</sub>", group)
    known = ["" if formula in name or html in name else html, group]
    known.append(f"{energy:.3f} eV/atom".replace("-", "−") if np.isfinite(energy) else "")
    line = ", ".join(part for part in known if part)
    return f"{name}<br>{line}" if name else line


def _traces(
    part: Geometry, colors: Mapping[int, str], shown: set[int], rounds: int
) -> list[go.Scatter3d | go.Mesh3d]:
    """Return cell, atoms, bonds and polyhedra; elements in `shown` are in the legend already."""
    traces = [edge_trace(part.cell, axes=True)]
    ends = part.atoms[part.bonds]
    # Each half of a bond has the colour of its atom.
    halves = np.concatenate([ends, ends[:, ::-1]])
    halves[:, 1] = halves.mean(axis=1)
    owner = part.species[np.concatenate([part.bonds[:, 0], part.bonds[:, 1]])]
    for z in np.unique(part.species):
        look = element_look(z, colors)
        balls = spheres(part.atoms[part.species == z], element_radius(z), rounds)
        traces.append(mesh_trace(balls, **look, showlegend=z not in shown))
        if (owner == z).any():
            sticks = tubes(halves[owner == z], 0.09)
            traces.append(mesh_trace(sticks, **look, meta="bonds"))
        hulls = [
            hull(part.atoms[corners])
            for atom, corners in part.polyhedra.items()
            if part.species[atom] == z
        ]
        if hulls:
            flat = {"opacity": 0.45, "flatshading": True, "meta": "polyhedron"}
            traces.append(mesh_trace(join(hulls), **look, **flat))
    return traces


def element_look(z: int, colors: Mapping[int, str]) -> dict[str, Any]:
    """Return name, colour and words of the traces of an element."""
    from ase.data import chemical_symbols

    symbol = chemical_symbols[z]
    hover = {"hovertemplate": f"{symbol}<extra></extra>"}
    return {"name": symbol, "legendgroup": symbol, "color": colors[int(z)], **hover}


def mesh_trace(mesh: Mesh, **options: Any) -> go.Mesh3d:
    """Return a mesh as a trace."""
    vertices, faces = mesh
    x, y, z = vertices.T
    i, j, k = faces.astype(np.uint16 if len(vertices) < 65536 else np.int32).T
    return go.Mesh3d(x=x, y=y, z=z, i=i, j=j, k=k, lighting=_LIGHTING, **options)


def edge_trace(
    cell: np.ndarray, color: str = GREY, width: float = 3, axes: bool = False
) -> go.Scatter3d:
    """Return the edges of a cell as one line with gaps, with a, b and c at its axes if wanted."""
    points = cell_edges(cell)
    words = [""] * len(points)
    if axes:
        gaps = np.full((3, 3), np.nan)
        # Beyond the balls at the corners.
        marks = cell * (1 + 1.1 / np.maximum(np.linalg.norm(cell, axis=1, keepdims=True), 1.0))
        points = np.concatenate([points, np.stack([marks, gaps], 1).reshape(-1, 3)])
        words += ["<i>a</i>", "", "<i>b</i>", "", "<i>c</i>", ""]
    x, y, z = points.round(4).T
    return go.Scatter3d(
        x=x,
        y=y,
        z=z,
        mode="lines+text" if axes else "lines",
        text=words if axes else None,
        textfont={"color": GREY, "size": 15},
        line={"color": color, "width": width},
        name="cell",
        showlegend=False,
        hoverinfo="skip",
    )


def box_of(*points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return lowest and highest coordinates of cells and atoms, with room for balls and letters."""
    cells = [cell_edges(array) if array.shape == (3, 3) else array for array in points]
    together = np.concatenate(cells)
    together = together[np.isfinite(together).all(axis=1)]
    if not len(together):
        together = np.zeros((1, 3))
    return together.min(axis=0) - 1.2, together.max(axis=0) + 1.2


def fixed_axes(center: np.ndarray, size: np.ndarray, columns: int, rows: int = 1) -> dict[str, Any]:
    """Return axes of that size (Å) around a point, with equal scales, for a grid of panels."""
    low, high = center - size / 2, center + size / 2
    axes = {
        f"{name}axis": {"range": [float(low[i]), float(high[i])], "visible": False}
        for i, name in enumerate("xyz")
    }
    # Browsers scale a scene by its height, so narrower panels take smaller structures. Found by
    # trying.
    fill = {1: 2.7, 2: 2.7, 3: 2.6}.get(columns, 2.1) * (1.0 if rows == 1 else 1.35)
    ratio = dict(zip("xyz", (fill * size / np.linalg.norm(size)).tolist(), strict=True))
    camera = {"eye": {"x": 2.1, "y": 0.7, "z": 0.55}, "projection": {"type": "orthographic"}}
    return {**axes, "aspectmode": "manual", "aspectratio": ratio, "camera": camera}
