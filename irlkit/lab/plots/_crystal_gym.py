"""Figures of CrystalGym: an episode, and learning curves over evaluations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from irlkit.lab.plots import _scenes as scenes
from irlkit.lab.plots._panels import add, colored, grid
from irlkit.lab.plots.style import COLORS, GREY, line_with_band, need, style

if TYPE_CHECKING:
    from pymatgen.core import Structure

_CORNERS = np.array(
    [[int(digit) for digit in corner] for corner in
     "000 100 110 010 000 001 101 100 101 111 110 111 011 010 011 001".split()]
)  # fmt: skip
"""A way along the edges of a cell."""


def episode(steps: Mapping[str, Structure] | Sequence[Structure]) -> go.Figure:
    """Draw a skeleton while it is filled; sites with the dummy species X are empty.

    Args:
        steps: what `CrystalGym.render` returns with ``render_mode="crystal"``, with titles or
            without.

    Raises:
        ValueError: there is no step.
    """
    if not isinstance(steps, Mapping):
        steps = {f"step {i}": step for i, step in enumerate(steps)}
    if not steps:
        raise ValueError("steps must hold at least one structure, got none")
    figure, places = grid(list(steps), 4, "scene", horizontal_spacing=0.01, vertical_spacing=0.06)
    symbols = dict.fromkeys(site.specie.symbol for step in steps.values() for site in step)
    colors = {"X": GREY} | {
        name: COLORS[i % len(COLORS)] for i, name in enumerate(s for s in symbols if s != "X")
    }
    shown: set[str] = set()
    for step, place in zip(steps.values(), places, strict=True):
        edges = _CORNERS @ step.lattice.matrix
        line = {"color": GREY, "width": 2}
        traces = [go.Scatter3d(x=edges[:, 0], y=edges[:, 1], z=edges[:, 2], mode="lines",
                               line=line, hoverinfo="skip", showlegend=False)]  # fmt: skip
        names = np.array([site.specie.symbol for site in step])
        for symbol in dict.fromkeys(names.tolist()):
            x, y, z = step.cart_coords[names == symbol].T
            empty = symbol == "X"
            marker = {
                "size": 7 if empty else 11,
                "color": colors[symbol],
                "symbol": "circle-open" if empty else "circle",
            }
            name, first = "empty" if empty else symbol, symbol not in shown
            traces.append(
                go.Scatter3d(x=x, y=y, z=z, mode="markers", name=name, legendgroup=symbol,
                             showlegend=first, marker=marker)
            )  # fmt: skip
            shown.add(symbol)
        add(figure, traces, place)
        low, high = edges.min(0), edges.max(0)
        figure.update_scenes(**scenes.fixed_axes((low + high) / 2, high - low, 4), **place)
    return style(figure, 90 + 260 * places[-1]["row"])


def learning(tables: Mapping[str, pd.DataFrame], window: int = 200) -> go.Figure:
    """Draw mean rewards against evaluations, a panel per task and a line per algorithm.

    Args:
        tables: task -> `Comparison.episodes`; seeds make a band.
        window: evaluations that are averaged.

    Raises:
        ValueError: no task, or a column is missing.
    """
    if not tables:
        raise ValueError("tables must hold at least one task, got none")
    figure, places = grid(list(tables), 2, vertical_spacing=0.14)
    names = (str(name) for rows in tables.values() for name in rows.get("algorithm", []))
    colors = {name: color for name, _, color in colored("tables", dict.fromkeys(names))}
    shown: set[str] = set()
    for rows, place in zip(tables.values(), places, strict=True):
        need(rows, "algorithm", "seed", "evaluation", "reward")
        bins = (rows["evaluation"] - 1) // window * window + window // 2
        keys = ["algorithm", "seed", bins.rename("at")]
        means = rows.groupby(keys, sort=False)["reward"].mean().reset_index()
        for name, of_algorithm in means.groupby(means["algorithm"].map(str), sort=False):
            line = line_with_band(
                of_algorithm, "at", "reward", name, colors[name], legend=name not in shown
            )
            shown.add(name)
            add(figure, line, place)
    figure.update_xaxes(title="evaluations")
    figure.update_yaxes(title="mean reward")
    return style(figure, 140 + 300 * places[-1]["row"], legend_below=True)
