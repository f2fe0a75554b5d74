"""Structures as still pictures: atoms, bonds, cell, and coordination polyhedra on request."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go

from irlkit.crystals.symmetry import conventional
from irlkit.lab.plots import _geometry as geo
from irlkit.lab.plots import _scenes as scenes
from irlkit.lab.plots._panels import add, grid
from irlkit.lab.plots.style import style
from irlkit.utils.checks import as_numbers, checked

if TYPE_CHECKING:
    from pymatgen.core import Structure

    from irlkit.crystals import CrystalBatch

MAX_PANELS = 16
"""Browsers draw no more three-dimensional panels than about so many in one page."""
MOST_ENLARGED = 2.0
"""How much larger than beside the largest one a structure is drawn, to be seen at all."""


@checked
def structure(
    crystal: geo.Crystal,
    *,
    bonds: bool = True,
    polyhedra: bool = False,
    title: str = "",
    colors: geo.ElementColors = "vesta",
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
        ValueError: ``crystal`` is not one structure with an element at every site.
    """
    panels = {title: geo.to_structure(crystal)}
    return structures(panels, bonds=bonds, polyhedra=polyhedra, colors=colors)


@checked
def structures(
    panels: Mapping[str, geo.Crystal] | Sequence[geo.Crystal] | CrystalBatch,
    *,
    bonds: bool = True,
    polyhedra: bool = False,
    columns: int = 3,
    title: str = "",
    energies: Sequence[float] | None = None,
    colors: geo.ElementColors = "vesta",
) -> go.Figure:
    """Draw several structures side by side, in their conventional cells.

    Small structures are drawn larger, up to twice, than large ones beside them. Atoms on faces of
    the cell are repeated at the opposite ones. Each panel is labelled with the formula, the space
    group (within 0.1 Å), and the energy where it is given.

    Args:
        panels: title -> structure; or a list of structures or a batch.
        bonds: draw bonds: distances below 1.15 times the sum of covalent radii, none between two
            cations of which one is a metal.
        polyhedra: draw coordination polyhedra around cations of less than 1 Å, if there are any,
            with the atoms at their corners outside the cell.
        columns: panels per row.
        title: of the figure.
        energies: of the panels, eV/atom; nan where unknown.
        colors: of elements: those of VESTA or Jmol, or "distinct" ones that colour-blind people
            can tell apart, given out anew in each figure.

    Returns:
        The figure. Structures that cannot be drawn (a coordinate that is not a number, a cell
        without volume) say so in their panel.

    Raises:
        ValueError: no panel, too many, something that is not one structure with an element at
            every site, or another number of energies.
    """
    named: list[tuple[str, geo.Crystal]] = (
        list(panels.items()) if isinstance(panels, Mapping) else [("", panel) for panel in panels]
    )
    if not 0 < len(named) <= MAX_PANELS:
        raise ValueError(f"panels must hold 1 to {MAX_PANELS} structures, got {len(named)}")
    values = np.full(len(named), np.nan)
    if energies is not None:
        values = as_numbers("energies, one for each of panels,", energies, len(named))
    labels, parts = [], []
    for (name, crystal), energy in zip(named, values, strict=True):
        drawn, group = geo.to_structure(crystal, "panels"), "not a valid structure"
        geo.check_elements(drawn, "panels")
        if geo.is_drawable(drawn.lattice.matrix, drawn.frac_coords):
            drawn, group, _ = conventional(drawn)
        arrays = (np.array(drawn.atomic_numbers), drawn.frac_coords, drawn.lattice.matrix)
        parts.append(geo.geometry(*arrays, bonds=bonds, polyhedra=polyhedra))
        labels.append(_label(name, drawn, group, energy))
    n = len(labels)
    narrow = 0.18 / -(-n // max(1, min(columns, n)))  # a title of two lines between rows
    options = {"horizontal_spacing": 0.02, "vertical_spacing": narrow}
    figure, places = grid(labels, columns, "scene", **options)
    n_columns, n_rows = max(place["col"] for place in places), places[-1]["row"]
    boxes = [scenes.box_of(part.cell, part.atoms) for part in parts]
    largest = max(np.linalg.norm(high - low) for low, high in boxes)
    by_number = geo.element_colors(np.concatenate([part.species for part in parts]), colors)
    n_atoms = sum(len(part.atoms) for part in parts)
    # Rounder spheres where there are few: a figure stays well below a megabyte.
    rounds = 3 if n_atoms <= 30 else 2 if n_atoms <= 150 else 1
    shown: set[int] = set()
    for part, place, (low, high) in zip(parts, places, boxes, strict=True):
        add(figure, _traces(part, by_number, shown, rounds), place)
        size = (high - low) * max(1.0, largest / np.linalg.norm(high - low) / MOST_ENLARGED)
        figure.update_scenes(
            **scenes.fixed_axes((low + high) / 2, size, n_columns, n_rows), **place
        )
        figure.update_scenes(annotations=scenes.axis_letters(part.cell), **place)
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
    words = "|".join(map(re.escape, (formula, html)))
    named = re.search(rf"(?<![A-Za-z0-9])({words})(?![A-Za-z0-9])", name)
    known = ["" if named else html, group]
    known.append(f"{energy:.3f} eV/atom".replace("-", "−") if np.isfinite(energy) else "")
    line = ", ".join(part for part in known if part)
    return f"{name}<br>{line}" if name else line


def _traces(
    part: geo.Geometry, colors: Mapping[int, str], shown: set[int], rounds: int
) -> list[go.Scatter3d | go.Mesh3d]:
    """Return cell, atoms, bonds and polyhedra; elements in `shown` are in the legend already."""
    traces = [scenes.edge_trace(part.cell)]
    ends = part.atoms[part.bonds]
    # Each half of a bond has the colour of its atom.
    halves = np.concatenate([ends, ends[:, ::-1]])
    halves[:, 1] = halves.mean(axis=1)
    owner = part.species[np.concatenate([part.bonds[:, 0], part.bonds[:, 1]])]
    for z in np.unique(part.species):
        look = scenes.element_look(z, colors)
        balls = geo.spheres(part.atoms[part.species == z], geo.element_radius(z), rounds)
        traces.append(scenes.mesh_trace(balls, **look, showlegend=z not in shown))
        if (owner == z).any():
            sticks = geo.tubes(halves[owner == z], 0.09)
            traces.append(scenes.mesh_trace(sticks, **look, meta="bonds"))
        hulls = [
            geo.hull(part.atoms[corners])
            for atom, corners in part.polyhedra.items()
            if part.species[atom] == z
        ]
        if hulls:
            flat = {"opacity": 0.45, "flatshading": True, "meta": "polyhedron"}
            traces.append(scenes.mesh_trace(geo.join(hulls), **look, **flat))
    return traces
