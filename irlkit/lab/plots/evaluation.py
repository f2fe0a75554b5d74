"""Metrics of evaluations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from irlkit.lab.plots._panels import add_lines, grid, lines_of
from irlkit.lab.plots.schedules import schedules_of
from irlkit.lab.plots.style import GREY, METRIC_LABELS, need, style
from irlkit.utils.checks import checked


@checked
def metrics_vs_steps(
    evaluation: pd.DataFrame, metrics: Sequence[str] = ("metre", "crmse"), mark: int | None = None
) -> go.Figure:
    """Draw metrics against the number of integration steps, a line per schedule (Fig. 4).

    Args:
        evaluation: columns schedule, n_steps, seed, the metrics, and optionally tuned_at; seeds
            make a band.
        metrics: a panel each.
        mark: draw a line at this number of steps; handcrafted schedules tuned there have another
            colour than the rest.
    """
    need(evaluation, "schedule", "n_steps", *metrics)
    if "tuned_at" not in evaluation:
        evaluation = evaluation.assign(tuned_at=np.nan)
    figure = _panels("n_steps", metrics, schedules_of(evaluation, mark), {})
    ticks = sorted(evaluation["n_steps"].unique())
    figure.update_xaxes(type="log", tickvals=ticks, title="number of integration steps")
    for column, metric in enumerate(metrics, start=1):
        values = evaluation[metric].to_numpy(dtype=float)
        values = values[np.isfinite(values)]
        if metric not in ("crmse", "rmse") and ((values >= 0) & (values <= 1)).all():
            figure.update_yaxes(range=[0, 1], row=1, col=column)
    if mark is not None:
        figure.add_vline(mark, line={"color": GREY, "dash": "dot", "width": 1})
    return style(figure, 450, legend_below=True)


@checked
def metrics_vs_noise(
    evaluation: pd.DataFrame,
    metrics: Sequence[str] = ("match_rate", "rmse"),
    *,
    noise: str = "noise",
    group: str = "schedule",
    labels: Mapping[str, str] | None = None,
) -> go.Figure:
    """Draw metrics against the scale of the noise, a line per schedule (Fig. 2).

    Args:
        evaluation: columns `noise`, `group`, optionally seed, and the metrics; rows with equal
            noise and group make a band, nan noise and nan metrics are left out.
        metrics: a panel each.
        noise: column of the noise scale; zero is drawn at the left end of a logarithmic axis.
        group: column that a line is drawn for each value of.
        labels: metric -> title of its panel, with the unit, where the common ones do not do.
    """
    need(evaluation, noise, group, *metrics)
    scales = np.sort(evaluation[noise].dropna().unique())
    positive = scales[scales > 0]
    logarithmic = len(positive) > 1 and positive[-1] / positive[0] > 20
    zero = positive[0] / 3 if logarithmic else 0.0
    shifted = evaluation.assign(**{noise: evaluation[noise].mask(evaluation[noise] <= 0, zero)})
    figure = _panels(noise, metrics, lines_of(shifted, group), labels or {})
    figure.update_xaxes(title="noise scale")
    if logarithmic:
        text = [f"{value:g}" for value in scales]
        figure.update_xaxes(type="log", tickvals=np.maximum(scales, zero), ticktext=text)
    return style(figure, 450, legend_below=True)


def _panels(
    x: str,
    metrics: Sequence[str],
    lines: Iterable[tuple[str, pd.DataFrame, str]],
    labels: Mapping[str, str],
) -> go.Figure:
    """Draw a panel per metric, with a line per name, rows and colour."""
    if not len(metrics):
        raise ValueError("metrics must name at least one column, got none")
    titles = [labels.get(metric, METRIC_LABELS.get(metric, metric)) for metric in metrics]
    figure, places = grid(titles, horizontal_spacing=0.1)
    add_lines(figure, places, metrics, x, lines)
    return figure
