"""Training: rewards, diagnostics, one step of GRPO."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from irlkit.lab.plots.style import (
    BLUE,
    COLORS,
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
    """Reward during training: of the rollouts, and on validation without noise (Figs. 3, 8).

    Args:
        history: columns iteration, seed, reward and validation_reward; seeds make a band.
        label: of the reward, with its unit.
        group: column, such as "policy", that a line is drawn for each value of.

    Raises:
        ValueError: a column is missing.
    """
    need(
        history,
        "iteration",
        "seed",
        "reward",
        "validation_reward",
        *([] if group is None else [group]),
    )
    figure = make_subplots(
        1, 2, subplot_titles=("rollouts, with noise", "validation, without"), shared_yaxes=True
    )
    if group is None:
        lines = [("mean of seeds", history, (BLUE, RED))]
    else:
        groups = list(history.groupby(group, sort=False))
        shades = [COLORS[i % len(COLORS)] for i in range(len(groups))]
        lines = [
            (str(name), rows, (color, color))
            for (name, rows), color in zip(groups, shades, strict=True)
        ]
    for name, rows, colors in lines:
        for column, (metric, color) in enumerate(
            zip(("reward", "validation_reward"), colors, strict=True), start=1
        ):
            traces = line_with_band(rows, "iteration", metric, name, color, legend=column == 1)
            figure.add_traces(traces, rows=1, cols=column)
        for seed, of_seed in rows.groupby("seed"):
            best = of_seed.dropna(subset=["validation_reward"])
            best = best.loc[best["validation_reward"] == best["validation_reward"].max()].head(1)
            figure.add_scatter(
                x=best["iteration"],
                y=best["validation_reward"],
                mode="markers",
                marker={"color": colors[1], "symbol": "star", "size": 12},
                name=f"best of seed {seed}" if group is None else f"{name}: best of seed {seed}",
                legendgroup=name,
                showlegend=False,
                row=1,
                col=2,
            )
    figure.update_xaxes(title="iteration")
    figure.update_yaxes(title=label, row=1, col=1)
    figure.update_layout(showlegend=group is not None)
    return style(figure, 380, legend_below=group is not None)


_DIAGNOSTICS = (
    ("spread of rewards in a group", "reward units", ("group_std",)),
    ("share of clipped ratios", "share", ("clip_fraction",)),
    ("mean ratio", "new / old probability", ("pos_ratio", "cell_ratio")),
    ("KL to the reference", "nats per event", ("pos_kl", "cell_kl")),
    ("gradient norm", "before it is limited", ("grad_norm",)),
    ("time", "seconds", ("rollout_seconds", "reward_seconds", "update_seconds")),
)
_COLUMN_NAMES = {"pos": "positions", "cell": "lattice"}


@checked
def grpo_diagnostics(history: pd.DataFrame) -> go.Figure:
    """What tells whether training is sound: spread in groups, clipping, ratio, KL, gradient, time.

    Args:
        history: of ``GRPOTrainer``, optionally with a column seed; panels whose columns it lacks
            or has no number in are left out.

    Raises:
        ValueError: no column iteration, or none of the diagnostics.
    """
    need(history, "iteration")
    panels: list[tuple[str, str, list[str]]] = []
    for title, label, columns in _DIAGNOSTICS:
        there = [c for c in columns if c in history and history[c].notna().any()]
        if there:
            panels.append((title, label, there))
    if not panels:
        known = sorted({column for _, _, columns in _DIAGNOSTICS for column in columns})
        raise ValueError(f"history must have at least one of the columns {known} with numbers")
    n_columns = min(3, len(panels))
    n_rows = -(-len(panels) // n_columns)
    figure = make_subplots(
        n_rows,
        n_columns,
        subplot_titles=[title for title, _, _ in panels],
        vertical_spacing=0.2,
        horizontal_spacing=0.1,
    )
    known_names: set[str] = set()
    for i, (_, label, shown) in enumerate(panels):
        place = {"row": i // n_columns + 1, "col": i % n_columns + 1}
        for column in shown:
            name = column.split("_")[0] if len(shown) > 1 else ""
            name = _COLUMN_NAMES.get(name, name)
            color = {"positions": BLUE, "lattice": RED, "": BLUE}.get(
                name, {"rollout": GREEN, "reward": ORANGE, "update": PURPLE}.get(name, BLUE)
            )
            traces = line_with_band(
                history,
                "iteration",
                column,
                name or "all",
                color,
                legend=bool(name) and name not in known_names,
            )
            known_names.add(name)
            n = len(traces)
            figure.add_traces(traces, rows=[place["row"]] * n, cols=[place["col"]] * n)
        figure.update_yaxes(title=label, rangemode="tozero", **place)
    figure.update_xaxes(title="iteration", row=n_rows)
    figure.update_layout(showlegend=True)
    return style(figure, 110 + 240 * n_rows, legend_below=True)


@checked
def grpo_step(step: GRPOStep) -> go.Figure:
    """One update of GRPO from left to right: rewards, advantages, clipped terms, and the step.

    Args:
        step: of ``irlkit.lab.grpo_step.explain``.

    Returns:
        Four panels. In the third, each event is a point: its ratio against what it adds to the
        objective (Eq. 10), beside the lines on which unclipped terms of the best and the worst
        structure would lie. The fourth has 1 + s(t) before and after.
    """
    titles = ("1 rewards", "2 advantages", "3 clipped terms", "4 the step")
    figure = make_subplots(1, 4, subplot_titles=titles, horizontal_spacing=0.075)
    advantages = step.advantages
    color = np.where(advantages > 0, BLUE, np.where(advantages < 0, RED, GREY))
    names = [str(i) for i in range(len(advantages))]
    for column, values in enumerate((step.rewards, advantages), start=1):
        figure.add_bar(
            x=names,
            y=values,
            marker={"color": color},
            name=titles[column - 1][2:],
            row=1,
            col=column,
        )
    figure.add_hline(float(step.rewards.mean()), line={"color": GREY, "dash": "dot"}, row=1, col=1)
    for field, symbol in (("pos", "circle"), ("cell", "diamond")):
        if field not in step.ratios:
            continue
        ratio, term = step.ratios[field], step.terms[field]
        events = np.broadcast_to(advantages, ratio.shape)
        figure.add_scatter(
            x=ratio.ravel(),
            y=term.ravel(),
            mode="markers",
            marker={
                "symbol": symbol,
                "size": 6,
                "opacity": 0.6,
                "color": np.sign(events).ravel(),
                "colorscale": [[0, RED], [0.5, GREY], [1, BLUE]],
                "cmin": -1,
                "cmax": 1,
            },
            name=f"terms, {FIELD_LABELS[field]}",
            row=1,
            col=3,
        )
    for side in (1 - step.clip_eps, 1 + step.clip_eps):
        figure.add_vline(side, line={"color": GREY, "dash": "dot"}, row=1, col=3)
    for field, shade in (("pos", BLUE), ("cell", RED)):
        if field in step.before:
            for name, curve, dash in (
                ("before", step.before[field], "dot"),
                ("after", step.after[field], "solid"),
            ):
                figure.add_scatter(
                    x=step.times,
                    y=curve,
                    mode="lines",
                    line={"color": shade, "dash": dash},
                    name=f"{FIELD_LABELS[field]}, {name}",
                    row=1,
                    col=4,
                )
    figure.update_xaxes(title="structure", row=1, col=1)
    figure.update_xaxes(title="structure", row=1, col=2)
    figure.update_xaxes(title="ratio, new / old", row=1, col=3)
    figure.update_xaxes(title="time t", row=1, col=4)
    figure.update_yaxes(title="reward", row=1, col=1)
    figure.update_yaxes(title="standard deviations", row=1, col=2)
    figure.update_yaxes(title="term of the objective", row=1, col=3)
    figure.update_yaxes(title="1 + s(t)", row=1, col=4)
    figure.update_layout(showlegend=False)
    return style(figure, 400)
