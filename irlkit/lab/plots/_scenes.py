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
    fill = {1: 2.7, 2: 2.4, 3: 2.15}.get(columns, 1.8) * (1.0 if rows == 1 else 1.25)
    ratio = dict(zip("xyz", (fill * size / np.linalg.norm(size)).tolist(), strict=True))
    camera = {"eye": {"x": 2.1, "y": 0.7, "z": 0.55}, "projection": {"type": "orthographic"}}
    return {**axes, "aspectmode": "manual", "aspectratio": ratio, "camera": camera}
