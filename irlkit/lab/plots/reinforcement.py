"""Metrics during reinforcement, policy by policy."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from irlkit.lab.plots.style import COLORS, GREY, METRIC_LABELS, line_with_band, need, style

_LABELS = {
    **METRIC_LABELS,
    "energy_above_reference": "energy above reference, eV/atom",
    "energy_above_lowest": "energy above the lowest polymorph, eV/atom",
    "invalid_rate": "share of invalid structures",
}


def validation_curves(
    curves: pd.DataFrame,
    tests: pd.DataFrame,
    metrics: Sequence[str] = (
        "energy_above_lowest",
        "polymorph_match_rate",
        "polymorph_rmse",
        "invalid_rate",
    ),
) -> go.Figure:
    """Metrics on the validation split during training, a line per policy (Figs. 3, 6).

    Args:
        curves: columns policy, seed, iteration and the metrics; seeds make a band.
        tests: columns policy and the metrics; drawn as dashed lines, those of a policy that is
            among the curves in its colour, others in grey.
        metrics: a panel each, two in a row.

    Raises:
        ValueError: a column is missing, or there is no curve.
    """
    need(curves, "policy", "seed", "iteration", *metrics)
    need(tests, "policy", *metrics)
    if not len(curves):
        raise ValueError("curves must hold at least one row, got none")
    n_columns = min(2, len(metrics))
    titles = [_LABELS.get(metric, metric) for metric in metrics]
    figure = make_subplots(
        -(-len(metrics) // n_columns),
        n_columns,
        subplot_titles=titles,
        horizontal_spacing=0.1,
        vertical_spacing=0.14,
    )
    names = list(curves["policy"].drop_duplicates())
    colors = {name: COLORS[i % len(COLORS)] for i, name in enumerate(names)}
    ends = [curves["iteration"].min(), curves["iteration"].max()]
    for i, metric in enumerate(metrics):
        place = {"row": i // n_columns + 1, "col": i % n_columns + 1}
        for name in names:
            rows = curves[curves["policy"] == name]
            traces = line_with_band(rows, "iteration", metric, name, colors[name], legend=i == 0)
            n = len(traces)
            figure.add_traces(traces, rows=[place["row"]] * n, cols=[place["col"]] * n)
        for name, value in tests[["policy", metric]].itertuples(index=False):
            figure.add_scatter(
                x=ends,
                y=[value, value],
                mode="lines",
                line={"color": colors.get(name, GREY), "dash": "dash", "width": 1.5},
                name=f"{name}, test split",
                legendgroup=f"{name}, test split",
                showlegend=i == 0,
                **place,
            )
    figure.update_xaxes(title="iteration", row=-(-len(metrics) // n_columns))
    return style(figure, 130 + 280 * -(-len(metrics) // n_columns), legend_below=True)
