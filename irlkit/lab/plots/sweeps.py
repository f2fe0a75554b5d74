"""Trials of sweeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from irlkit.lab.plots._panels import grid
from irlkit.lab.plots.style import (
    BLUE,
    COLORS,
    GREY,
    METRIC_LABELS,
    ORANGE,
    RED,
    SCALE,
    need,
    style,
)
from irlkit.utils.checks import checked


@checked
def sweep_results(
    trials: pd.DataFrame, metric: str = "crmse", targets: Mapping[str, float] | None = None
) -> go.Figure:
    """Draw trials of a handcrafted sweep: where they lie, and how good in order (Appendix H).

    Args:
        trials: columns pos, cell and the metric.
        metric: "crmse" (lower is better) or another (higher is).
        targets: name -> value of other schedules on the same data, drawn as lines.
    """
    need(trials, "pos", "cell", metric)
    if not len(trials):
        raise ValueError("trials must hold at least one trial, got none")
    label = METRIC_LABELS.get(metric, metric)
    lower = metric in ("crmse", "rmse")
    ordered = trials.sort_values(metric, ascending=lower)
    figure, (left, right) = grid(("coefficients", "trials, best first"), horizontal_spacing=0.2)
    hover = [
        f"positions {pos:.2f}, lattice {cell:.2f}: {value:.3f}"
        for pos, cell, value in ordered[["pos", "cell", metric]].itertuples(index=False)
    ]
    shown = {"hovertext": hover, "hoverinfo": "text"}
    marker = {
        "size": 13,
        "color": ordered[metric],
        "colorscale": SCALE,
        "reversescale": lower,
        "colorbar": {"title": {"text": label.split(",")[0]}, "x": 0.41, "thickness": 12},
        "line": {"color": GREY, "width": 1},
    }
    dots = {"mode": "markers", "marker": marker, "name": "trials"}
    figure.add_scatter(x=ordered["pos"], y=ordered["cell"], **dots, **shown, **left)
    _circle(figure, ordered["pos"].iloc[0], ordered["cell"].iloc[0], **left)
    ranks = np.arange(1, len(ordered) + 1)
    line = {"mode": "lines+markers", "line": {"color": ORANGE}, "name": "handcrafted"}
    figure.add_scatter(x=ranks, y=ordered[metric], **line, **shown, **right)
    colors = cycle((RED, BLUE, *COLORS[2:]))
    for (name, value), color in zip((targets or {}).items(), colors, strict=False):
        line = {"mode": "lines", "line": {"color": color, "dash": "dash"}, "name": name}
        figure.add_scatter(x=[1, len(ordered)], y=[value, value], **line, **right)
    figure.update_xaxes(title="coefficient of positions", **left)
    figure.update_yaxes(title="coefficient of lattice", **left)
    figure.update_xaxes(title="rank of trial", **right)
    figure.update_yaxes(title=label, **right)
    return style(figure, 450, legend_below=True)


def _circle(figure: go.Figure, x: Any, y: Any, **place: Any) -> None:
    marker = {"symbol": "circle-open", "size": 18, "color": RED, "line": {"width": 3}}
    figure.add_scatter(x=[x], y=[y], mode="markers", marker=marker, name="best", **place)


@checked
def sweep_trials(
    trials: pd.DataFrame,
    value: str = "value",
    parameters: Sequence[str] | None = None,
    *,
    maximize: bool = True,
    label: str | None = None,
    logarithmic: Sequence[str] = (),
) -> go.Figure:
    """Draw any sweep: the value against each parameter, and the best so far.

    Args:
        trials: one row per trial, in order: a column per parameter, and the value; trials without
            a value (nan: failed or pruned) are counted in the title.
        value: its column.
        parameters: columns to show; None takes all others. Those that hold no numbers are drawn as
            categories.
        maximize: higher is better.
        label: of the value, with its unit; None: the column's name.
        logarithmic: parameters on a logarithmic axis.
    """
    need(trials, value, *(parameters or ()))
    if not len(trials):
        raise ValueError("trials must hold at least one trial, got none")
    names = [c for c in trials if c != value] if parameters is None else list(parameters)
    ok = trials[value].notna()
    done = trials[ok]
    values = done[value].to_numpy(dtype=float)
    best = (values.argmax() if maximize else values.argmin()) if len(values) else None
    numbers = np.flatnonzero(ok) + 1
    # A list: a column may be called "trial" too.
    panels = [("trial", numbers), *((name, _coordinates(done[name])) for name in names)]
    n_rows = -(-len(panels) // 3)
    spacing: dict[str, Any] = {"vertical_spacing": 0.3 / n_rows, "horizontal_spacing": 0.1}
    figure, places = grid([""] * len(panels), 3, **spacing)
    line = {"color": GREY, "width": 1}
    marker = {"size": 8, "color": numbers, "colorscale": SCALE, "line": line}
    for (name, x), place in zip(panels, places, strict=True):
        first = place is places[0]
        dots = {"mode": "markers", "marker": marker, "name": "trials", "showlegend": first}
        figure.add_scatter(x=x, y=values, **dots, **place)
        if best is not None:
            _circle(figure, x[best], values[best], showlegend=first, **place)
        figure.update_xaxes(title=name, **place)
        if name in logarithmic and not first:
            figure.update_xaxes(type="log", exponentformat="power", **place)
        if place["col"] == 1:
            figure.update_yaxes(title=value if label is None else label, **place)
    so_far = np.maximum.accumulate(values) if maximize else np.minimum.accumulate(values)
    line = {"mode": "lines", "line": {"color": ORANGE, "shape": "hv"}, "name": "best so far"}
    figure.add_scatter(x=numbers, y=so_far, **line, row=1, col=1)
    if not ok.all():
        missing = f"{(~ok).sum()} of {len(trials)} trials without a value"
        figure.update_layout(title={"text": missing})
    return style(figure, 140 + 260 * n_rows, legend_below=True)


def _coordinates(column: pd.Series) -> np.ndarray:
    """Numbers as they are, all else as text: its axis has categories."""
    return (column if pd.api.types.is_numeric_dtype(column) else column.astype(str)).to_numpy()
