"""Metrics during reinforcement, policy by policy."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle

import pandas as pd
import plotly.graph_objects as go

from irlkit.lab.plots._panels import add_lines, grid, lines_of
from irlkit.lab.plots.style import GREY, METRIC_LABELS, need, style

_LABELS = {
    **METRIC_LABELS,
    "energy_above_reference": "energy above reference, eV/atom",
    "energy_above_lowest": "energy above the lowest polymorph, eV/atom",
    "judge_above_lowest": "the same by the judge, which was not rewarded",
    "relaxed_above_lowest": "the first structures, after relaxation",
    "invalid_rate": "share of invalid structures",
    "polymorph_crmse": "cRMSE from the closest polymorph, in (V/N)<sup>1/3</sup>",
}
_SHOWN = ("energy_above_lowest", "polymorph_match_rate", "polymorph_rmse", "invalid_rate")


def validation_curves(
    curves: pd.DataFrame, tests: pd.DataFrame, metrics: Sequence[str] = _SHOWN
) -> go.Figure:
    """Draw metrics on the validation split during training, a line per policy (Figs. 3, 6, 8).

    Args:
        curves: columns policy, seed, iteration and the metrics; seeds make a band.
        tests: columns policy and the metrics; drawn as dashed lines, those of a policy that is
            among the curves in its colour, others in grey, each with dashes of its own.
        metrics: a panel each, two in a row.
    """
    need(curves, "policy", "seed", "iteration", *metrics)
    need(tests, "policy", *metrics)
    lines = list(lines_of(curves, "policy"))
    colors = {name: color for name, _, color in lines}
    titles = [_LABELS.get(metric, metric) for metric in metrics]
    figure, places = grid(titles, 2, horizontal_spacing=0.1, vertical_spacing=0.14)
    ends = [curves["iteration"].min(), curves["iteration"].max()]
    others = [name for name in tests["policy"].unique() if name not in colors]
    dashes = dict(zip(others, cycle(("dot", "dashdot", "longdash", "longdashdot")), strict=False))
    add_lines(figure, places, metrics, "iteration", lines)
    for metric, place in zip(metrics, places, strict=True):
        first = place is places[0]
        for name, value in tests[["policy", metric]].itertuples(index=False):
            figure.add_scatter(
                x=ends,
                y=[value, value],
                mode="lines",
                line={
                    "color": colors.get(name, GREY),
                    "dash": dashes.get(name, "dash"),
                    "width": 1.5,
                },
                name=f"{name}, test split",
                legendgroup=f"{name}, test split",
                showlegend=first,
                **place,
            )
    rows_of_panels = places[-1]["row"]
    figure.update_xaxes(title="iteration", row=rows_of_panels)
    return style(figure, 130 + 280 * rows_of_panels, legend_below=True)
