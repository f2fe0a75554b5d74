"""The common look of figures: colours, labels, axes, bands."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from irlkit.utils.checks import checked

ORANGE, SKY, GREEN, YELLOW = "#E69F00", "#56B4E9", "#009E73", "#F0E442"
BLUE, RED, PURPLE, GREY = "#0072B2", "#D55E00", "#CC79A7", "#888888"
COLORS = (BLUE, RED, GREEN, PURPLE, ORANGE, SKY, YELLOW)
SCALE = [[0.0, BLUE], [0.5, "#8C8C86"], [1.0, ORANGE]]
"""From low to high: neither end vanishes on a light or a dark page."""
FIELD_LABELS = {"pos": "atomic positions", "cell": "lattice vectors"}
METRIC_LABELS = {
    "metre": "METRe (share of references)",
    "crmse": "cRMSE, in (V/N)<sup>1/3</sup>",
    "match_rate": "match rate",
    "rmse": "RMSE, in (V/N)<sup>1/3</sup>",
    "polymorph_match_rate": "match rate with any polymorph",
    "polymorph_rmse": "RMSE from the closest polymorph, in (V/N)<sup>1/3</sup>",
    "valid_rate": "share of valid structures",
}


@checked
def style(figure: go.Figure, height: int = 400, legend_below: bool = False) -> go.Figure:
    """Give a figure the common look; changes and returns it.

    Args:
        figure: to change.
        height: in pixels.
        legend_below: put the legend in two rows or fewer at the lower edge, in a margin that is
            large enough for it and the axis titles whatever the width.

    >>> style(go.Figure(), 300).layout.height
    300
    """
    # Between a title and the titles of panels below it.
    top = 80 if figure.layout.title.text else 50
    clear = "rgba(0,0,0,0)"
    figure.update_layout(
        height=height + top - 50,
        paper_bgcolor=clear,
        plot_bgcolor=clear,
        font={"color": GREY, "size": 13},
        margin={"l": 65, "r": 20, "t": top, "b": 115 if legend_below else 60},
        hoverlabel={"namelength": -1},
        modebar={"bgcolor": clear, "color": GREY, "activecolor": BLUE},
    )
    if legend_below:
        below = {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom"}
        figure.update_layout(legend=below)
    lines = {"gridcolor": "rgba(136,136,136,0.25)", "zerolinecolor": "rgba(136,136,136,0.5)"}
    for update in (figure.update_xaxes, figure.update_yaxes):
        update(**lines, linecolor=GREY, ticks="outside")
    return figure


@checked
def line_with_band(
    table: pd.DataFrame,
    x: str,
    y: str,
    name: str,
    color: str,
    *,
    legend: bool = True,
    dash: str | None = None,
) -> list[go.Scatter]:
    """Draw the mean over rows with equal `x`, and a band from the smallest to the largest of them.

    Args:
        table: rows of all seeds; those where `y` is nan are left out.
        x, y: columns of the abscissa and the ordinate.
        name, legend: what the legend says, and whether.
        color, dash: of the line, hexadecimal and as plotly has it.

    Returns:
        The band, if any `x` has several rows, and the line; with a single `x`, a point with an
        error bar instead of the band.
    """
    need(table, x, y)
    groups = table.dropna(subset=[y]).groupby(x)[y]
    mean, low, high = groups.mean(), groups.min(), groups.max()
    line = go.Scatter(
        x=mean.index.to_numpy(),
        y=mean.to_numpy(),
        mode="lines+markers" if len(mean) <= 25 else "lines",
        name=name,
        legendgroup=name,
        showlegend=legend,
        line={"color": color, "dash": dash},
    )
    if len(mean) == 1:
        line.error_y = {"array": (high - mean).to_numpy(), "arrayminus": (mean - low).to_numpy()}
    if len(mean) <= 1 or groups.size().max() == 1:
        return [line]
    band = go.Scatter(
        x=np.concatenate([low.index, high.index[::-1]]),
        y=np.concatenate([low, high[::-1]]),
        fill="toself",
        fillcolor=color,
        opacity=0.2,
        mode="none",
        name=f"{name}: range of seeds",
        legendgroup=name,
        showlegend=False,
        hoverinfo="skip",
    )
    return [band, line]


def need(table: pd.DataFrame, *columns: str) -> None:
    """Raise a ValueError that names the columns which a table lacks."""
    missing = [column for column in columns if column not in table]
    if missing:
        raise ValueError(f"the table lacks the columns {missing}; it has {list(table.columns)}")
