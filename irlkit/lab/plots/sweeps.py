"""Trials of sweeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from irlkit.lab.plots.style import (
    BLUE,
    GREEN,
    GREY,
    METRIC_LABELS,
    ORANGE,
    PURPLE,
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
    """Trials of a handcrafted sweep: where they lie, and how good they are in order (Appendix H).

    Args:
        trials: columns pos, cell and the metric.
        metric: "crmse" (lower is better) or another (higher is).
        targets: name -> value of other schedules on the same data, drawn as lines.

    Raises:
        ValueError: a column is missing, or there is no trial.
    """
    need(trials, "pos", "cell", metric)
    if not len(trials):
        raise ValueError("trials must hold at least one trial, got none")
    label = METRIC_LABELS.get(metric, metric)
    ordered = trials.sort_values(metric, ascending=metric in ("crmse", "rmse"))
    figure = make_subplots(
        1, 2, subplot_titles=("coefficients", "trials, best first"), horizontal_spacing=0.2
    )
    marker = {
        "size": 13,
        "color": ordered[metric],
        "colorscale": SCALE,
        "reversescale": metric in ("crmse", "rmse"),
        "colorbar": {"title": {"text": label.split(",")[0]}, "x": 0.41, "thickness": 12},
        "line": {"color": GREY, "width": 1},
    }
    hover = [
        f"positions {pos:.2f}, lattice {cell:.2f}: {value:.3f}"
        for pos, cell, value in ordered[["pos", "cell", metric]].itertuples(index=False)
    ]
    figure.add_scatter(
        x=ordered["pos"],
        y=ordered["cell"],
        mode="markers",
        marker=marker,
        hovertext=hover,
        hoverinfo="text",
        name="trials",
        row=1,
        col=1,
    )
    figure.add_scatter(
        x=ordered["pos"].head(1),
        y=ordered["cell"].head(1),
        mode="markers",
        marker={"symbol": "circle-open", "size": 20, "color": RED, "line": {"width": 3}},
        name="best",
        row=1,
        col=1,
    )
    figure.add_scatter(
        x=np.arange(1, len(ordered) + 1),
        y=ordered[metric],
        mode="lines+markers",
        line={"color": ORANGE},
        hovertext=hover,
        hoverinfo="text",
        name="handcrafted",
        row=1,
        col=2,
    )
    for (name, value), color in zip(
        (targets or {}).items(), (RED, BLUE, GREEN, PURPLE), strict=False
    ):
        figure.add_scatter(
            x=[1, len(ordered)],
            y=[value, value],
            mode="lines",
            line={"color": color, "dash": "dash"},
            name=name,
            row=1,
            col=2,
        )
    figure.update_xaxes(title="coefficient of positions", row=1, col=1)
    figure.update_yaxes(title="coefficient of lattice", row=1, col=1)
    figure.update_xaxes(title="rank of trial", row=1, col=2)
    figure.update_yaxes(title=label, row=1, col=2)
    return style(figure, 450, legend_below=True)


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
    """Any sweep: the value against each parameter, and the best so far.

    Args:
        trials: one row per trial, in order: a column per parameter, and the value; trials without
            a value (nan: failed or pruned) are counted in the title.
        value: its column.
        parameters: columns to show; None takes all others. Those that hold no numbers are drawn as
            categories.
        maximize: higher is better.
        label: of the value, with its unit; None: the column's name.
        logarithmic: parameters on a logarithmic axis.

    Raises:
        ValueError: a column is missing, or there is no trial.
    """
    need(trials, value, *(parameters or ()))
    if not len(trials):
        raise ValueError("trials must hold at least one trial, got none")
    names = [c for c in trials if c != value] if parameters is None else list(parameters)
    ok = trials[value].notna()
    done = trials[ok].reset_index(drop=True)
    label = value if label is None else label
    panels = ["history", *names]
    n_columns = min(3, len(panels))
    n_rows = -(-len(panels) // n_columns)
    figure = make_subplots(n_rows, n_columns, vertical_spacing=0.3 / n_rows, horizontal_spacing=0.1)
    order = np.flatnonzero(ok.to_numpy())
    values = done[value].to_numpy(dtype=float)
    best_so_far = np.maximum.accumulate(values) if maximize else np.minimum.accumulate(values)
    best = int(values.argmax() if maximize else values.argmin()) if len(values) else None
    marker = {
        "size": 8,
        "color": order,
        "colorscale": SCALE,
        "line": {"color": GREY, "width": 1},
    }
    for i, name in enumerate(panels):
        place = {"row": i // n_columns + 1, "col": i % n_columns + 1}
        x = order + 1 if name == "history" else done[name]
        if name != "history" and not pd.api.types.is_numeric_dtype(done[name]):
            x = done[name].astype(str)
        figure.add_scatter(
            x=x, y=values, mode="markers", marker=marker, name="trials", showlegend=i == 0, **place
        )
        if name == "history":
            figure.add_scatter(
                x=x,
                y=best_so_far,
                mode="lines",
                line={"color": ORANGE, "shape": "hv"},
                name="best so far",
                **place,
            )
        if best is not None:
            figure.add_scatter(
                x=np.asarray(x)[best : best + 1],
                y=values[best : best + 1],
                mode="markers",
                marker={"symbol": "circle-open", "size": 16, "color": RED, "line": {"width": 3}},
                name="best",
                showlegend=i == 0,
                **place,
            )
        title = "trial" if name == "history" else name
        figure.update_xaxes(title=title, **place)
        if name in logarithmic:
            figure.update_xaxes(type="log", exponentformat="power", **place)
        if i % n_columns == 0:
            figure.update_yaxes(title=label, **place)
    missing = int((~ok).sum())
    if missing:
        figure.update_layout(title={"text": f"{missing} of {len(trials)} trials without a value"})
    return style(figure, 140 + 260 * n_rows, legend_below=True)
