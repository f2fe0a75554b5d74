"""Figures of de novo generation: training by parts of the reward, novelty against stability."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from irlkit.lab.plots._panels import add_lines, colored, grid, lines_of
from irlkit.lab.plots.style import need, style


def reward_parts(history: pd.DataFrame, columns: Mapping[str, str], group: str) -> go.Figure:
    """Draw means of an iteration's samples during training, a panel per part of the reward.

    Args:
        history: columns iteration, seed and those below; seeds make a band.
        columns: column -> title of its panel.
        group: column that a line is drawn for each value of.
    """
    need(history, "iteration", "seed", group, *columns)
    figure, places = grid(list(columns.values()), 3, vertical_spacing=0.15)
    add_lines(figure, places, list(columns), "iteration", lines_of(history, group))
    figure.update_xaxes(title="iteration")
    return style(figure, 560, legend_below=True)


def novelty_and_stability(
    table: pd.DataFrame, x: str = "novel", y: str = "metastable", size: str = "diversity"
) -> go.Figure:
    """Draw variants as points with 95 % intervals: novelty, stability, and diversity as the size.

    Args:
        table: a row per variant (its index), columns x and y with "_low" and "_high", and size.
        x: column of the horizontal axis, a share.
        y: column of the vertical axis, a share.
        size: column that the area of a point grows with; nan is drawn as zero.
    """
    ends = [f"{name}_{end}" for name in (x, y) for end in ("low", "high")]
    need(table, x, y, size, *ends)
    figure = go.Figure()
    largest = np.nan_to_num(table[size].max()) or 1.0
    rows = {str(name): row for name, row in table.iterrows()}
    for name, row, color in colored("table", rows):
        share = np.nan_to_num(row[size]) / largest
        error = {
            f"error_{axis}": {
                "type": "data",
                "symmetric": False,
                "array": [row[f"{column}_high"] - row[column]],
                "arrayminus": [row[column] - row[f"{column}_low"]],
                "thickness": 1,
            }
            for axis, column in (("x", x), ("y", y))
        }
        figure.add_scatter(
            x=[row[x]],
            y=[row[y]],
            mode="markers+text",
            name=name,
            text=[name],
            textposition="top center",
            marker={"color": color, "size": 10 + 30 * share**0.5, "opacity": 0.7},
            hovertemplate=f"{name}<br>{x} %{{x:.3f}}<br>{y} %{{y:.3f}}<br>{size} {row[size]:.1f}"
            "<extra></extra>",
            **error,
        )
    figure.update_xaxes(title=f"{x}, share")
    figure.update_yaxes(title=f"{y}, share")
    return style(figure, 480)
