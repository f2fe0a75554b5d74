"""Structures as still pictures: atoms, bonds, cell, and coordination polyhedra on request."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from irlkit.lab.plots.geometry import (
    Crystal,
    Geometry,
    element_colors,
    geometry,
    is_drawable,
    spheres,
    to_structure,
    tubes,
)
from irlkit.lab.plots.style import GREY, style
from irlkit.utils.checks import checked

if TYPE_CHECKING:
    from pymatgen.core import Structure

    from irlkit.crystals import CrystalBatch

MAX_PANELS = 16
"""Browsers draw no more three-dimensional panels than about so many in one page."""
_LIGHTING = {"ambient": 0.55, "diffuse": 0.7, "specular": 0.15, "roughness": 0.6, "fresnel": 0.1}


@checked
def structure(
    crystal: Crystal, *, bonds: bool = True, polyhedra: bool = False, title: str = ""
) -> go.Figure:
    """One structure with its cell, bonds and a legend of elements.

    Args:
        crystal: a batch of one structure, or a pymatgen structure.
        bonds: draw bonds, as CrystalNN finds them.
        polyhedra: draw coordination polyhedra.
        title: of the figure; "": the formula.

    Returns:
        A figure to turn; a structure that is not valid shows that in words.

    Raises:
        ValueError: ``crystal`` is not one structure.
    """
    drawn = to_structure(crystal)
    return structures({title or _formula(drawn): drawn}, bonds=bonds, polyhedra=polyhedra)


@checked
def structures(
    panels: Mapping[str, Crystal] | Sequence[Crystal] | CrystalBatch,
    *,
    bonds: bool = True,
    polyhedra: bool = False,
    columns: int = 3,
    title: str = "",
) -> go.Figure:
    """Several structures side by side, all at one scale.

    Args:
        panels: title -> structure; or a list of structures or a batch, titled by their formulas.
        bonds: draw bonds, as CrystalNN finds them.
        polyhedra: draw coordination polyhedra.
        columns: panels per row.
        title: of the figure.

    Returns:
        The figure. Structures that cannot be drawn (a coordinate that is not a number, a cell
        without volume) say so in their panel.

    Raises:
        ValueError: no panel, too many, or something that is not one structure.
    """
    if isinstance(panels, Mapping):
        named = [(name, to_structure(panel, "panels")) for name, panel in panels.items()]
    else:
        drawn = [to_structure(panel, "panels") for panel in panels]
        named = [(_formula(crystal), crystal) for crystal in drawn]
    if not 0 < len(named) <= MAX_PANELS:
        raise ValueError(f"panels must hold 1 to {MAX_PANELS} structures, got {len(named)}")
    columns = max(1, min(columns, len(named)))
    rows = -(-len(named) // columns)
    figure = make_subplots(
        rows,
        columns,
        specs=[[{"type": "scene"}] * columns] * rows,
        subplot_titles=[
            name if is_drawable(entry) else f"{name}: not a valid structure"
            for name, entry in named
        ],
        horizontal_spacing=0.02,
        vertical_spacing=0.08 / rows,
    )
    parts = [geometry(entry, bonds, polyhedra) for _, entry in named]
    boxes = [box_of(part) for part in parts]
    size = np.max([high - low for low, high in boxes], axis=0)
    numbers = {site.specie.symbol: site.specie.Z for _, entry in named for site in entry}
    by_number = element_colors(list(numbers.values()))
    colors = {symbol: by_number[z] for symbol, z in numbers.items()}
    n_atoms = sum(len(centers) for part in parts for centers in part.atoms.values())
    # Rounder spheres where there are few: a figure stays well below a megabyte.
    rounds = 3 if n_atoms <= 8 else 2 if n_atoms <= 80 else 1
    # Browsers scale a scene by its height; narrower panels take smaller structures.
    fill = {1: 2.4, 2: 2.2, 3: 1.9}.get(columns, 1.6) * (1.0 if rows == 1 else 1.2)
    shown: set[str] = set()
    for i, (part, (low, high)) in enumerate(zip(parts, boxes, strict=True)):
        place = {"row": i // columns + 1, "col": i % columns + 1}
        traces = _traces(part, colors, shown, rounds)
        n = len(traces)
        figure.add_traces(traces, rows=[place["row"]] * n, cols=[place["col"]] * n)
        figure.update_scenes(**fixed_axes((low + high) / 2, size, fill), **place)
        shown |= set(part.atoms)
    figure.update_layout(
        title={"text": title}, legend={"itemsizing": "constant", "tracegroupgap": 2}
    )
    style(figure, 70 + (360 if rows == 1 else 290 * rows))
    return figure.update_layout(margin={"l": 10, "r": 10, "b": 20})


def _formula(crystal: Structure) -> str:
    return re.sub(r"([0-9.]+)", r"<sub>\1</sub>", crystal.composition.reduced_formula)


def _traces(part: Geometry, colors: Mapping[str, str], shown: set[str], rounds: int) -> list[Any]:
    """Cell, atoms, bonds and polyhedra; elements in `shown` are in the legend already."""
    traces = [edge_trace(part.edges)]
    for symbol, centers in part.atoms.items():
        color = colors[symbol]
        common = {"name": symbol, "legendgroup": symbol, "color": color, "lighting": _LIGHTING}
        hover = {"hovertemplate": f"{symbol}<extra></extra>"}
        vertices, faces = spheres(centers, part.radii[symbol], rounds)
        traces.append(_mesh(vertices, faces, **common, **hover, showlegend=symbol not in shown))
        if symbol in part.bonds:
            vertices, faces = tubes(part.bonds[symbol], 0.09)
            traces.append(_mesh(vertices, faces, **common, hoverinfo="skip", meta="bonds"))
        for corners in part.polyhedra.get(symbol, ()):
            x, y, z = corners.T
            traces.append(
                go.Mesh3d(
                    x=x,
                    y=y,
                    z=z,
                    alphahull=0,
                    opacity=0.3,
                    hoverinfo="skip",
                    meta="polyhedron",
                    **common,
                )
            )
    return traces


def _mesh(vertices: np.ndarray, faces: np.ndarray, **options: Any) -> go.Mesh3d:
    x, y, z = vertices.T
    i, j, k = faces.astype(np.uint16 if len(vertices) < 65536 else np.int32).T
    return go.Mesh3d(x=x, y=y, z=z, i=i, j=j, k=k, **options)


def edge_trace(edges: np.ndarray, color: str = GREY, width: float = 3) -> go.Scatter3d:
    """The edges of a cell as one line with gaps."""
    return go.Scatter3d(
        x=edges[:, 0].round(4),
        y=edges[:, 1].round(4),
        z=edges[:, 2].round(4),
        mode="lines",
        line={"color": color, "width": width},
        name="cell",
        showlegend=False,
        hoverinfo="skip",
    )


def box_of(part: Geometry) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest coordinates of what is drawn, with a margin, in Å."""
    points = np.concatenate([part.edges, *part.atoms.values()])
    points = points[np.isfinite(points).all(axis=1)]
    if not len(points):
        points = np.zeros((1, 3))
    return points.min(axis=0) - 0.6, points.max(axis=0) + 0.6


def fixed_axes(center: np.ndarray, size: np.ndarray, fill: float = 2.6) -> dict[str, Any]:
    """Axes of that size (Å) around a point, with equal scales; `fill` is how large it appears."""
    low, high = center - size / 2, center + size / 2
    axes = {
        f"{name}axis": {"range": [float(low[i]), float(high[i])], "visible": False}
        for i, name in enumerate("xyz")
    }
    # The diagonal of the box about as long as a panel is wide, found by trying.
    ratio = dict(zip("xyz", (fill * size / np.linalg.norm(size)).tolist(), strict=True))
    camera = {"eye": {"x": 1.1, "y": 1.3, "z": 0.6}, "projection": {"type": "orthographic"}}
    return {**axes, "aspectmode": "manual", "aspectratio": ratio, "camera": camera}
