"""Training: rewards and diagnostics."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from irlkit.lab.plots._panels import add, grid, lines_of
from irlkit.lab.plots.style import BLUE, GREEN, ORANGE, PURPLE, RED, line_with_band, need, style
from irlkit.utils.checks import checked


@checked
def training_curves(
    history: pd.DataFrame, label: str = "reward, 0.5 - cRMSE", group: str | None = None
) -> go.Figure:
    """Draw the reward during training: of rollouts, and on validation without noise (Figs. 3, 8).

    Args:
        history: columns iteration, seed, reward and validation_reward; seeds make a band.
        label: of the reward, with its unit.
        group: column, such as "policy", that a line is drawn for each value of.
    """
    columns = ("reward", "validation_reward")
    need(history, "iteration", "seed", *columns, *([] if group is None else [group]))
    titles = ("rollouts, with noise", "validation, without")
    figure, places = grid(titles, shared_yaxes=True)
    lines = [("mean of seeds", history, (BLUE, RED))]
    if group is not None:
        lines = [(n, rows, (color, color)) for n, rows, color in lines_of(history, group)]
    for name, rows, colors in lines:
        for place, column, color in zip(places, columns, colors, strict=True):
            first = place is places[0]
            add(figure, line_with_band(rows, "iteration", column, name, color, legend=first), place)
        for seed, of_seed in rows.groupby("seed"):
            best = of_seed.nlargest(1, "validation_reward").dropna(subset="validation_reward")
            figure.add_scatter(
                x=best["iteration"],
                y=best["validation_reward"],
                mode="markers",
                marker={"color": colors[1], "symbol": "star", "size": 12},
                name=f"best of seed {seed}" if group is None else f"{name}: best of seed {seed}",
                legendgroup=name,
                showlegend=False,
                **places[1],
            )
    figure.update_xaxes(title="iteration")
    figure.update_yaxes(title=label, **places[0])
    figure.update_layout(showlegend=group is not None)
    return style(figure, 380, legend_below=group is not None)


def _of_fields(term: str) -> dict[str, tuple[str, str]]:
    return {f"pos_{term}": ("positions", BLUE), f"cell_{term}": ("lattice", RED)}


_COLORS = {"rollout": GREEN, "reward": ORANGE, "update": PURPLE}
_SECONDS = {f"{stage}_seconds": (stage, color) for stage, color in _COLORS.items()}
_DIAGNOSTICS = {
    "spread of rewards in a group": ("reward units", {"group_std": ("", BLUE)}),
    "share of clipped ratios": ("share", {"clip_fraction": ("", BLUE)}),
    "mean ratio": ("new / old probability", _of_fields("ratio")),
    "KL to the reference": ("nats per event", _of_fields("kl")),
    "gradient norm": ("before it is limited", {"grad_norm": ("", BLUE)}),
    "time": ("seconds", _SECONDS),
}
"""Title -> label of the ordinate, and columns with their names and colours."""


@checked
def grpo_diagnostics(history: pd.DataFrame) -> go.Figure:
    """Draw what tells whether training is sound: spread, clipping, ratio, KL, gradient, time.

    Args:
        history: of ``GRPOTrainer``, optionally with a column seed; panels whose columns it lacks
            or has no number in are left out.

    Raises:
        ValueError: no column iteration, or none of the diagnostics.
    """
    need(history, "iteration")
    there = {column for column in history if history[column].notna().any()}
    panels = {title: entry for title, entry in _DIAGNOSTICS.items() if there & set(entry[1])}
    if not panels:
        known = sorted(column for _, columns in _DIAGNOSTICS.values() for column in columns)
        raise ValueError(f"history must have at least one of the columns {known} with numbers")
    figure, places = grid(list(panels), 3, vertical_spacing=0.2, horizontal_spacing=0.1)
    named = {""}
    for place, (label, columns) in zip(places, panels.values(), strict=True):
        for column in (column for column in columns if column in there):
            name, color = columns[column]
            new = name not in named
            traces = line_with_band(history, "iteration", column, name or "all", color, legend=new)
            add(figure, traces, place)
            named.add(name)
        figure.update_yaxes(title=label, rangemode="tozero", **place)
    n_rows = places[-1]["row"]
    figure.update_xaxes(title="iteration", row=n_rows)
    figure.update_layout(showlegend=True)
    return style(figure, 110 + 240 * n_rows, legend_below=True)
