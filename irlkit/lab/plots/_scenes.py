"""What still and moving structures share: traces of cells and elements, and their axes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go

from irlkit.lab.plots._geometry import Mesh, cell_edges
from irlkit.lab.plots.style import GREY

_LIGHTING = {"ambient": 0.55, "diffuse": 0.7, "specular": 0.15, "roughness": 0.6, "fresnel": 0.1}


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


def edge_trace(cell: np.ndarray, color: str = GREY, width: float = 3) -> go.Scatter3d:
    """Return the edges of a cell as one line with gaps."""
    x, y, z = cell_edges(cell).round(4).T
    line = {"color": color, "width": width}
    hidden = {"showlegend": False, "hoverinfo": "skip"}
    return go.Scatter3d(x=x, y=y, z=z, mode="lines", line=line, name="cell", **hidden)


def axis_letters(cell: np.ndarray) -> list[dict[str, Any]]:
    """Return a, b and c at the axes of a cell, as notes of a scene: nothing hides them."""
    # Beyond the balls at the corners.
    marks = cell * (1 + 0.9 / np.maximum(np.linalg.norm(cell, axis=1, keepdims=True), 1.0))
    look = {"showarrow": False, "font": {"size": 16, "color": "#333"}, "borderpad": 0}
    look["bgcolor"] = "rgba(255,255,255,0.6)"
    places = (dict(zip("xyz", mark.round(4).tolist(), strict=True)) for mark in marks)
    return [
        {"text": f"<i>{letter}</i>", **place, **look}
        for letter, place in zip("abc", places, strict=True)
        if np.isfinite(list(place.values())).all()
    ]


def box_of(*points: np.ndarray, room: float = 1.2) -> tuple[np.ndarray, np.ndarray]:
    """Return lowest and highest coordinates of cells and atoms, with room for balls and letters."""
    cells = [cell_edges(array) if array.shape == (3, 3) else array for array in points]
    together = np.concatenate(cells)
    together = together[np.isfinite(together).all(axis=1)]
    if not len(together):
        together = np.zeros((1, 3))
    return together.min(axis=0) - room, together.max(axis=0) + room


def fixed_axes(center: np.ndarray, size: np.ndarray, columns: int, rows: int = 1) -> dict[str, Any]:
    """Return axes of that size (Å) around a point, with equal scales, for a grid of panels."""
    low, high = center - size / 2, center + size / 2
    axes = {
        f"{name}axis": {"range": [float(low[i]), float(high[i])], "visible": False}
        for i, name in enumerate("xyz")
    }
    # Browsers scale a scene by its height, so narrower panels take smaller structures. Found by
    # trying.
    fill = {1: 2.7, 2: 2.4, 3: 2.15}.get(columns, 1.8) * (1.0 if rows == 1 else 1.15)
    ratio = dict(zip("xyz", (fill * size / np.linalg.norm(size)).tolist(), strict=True))
    camera = {"eye": {"x": 2.1, "y": 0.7, "z": 0.55}, "projection": {"type": "orthographic"}}
    return {**axes, "aspectmode": "manual", "aspectratio": ratio, "camera": camera}
