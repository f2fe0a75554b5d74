"""Distributions of rewards and energies, and what a group makes of its rewards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from irlkit.lab.plots.style import BLUE, COLORS, GREY, RED, need, style
from irlkit.utils.checks import checked


@checked
def distributions(
    values: Mapping[str, Sequence[float]],
    label: str,
    *,
    n_bins: int = 30,
    marks: Mapping[str, float] | None = None,
) -> go.Figure:
    """Distributions of numbers (rewards, energies), one colour each, on common bins.

    Args:
        values: name -> numbers; those that are not finite are left out and counted in the legend.
        label: of the axis, with the unit: "energy, eV/atom".
        n_bins: bins over the range of all.
        marks: name -> number to mark with a line.

    Returns:
        Shares of structures per bin, and the mean of each set as a dotted line. A set without any
        finite number is in the legend alone.

    Raises:
        ValueError: nothing to show, or fewer than one bin.
    """
    if not values:
        raise ValueError("values must hold at least one set of numbers, got none")
    if n_bins < 1:
        raise ValueError(f"n_bins must be at least 1, got {n_bins!r}")
    arrays = {name: np.asarray(entry, dtype=float).ravel() for name, entry in values.items()}
    finite = {name: array[np.isfinite(array)] for name, array in arrays.items()}
    together = np.concatenate(list(finite.values()))
    low, high = (together.min(), together.max()) if len(together) else (0.0, 1.0)
    if low == high:
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, n_bins + 1)
    figure = go.Figure()
    for (name, array), color in zip(finite.items(), COLORS * len(finite), strict=False):
        missing = len(arrays[name]) - len(array)
        shown = name if not missing else f"{name} ({missing} of {len(arrays[name])} without value)"
        counts = np.histogram(array, edges)[0]
        share = counts / max(1, len(array))
        figure.add_scatter(
            x=np.repeat(edges, 2),
            y=np.concatenate([[0], np.repeat(share, 2), [0]]),
            mode="lines",
            line={"color": color, "width": 2},
            fill="tozeroy",
            fillcolor=_transparent(color),
            name=shown,
        )
        if len(array):
            figure.add_vline(float(array.mean()), line={"color": color, "dash": "dot"})
    for name, mark in (marks or {}).items():
        figure.add_vline(
            mark, line={"color": GREY, "dash": "dash"}, annotation={"text": name, "yanchor": "top"}
        )
    figure.update_xaxes(title=label)
    figure.update_yaxes(title="share of structures", rangemode="tozero")
    figure.update_layout(showlegend=True)
    return style(figure, 420, legend_below=True)


@checked
def group_advantages(
    rewards: Sequence[float], group_size: int, names: Sequence[str] = ()
) -> go.Figure:
    """Rewards of groups, and the advantages that they become (Eq. 9).

    Args:
        rewards: shape (n_groups * group_size,), groups adjacent.
        group_size: structures per group.
        names: of the groups, such as formulas.

    Returns:
        Left the rewards with the mean of each group, right the advantages: a group whose rewards
        are all equal has none, and nothing is learned from it.

    Raises:
        ValueError: see ``grpo.group_advantages``.
    """
    import torch

    from irlkit.rl.grpo import group_advantages as to_advantages

    if not len(rewards):
        raise ValueError("rewards must hold at least one group, got none")
    values = torch.as_tensor(np.asarray(rewards, dtype=float))
    advantages = to_advantages(values, group_size).numpy().reshape(-1, group_size)
    grouped = values.numpy().reshape(-1, group_size)
    n_groups = len(grouped)
    labels = list(names) or [f"group {i + 1}" for i in range(n_groups)]
    if len(labels) != n_groups:
        raise ValueError(f"names must hold one per group: {n_groups}, got {len(labels)}")
    # Numbered, since two groups may have one composition.
    labels = [f"{i + 1}: {label}" if names else label for i, label in enumerate(labels)]
    figure = make_subplots(1, 2, subplot_titles=("rewards", "advantages"), horizontal_spacing=0.12)
    spread = np.linspace(-0.25, 0.25, group_size)
    for column, data in enumerate((grouped, advantages), start=1):
        figure.add_scatter(
            x=(np.arange(n_groups)[:, None] + spread).ravel(),
            y=data.ravel(),
            mode="markers",
            marker={
                "size": 8,
                "color": np.sign(advantages).ravel(),
                "colorscale": [[0, RED], [0.5, GREY], [1, BLUE]],
                "cmin": -1,
                "cmax": 1,
            },
            name="structures",
            showlegend=False,
            row=1,
            col=column,
        )
        figure.add_scatter(
            x=np.arange(n_groups),
            y=data.mean(axis=1),
            mode="markers",
            marker={"symbol": "line-ew", "size": 40, "line": {"color": GREY, "width": 2}},
            name="mean of the group",
            showlegend=column == 1,
            row=1,
            col=column,
        )
    figure.update_xaxes(tickvals=np.arange(n_groups), ticktext=labels)
    figure.update_yaxes(title="reward", row=1, col=1)
    figure.update_yaxes(title="advantage, standard deviations", row=1, col=2)
    return style(figure, 420, legend_below=True)


@checked
def reward_against(table: pd.DataFrame, x: str, y: str, label_x: str, label_y: str) -> go.Figure:
    """One number of each structure against another, a point each, coloured by validity if known.

    Args:
        table: columns `x`, `y`, optionally valid (bool) and formula.
        x: column of the abscissa.
        y: column of the ordinate.
        label_x: of its axis, with the unit.
        label_y: likewise.

    Raises:
        ValueError: a column is missing.
    """
    need(table, x, y)
    valid = table["valid"].to_numpy(bool) if "valid" in table else np.ones(len(table), bool)
    figure = go.Figure()
    for name, keep, color in (("valid", valid, BLUE), ("not valid", ~valid, RED)):
        rows = table[keep]
        if len(rows):
            figure.add_scatter(
                x=rows[x],
                y=rows[y],
                mode="markers",
                marker={"color": color, "size": 8, "opacity": 0.7},
                name=name,
                text=rows["formula"] if "formula" in rows else None,
            )
    figure.update_xaxes(title=label_x)
    figure.update_yaxes(title=label_y)
    figure.update_layout(showlegend="valid" in table)
    return style(figure, 420, legend_below=True)


def _transparent(color: str, alpha: float = 0.15) -> str:
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"
