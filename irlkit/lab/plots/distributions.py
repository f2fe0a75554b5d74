"""Distributions of rewards and energies, and what a group makes of its rewards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from irlkit.lab.plots._panels import SIGNS, colored, grid
from irlkit.lab.plots.style import BLUE, GREY, RED, need, style
from irlkit.utils.checks import _to_floats, check_count, checked


@checked
def distributions(
    values: Mapping[str, Sequence[float]],
    label: str,
    *,
    n_bins: int = 30,
    marks: Mapping[str, float] | None = None,
) -> go.Figure:
    """Draw distributions of numbers (rewards, energies), one colour each, on common bins.

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

    >>> distributions({"before": [0.1, 0.3], "after": [0.0, float("nan")]}, "reward").data[1].name
    'after (1 of 2 without value)'
    """
    check_count("n_bins", n_bins)
    arrays = {name: _to_floats(entry).ravel() for name, entry in values.items()}
    sets = list(colored("values: sets of numbers", arrays))
    together = np.concatenate(list(arrays.values()))
    together = together[np.isfinite(together)]
    low, high = (together.min(), together.max()) if len(together) else (0.0, 1.0)
    if low == high:
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, n_bins + 1)
    figure = go.Figure()
    for name, array, color in sets:
        finite = array[np.isfinite(array)]
        missing = len(array) - len(finite)
        share = np.histogram(finite, edges)[0] / max(1, len(finite))
        red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
        figure.add_scatter(
            x=np.repeat(edges, 2),
            y=np.concatenate([[0], np.repeat(share, 2), [0]]),
            mode="lines",
            line_color=color,
            fill="tozeroy",
            fillcolor=f"rgba({red},{green},{blue},0.15)",
            name=f"{name} ({missing} of {len(array)} without value)" if missing else name,
        )
        if len(finite):
            figure.add_vline(float(finite.mean()), line={"color": color, "dash": "dot"})
    for name, mark in (marks or {}).items():
        note = {"text": name, "yanchor": "top"}
        figure.add_vline(mark, line={"color": GREY, "dash": "dash"}, annotation=note)
    figure.update_xaxes(title=label)
    figure.update_yaxes(title="share of structures", rangemode="tozero")
    figure.update_layout(showlegend=True)
    return style(figure, 420, legend_below=True)


@checked
def group_advantages(
    rewards: Sequence[float], group_size: int, names: Sequence[str] = ()
) -> go.Figure:
    """Draw rewards of groups, and the advantages that they become (Eq. 9).

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
    values = torch.as_tensor(_to_floats(rewards))
    advantages = to_advantages(values, group_size).numpy().reshape(-1, group_size)
    groups = np.arange(len(advantages))
    if len(names) not in (0, len(groups)):
        raise ValueError(f"names must hold one per group: {len(groups)}, got {len(names)}")
    # Numbered, since two groups may have one composition.
    labels = [f"{i + 1}: {name}" for i, name in enumerate(names)]
    labels = labels or [f"group {i + 1}" for i in groups]
    figure, places = grid(("rewards", "advantages"), horizontal_spacing=0.12)
    spread = np.linspace(-0.25, 0.25, group_size)
    grouped = values.numpy().reshape(-1, group_size)
    marker = {"size": 8, "color": np.sign(advantages).ravel(), **SIGNS}
    dots = {"marker": marker, "name": "structures"}
    dash = {"symbol": "line-ew", "size": 40, "line": {"color": GREY, "width": 2}}
    line = {"marker": dash, "name": "mean of the group"}
    x = (groups[:, None] + spread).ravel()
    for place, data in zip(places, (grouped, advantages), strict=True):
        shown, first = {"mode": "markers", **place}, data is not advantages
        figure.add_scatter(x=x, y=data.ravel(), **dots, showlegend=False, **shown)
        figure.add_scatter(x=groups, y=data.mean(axis=1), **line, showlegend=first, **shown)
    figure.update_xaxes(tickvals=groups, ticktext=labels)
    figure.update_yaxes(title="reward", **places[0])
    figure.update_yaxes(title="advantage, standard deviations", **places[1])
    return style(figure, 420, legend_below=True)


@checked
def reward_against(table: pd.DataFrame, x: str, y: str, label_x: str, label_y: str) -> go.Figure:
    """Draw one number of each structure against another, coloured by validity if it is known.

    Args:
        table: columns `x`, `y`, optionally valid (bool, or nan where unknown) and formula.
        x, y: columns of the abscissa and the ordinate.
        label_x, label_y: of their axes, with the units.
    """
    need(table, x, y)
    valid = table["valid"] if "valid" in table else pd.Series(True, index=table.index)
    known = valid.notna().to_numpy()
    yes = np.array([bool(entry) for entry in valid.where(known, False)], dtype=bool)
    groups = {"valid": yes, "not valid": known & ~yes, "validity unknown": ~known}
    figure = go.Figure()
    for (name, keep), color in zip(groups.items(), (BLUE, RED, GREY), strict=True):
        if keep.any():
            figure.add_scatter(
                x=table[x][keep],
                y=table[y][keep],
                mode="markers",
                marker={"color": color, "size": 8, "opacity": 0.7},
                name=name,
                text=table["formula"][keep] if "formula" in table else None,
            )
    figure.update_xaxes(title=label_x)
    figure.update_yaxes(title=label_y)
    figure.update_layout(showlegend="valid" in table)
    return style(figure, 420, legend_below=True)
