"""Noise and annealing schedules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from irlkit.flows.interpolants import T_MAX, T_MIN
from irlkit.lab.plots.style import (
    BLUE,
    COLORS,
    FIELD_LABELS,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    line_with_band,
    need,
    style,
)
from irlkit.utils.checks import check_count, checked


@checked
def schedule_name(schedule: str, tuned_at: float = np.nan) -> str:
    """What a schedule is called in figures; `tuned_at` is nan unless it was tuned by hand."""
    names = {"none": "no annealing", "learned": "learned annealing"}
    if schedule in names:
        return names[schedule]
    return "handcrafted" if np.isnan(tuned_at) else f"handcrafted, tuned at {tuned_at:.0f} steps"


@checked
def schedule_color(schedule: str, tuned_at: float = np.nan, few: int | None = None) -> str:
    """One colour per schedule in all figures; `few` tells two handcrafted ones apart."""
    if schedule == "handcrafted":
        return ORANGE if few is not None and tuned_at == few else BLUE
    colors = {"none": GREY, "learned": RED}
    if schedule not in colors:
        raise ValueError(f"schedule must be one of {[*colors, 'handcrafted']}, got {schedule!r}")
    return colors[schedule]


def by_schedule(table: pd.DataFrame, few: int | None) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Name, colour and rows of each schedule in a table, in the table's order."""
    keys = ["schedule", "tuned_at"]
    for schedule, tuned_at in table[keys].drop_duplicates().itertuples(index=False):
        same = table["tuned_at"].isna() if np.isnan(tuned_at) else table["tuned_at"] == tuned_at
        rows = table[(table["schedule"] == schedule) & same]
        yield schedule_name(schedule, tuned_at), schedule_color(schedule, tuned_at, few), rows


@checked
def annealing_schedules(curves: pd.DataFrame, few: int | None = None) -> go.Figure:
    """1 + s(t), what velocities are multiplied by, a panel per field (Fig. 5).

    Args:
        curves: columns schedule, tuned_at, seed, n_steps, field, t, factor; seeds make a band. A
            schedule on several grids has a line for each, in another colour.
        few: the small number of steps; a handcrafted schedule tuned for it has its own colour.

    Raises:
        ValueError: a column is missing.
    """
    need(curves, "schedule", "tuned_at", "seed", "n_steps", "field", "t", "factor")
    titles = [FIELD_LABELS[field] for field in ("pos", "cell")]
    figure = make_subplots(1, 2, subplot_titles=titles, horizontal_spacing=0.08)
    for column, field in enumerate(("pos", "cell"), start=1):
        for name, color, rows in by_schedule(curves[curves["field"] == field], few):
            grids = list(rows.groupby("n_steps", sort=False))
            # Handcrafted ones may lie on each other.
            dashes = ("dash" if color == ORANGE else None, "dot", "dash", "dashdot")
            for (n_steps, on_grid), shade, dash in zip(
                grids, (color, PURPLE, GREEN, SKY), dashes, strict=False
            ):
                label = name if len(grids) == 1 else f"{name}, {n_steps} steps"
                figure.add_traces(
                    line_with_band(
                        on_grid, "t", "factor", label, shade, legend=column == 1, dash=dash
                    ),
                    rows=1,
                    cols=column,
                )
        figure.add_hline(1.0, line={"color": GREY, "dash": "dot", "width": 1}, row=1, col=column)
        figure.add_hline(0.0, line={"color": GREY, "width": 1}, row=1, col=column)
    figure.update_xaxes(title="time t", range=[0, 1])
    figure.update_yaxes(title="1 + s(t)", row=1, col=1)
    return style(figure, 450, legend_below=True)


@checked
def noise_schedules(
    schedules: Mapping[str, Callable[[torch.Tensor], torch.Tensor]],
    label: str = "noise scale σ(t)",
    n_points: int = 200,
) -> go.Figure:
    """sigma(t) of noise schedules, a line each (Eqs. 7, 13).

    Args:
        schedules: name -> noise schedule.
        label: of the ordinate, with the unit of the field if there is one.
        n_points: times between 1e-3 and 1 - 1e-3.

    Raises:
        ValueError: no schedule.
    """
    if not schedules:
        raise ValueError("schedules must hold at least one schedule, got none")
    check_count("n_points", n_points, least=2)
    t = torch.linspace(T_MIN, T_MAX, n_points, dtype=torch.float64)
    figure = go.Figure()
    highest = 0.0
    for (name, schedule), color in zip(schedules.items(), COLORS * len(schedules), strict=False):
        with torch.no_grad():
            sigma = schedule(t).double().numpy()
        figure.add_scatter(
            x=t.numpy(), y=sigma, mode="lines", name=name, line={"color": color, "width": 2}
        )
        highest = max(highest, float(schedule(torch.tensor([0.1], dtype=torch.float64))))
    figure.update_xaxes(title="time t", range=[0, 1])
    # A square root diverges at t = 0: the axis shows what comes after the first tenth, and more.
    figure.update_yaxes(title=label, range=[0, 2 * highest])
    figure.update_layout(showlegend=True)
    return style(figure, 400, legend_below=True)


@checked
def schedule_and_structures(
    t: np.ndarray,
    curves: Mapping[str, np.ndarray],
    table: pd.DataFrame,
    stol: float = 0.5,
    label: str = "1 + s(t)",
) -> go.Figure:
    """A schedule beside what it makes of a few structures.

    The number of traces depends on nothing, so that a live figure can be updated in place.

    Args:
        t: times, shape (n_steps,).
        curves: field -> 1 + s(t), or another quantity, shape (n_steps,).
        table: columns formula and rmsd, a row per structure; nan means no match.
        stol: height of the bars of structures without a match.
        label: of the curves.

    Raises:
        ValueError: a column is missing.
    """
    need(table, "formula", "rmsd")
    figure = make_subplots(
        1,
        2,
        subplot_titles=("schedule", "displacement from the reference"),
        horizontal_spacing=0.12,
    )
    for (field, curve), color in zip(curves.items(), (BLUE, RED), strict=False):
        figure.add_scatter(
            x=t,
            y=curve,
            mode="lines+markers",
            line={"color": color},
            name=FIELD_LABELS[field],
            row=1,
            col=1,
        )
    names = [f"{i + 1}: {formula}" for i, formula in enumerate(table["formula"])]
    rmsd = table["rmsd"].to_numpy(dtype=float)
    found = np.isfinite(rmsd)
    heights = {"matched": np.where(found, rmsd, 0.0), "no match": np.where(found, 0.0, stol)}
    for (name, height), color in zip(heights.items(), (GREEN, GREY), strict=True):
        figure.add_bar(x=names, y=height, name=name, marker={"color": color}, row=1, col=2)
    # Room for what is at the ends, such as handles.
    figure.update_xaxes(title="time t", range=[-0.05, 1.05], row=1, col=1)
    figure.update_yaxes(title=label, rangemode="tozero", row=1, col=1)
    figure.update_yaxes(title="RMSD, in (V/N)<sup>1/3</sup>", range=[0, stol], row=1, col=2)
    figure.update_layout(barmode="stack", legend={"traceorder": "normal"})
    return style(figure, 420, legend_below=True)
