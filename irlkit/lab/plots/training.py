"""Training: rewards, diagnostics, one step of GRPO."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from irlkit.lab.plots._panels import SIGNS, add, colored, grid
from irlkit.lab.plots.style import (
    BLUE,
    FIELD_LABELS,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    line_with_band,
    need,
    style,
)
from irlkit.utils.checks import checked

if TYPE_CHECKING:
    from irlkit.lab.grpo_step import GRPOStep


@checked
def training_curves(
    history: pd.DataFrame, label: str = "reward, 0.5 - cRMSE", group: str | None = None
) -> go.Figure:
    """Draw the reward during training: of rollouts, and on validation without noise (Figs. 3, 8).

    Args:
        history: columns iteration, seed, reward and validation_reward; seeds make a band.
        label: of the reward, with its unit.
        group: column, such as "policy", that a line is drawn for each value of.

    Raises:
        ValueError: a column is missing.
    """
    columns = ("reward", "validation_reward")
    need(history, "iteration", "seed", *columns, *([] if group is None else [group]))
    titles = ("rollouts, with noise", "validation, without")
    figure, places = grid(titles, shared_yaxes=True)
    lines = [("mean of seeds", history, (BLUE, RED))]
    if group is not None:
        groups = {str(name): rows for name, rows in history.groupby(group, sort=False)}
        lines = [(n, rows, (color, color)) for n, rows, color in colored("history", groups)]
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


_DIAGNOSTICS = {
    "spread of rewards in a group": ("reward units", {"group_std": ("", BLUE)}),
    "share of clipped ratios": ("share", {"clip_fraction": ("", BLUE)}),
    "mean ratio": (
        "new / old probability",
        {"pos_ratio": ("positions", BLUE), "cell_ratio": ("lattice", RED)},
    ),
    "KL to the reference": (
        "nats per event",
        {"pos_kl": ("positions", BLUE), "cell_kl": ("lattice", RED)},
    ),
    "gradient norm": ("before it is limited", {"grad_norm": ("", BLUE)}),
    "time": (
        "seconds",
        {
            "rollout_seconds": ("rollout", GREEN),
            "reward_seconds": ("reward", ORANGE),
            "update_seconds": ("update", PURPLE),
        },
    ),
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


@checked
def grpo_step(step: GRPOStep) -> go.Figure:
    """Draw one update of GRPO from left to right: rewards, advantages, clipped terms, the step.

    Args:
        step: of ``irlkit.lab.grpo_step.explain``.

    Returns:
        Four panels. In the third, each event is a point: its ratio against what it adds to the
        objective (Eq. 10), beside the lines on which unclipped terms of the best and the worst
        structure would lie. The fourth has 1 + s(t) before and after.
    """
    titles = ("1 rewards", "2 advantages", "3 clipped terms", "4 the step")
    figure, places = grid(titles, horizontal_spacing=0.075)
    sign = np.sign(step.advantages)
    names = [str(i) for i in range(len(sign))]
    marker = {"color": np.array([GREY, BLUE, RED])[sign.astype(int)]}
    for name, values, place in zip(
        ("rewards", "advantages"), (step.rewards, step.advantages), places, strict=False
    ):
        figure.add_bar(x=names, y=values, marker=marker, name=name, **place)
    dotted = {"color": GREY, "dash": "dot"}
    figure.add_hline(float(step.rewards.mean()), line=dotted, **places[0])
    for field, symbol, shade in (("pos", "circle", BLUE), ("cell", "diamond", RED)):
        if field not in step.ratios:
            continue
        ratio = step.ratios[field]
        events = np.broadcast_to(sign, ratio.shape).ravel()
        figure.add_scatter(
            x=ratio.ravel(),
            y=step.terms[field].ravel(),
            mode="markers",
            marker={"symbol": symbol, "size": 6, "opacity": 0.6, "color": events, **SIGNS},
            name=f"terms, {FIELD_LABELS[field]}",
            **places[2],
        )
        for when, curve, dash in (
            ("before", step.before[field], "dot"),
            ("after", step.after[field], "solid"),
        ):
            look = {"mode": "lines", "line": {"color": shade, "dash": dash}}
            name = f"{FIELD_LABELS[field]}, {when}"
            figure.add_scatter(x=step.times, y=curve, name=name, **look, **places[3])
    for side in (1 - step.clip_eps, 1 + step.clip_eps):
        figure.add_vline(side, line=dotted, **places[2])
    x_titles = ("structure", "structure", "ratio, new / old", "time t")
    y_titles = ("reward", "standard deviations", "term of the objective", "1 + s(t)")
    for place, x, y in zip(places, x_titles, y_titles, strict=True):
        figure.update_xaxes(title=x, **place)
        figure.update_yaxes(title=y, **place)
    figure.update_layout(showlegend=False)
    return style(figure, 400)
