"""Noise and annealing schedules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from irlkit.crystals import CrystalBatch
from irlkit.flows.interpolants import T_MAX, T_MIN
from irlkit.lab.plots._panels import add, colored, grid
from irlkit.lab.plots.style import (
    BLUE,
    FIELD_LABELS,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    YELLOW,
    line_with_band,
    need,
    style,
)
from irlkit.lab.plots.trajectories import _add_crystal
from irlkit.utils.checks import check_count, checked


def schedules_of(
    table: pd.DataFrame, few: int | None = None
) -> Iterator[tuple[str, pd.DataFrame, str]]:
    """Return name, rows and colour of each schedule in a table, in the table's order.

    Args:
        table: columns schedule ("none", "learned", "handcrafted" or "rule") and tuned_at (the
            number of steps that one of the latter two was tuned for, or nan).
        few: those tuned for so many steps have a colour of their own.

    >>> table = pd.DataFrame({"schedule": ["handcrafted"], "tuned_at": [500.0]})
    >>> next(schedules_of(table))[0]
    'handcrafted, tuned at 500 steps'
    """
    looks = {"none": ("no annealing", GREY), "learned": ("learned annealing", RED)}
    tuned = {"handcrafted": (ORANGE, BLUE), "rule": (GREEN, SKY)}
    groups: Any = table.groupby(["schedule", "tuned_at"], sort=False, dropna=False)
    for (schedule, tuned_at), rows in groups:
        if schedule in tuned:
            name = schedule if np.isnan(tuned_at) else f"{schedule}, tuned at {tuned_at:.0f} steps"
            yield name, rows, tuned[schedule][0 if few is not None and tuned_at == few else 1]
        elif schedule in looks:
            yield looks[schedule][0], rows, looks[schedule][1]
        else:
            known = [*looks, *tuned]
            raise ValueError(f"column schedule must hold some of {known}, got {schedule!r}")


@checked
def annealing_schedules(curves: pd.DataFrame, few: int | None = None) -> go.Figure:
    """Draw 1 + s(t), what velocities are multiplied by, a panel per field (Fig. 5).

    Args:
        curves: columns schedule, tuned_at, seed, n_steps, field, t, factor; seeds make a band. A
            schedule on several grids has a line for each, in another colour.
        few: the small number of steps; a handcrafted schedule tuned for it has its own colour.
    """
    need(curves, "schedule", "tuned_at", "seed", "n_steps", "field", "t", "factor")
    figure, places = grid(list(FIELD_LABELS.values()), horizontal_spacing=0.08)
    for field, place in zip(FIELD_LABELS, places, strict=True):
        for name, rows, color in schedules_of(curves[curves["field"] == field], few):
            grids = list(rows.groupby("n_steps", sort=False))
            shades = cycle((color, PURPLE, YELLOW, GREY))
            # Handcrafted ones may lie on each other.
            first_dash = "dash" if color == ORANGE else None
            dashes = cycle((first_dash, "dot", "dash", "dashdot", "longdash"))
            for (n_steps, on_grid), shade, dash in zip(grids, shades, dashes, strict=False):
                label = name if len(grids) == 1 else f"{name}, {n_steps} steps"
                first = place is places[0]
                traces = line_with_band(
                    on_grid, "t", "factor", label, shade, legend=first, dash=dash
                )
                add(figure, traces, place)
    figure.add_hline(1.0, line={"color": GREY, "dash": "dot", "width": 1})
    figure.add_hline(0.0, line={"color": GREY, "width": 1})
    figure.update_xaxes(title="time t", range=[0, 1])
    figure.update_yaxes(title="1 + s(t)", **places[0])
    return style(figure, 450, legend_below=True)


@checked
def noise_schedules(
    schedules: Mapping[str, Callable[[torch.Tensor], torch.Tensor]],
    label: str = "noise scale σ(t)",
    n_points: int = 200,
) -> go.Figure:
    """Draw sigma(t) of noise schedules, a line each (Eqs. 7, 13).

    Args:
        schedules: name -> noise schedule, of times of shape (n_points,) to as many scales.
        label: of the ordinate, with the unit of the field if there is one.
        n_points: times between 1e-3 and 1 - 1e-3.

    >>> noise_schedules({"constant": torch.ones_like}).layout.yaxis.range
    (0, 2.0)
    """
    check_count("n_points", n_points, least=2)
    t = torch.linspace(T_MIN, T_MAX, n_points, dtype=torch.float64)
    figure = go.Figure()
    highest = 0.0
    for name, schedule, color in colored("schedules", schedules):
        with torch.no_grad():
            sigma = schedule(t).double().numpy()
            early = float(schedule(torch.tensor([0.1], dtype=torch.float64)))
        highest = max(highest, early, float(sigma[t.numpy() >= 0.1].max()))
        figure.add_scatter(x=t.numpy(), y=sigma, mode="lines", name=name, line_color=color)
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
    *,
    crystal: CrystalBatch | None = None,
    number: int = 0,
) -> go.Figure:
    """Draw a schedule beside what it makes of a few structures.

    The number of traces depends on the elements of the crystal alone, so that a live figure can be
    updated in place.

    Args:
        t: times, shape (n_steps,).
        curves: field -> 1 + s(t), or another quantity, shape (n_steps,).
        table: columns formula and rmsd, a row per structure; nan means no match.
        stol: height of the bars of structures without a match.
        label: of the curves.
        crystal: one structure, to be drawn between them; None: none.
        number: its row in the table, which the title says.

    Raises:
        ValueError: a column is missing, or `crystal` is not one structure.
    """
    need(table, "formula", "rmsd")
    titles = ["schedule", "displacement from the reference"]
    if crystal is None:
        figure, (left, right) = grid(titles, horizontal_spacing=0.12)
    else:
        if len(crystal) != 1:
            raise ValueError(f"crystal must be a batch of one structure, got {len(crystal)}")
        titles.insert(1, f"{number + 1}: {crystal.reduced_formulas()[0]}")
        kinds = [[{"type": "xy"}, {"type": "scene"}, {"type": "xy"}]]
        figure = make_subplots(1, 3, specs=kinds, subplot_titles=titles, horizontal_spacing=0.09)
        left, middle, right = ({"row": 1, "col": i} for i in (1, 2, 3))
    for (field, curve), color in zip(curves.items(), (BLUE, RED), strict=False):
        look = {"mode": "lines+markers", "line_color": color, "name": FIELD_LABELS[field]}
        figure.add_scatter(x=t, y=curve, **look, **left)
    names = [f"{i + 1}: {formula}" for i, formula in enumerate(table["formula"])]
    rmsd = table["rmsd"].to_numpy(dtype=float)
    found = np.isfinite(rmsd)
    heights = {"matched": np.where(found, rmsd, 0.0), "no match": np.where(found, 0.0, stol)}
    for (name, height), color in zip(heights.items(), (GREEN, GREY), strict=True):
        figure.add_bar(x=names, y=height, name=name, marker_color=color, **right)
    if crystal is not None:
        _add_crystal(figure, crystal, middle, 3)
    # Room for what is at the ends, such as handles.
    figure.update_xaxes(title="time t", range=[-0.05, 1.05], **left)
    figure.update_yaxes(title=label, rangemode="tozero", **left)
    figure.update_yaxes(title="RMSD, in (V/N)<sup>1/3</sup>", range=[0, stol], **right)
    figure.update_layout(barmode="stack", legend={"traceorder": "normal"})
    return style(figure, 420, legend_below=True)
