"""Flows in the plane, for teaching: samples, velocity fields, paths and interpolants."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from irlkit.flows.interpolants import T_MAX, T_MIN, Interpolant
from irlkit.lab.plots.style import BLUE, COLORS, GREY, RED, need, style
from irlkit.lab.plots.trajectories import add_player
from irlkit.utils.checks import as_numbers, check_count, checked

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


@checked
def interpolant_coefficients(
    interpolants: Mapping[str, Interpolant], n_points: int = 200
) -> go.Figure:
    """alpha(t), beta(t) and gamma(t) of interpolants (Eq. 1), a panel each.

    Args:
        interpolants: name -> interpolant; one without latent noise has gamma = 0.
        n_points: times between 1e-3 and 1 - 1e-3.

    Raises:
        ValueError: no interpolant.
    """
    if not interpolants:
        raise ValueError("interpolants must hold at least one interpolant, got none")
    check_count("n_points", n_points, least=2)
    t = torch.linspace(T_MIN, T_MAX, n_points, dtype=torch.float64)
    figure = make_subplots(
        1, len(interpolants), subplot_titles=list(interpolants), shared_yaxes=True
    )
    for column, entry in enumerate(interpolants.values(), start=1):
        alpha, beta = entry.path(t)
        gamma = torch.zeros_like(t) if entry.gamma is None else entry.gamma(t)
        curves = {
            "alpha, weight of x<sub>0</sub>": alpha,
            "beta, weight of x<sub>1</sub>": beta,
            "gamma, latent noise": gamma,
        }
        for (name, curve), color in zip(curves.items(), COLORS, strict=False):
            figure.add_scatter(
                x=t.numpy(),
                y=curve.numpy(),
                mode="lines",
                line={"color": color, "width": 2},
                name=name,
                legendgroup=name,
                showlegend=column == 1,
                row=1,
                col=column,
            )
    figure.update_xaxes(title="time t", range=[0, 1])
    figure.update_yaxes(title="coefficient", row=1, col=1)
    return style(figure, 400, legend_below=True)


@checked
def densities(sets: Mapping[str, ArrayLike]) -> go.Figure:
    """Samples in the plane side by side.

    Args:
        sets: name -> points, shape (n, 2).

    Raises:
        ValueError: no set, or points of another shape.
    """
    if not sets:
        raise ValueError("sets must hold at least one set of points, got none")
    arrays = {name: _points(f"sets[{name!r}]", points) for name, points in sets.items()}
    figure = make_subplots(1, len(arrays), subplot_titles=list(arrays), shared_yaxes=True)
    for column, (points, color) in enumerate(
        zip(arrays.values(), COLORS * len(arrays), strict=False), start=1
    ):
        figure.add_scatter(
            x=points[:, 0].round(3),
            y=points[:, 1].round(3),
            mode="markers",
            marker={"color": color, "size": 4, "opacity": 0.6},
            showlegend=False,
            row=1,
            col=column,
        )
    _square(figure, list(arrays.values()), len(arrays))
    return style(figure, 380)


@checked
def flow(
    panels: Mapping[str, ArrayLike], times: ArrayLike, target: ArrayLike | None = None
) -> go.Figure:
    """Points in the plane moving from noise to data, with the paths of some of them.

    Args:
        panels: title -> positions, shape (n_steps + 1, n, 2).
        times: of the states, shape (n_steps + 1,).
        target: data to compare with, shape (m, 2).

    Returns:
        A figure that shows the last states; its frames hold all, or some 25 of many.

    Raises:
        ValueError: no panel, or one of another shape.
    """
    times = as_numbers("times", times)
    arrays = {name: np.asarray(states, dtype=float) for name, states in panels.items()}
    if not arrays:
        raise ValueError("panels must hold at least one panel, got none")
    for name, states in arrays.items():
        if states.ndim != 3 or states.shape[2] != 2 or len(states) != len(times):
            raise ValueError(
                f"panels: {name!r} must have shape ({len(times)}, n, 2), as there are times, "
                f"got {states.shape}"
            )
    figure = make_subplots(1, len(arrays), subplot_titles=list(arrays), shared_yaxes=True)
    moving = []
    for column, (states, color) in enumerate(
        zip(arrays.values(), (BLUE, RED, *COLORS[2:]), strict=False), start=1
    ):
        place = {"row": 1, "col": column}
        if target is not None:
            points = _points("target", target)
            figure.add_scatter(
                x=points[:, 0].round(3),
                y=points[:, 1].round(3),
                mode="markers",
                marker={"color": GREY, "size": 3, "opacity": 0.5},
                name="data",
                showlegend=column == 1,
                **place,
            )
        for i in range(min(12, states.shape[1])):
            figure.add_scatter(
                x=states[:, i, 0].round(3),
                y=states[:, i, 1].round(3),
                mode="lines",
                line={"color": color, "width": 1},
                opacity=0.6,
                showlegend=False,
                hoverinfo="skip",
                name="path",
                **place,
            )
        moving.append(len(figure.data))
        figure.add_scatter(**_dots(states[-1], color), showlegend=False, **place)
    shown = np.unique(np.linspace(0, len(times) - 1, min(len(times), 26)).round().astype(int))
    if len(times) > 1:
        figure.frames = [
            go.Frame(
                data=[
                    go.Scatter(**_dots(states[i], color))
                    for states, color in zip(
                        arrays.values(), (BLUE, RED, *COLORS[2:]), strict=False
                    )
                ],
                name=str(i),
                traces=moving,
            )
            for i in shown
        ]
        labels = [f"{float(times[i]):.2f}" for i in shown]
        add_player(figure, labels, "t = ", [str(i) for i in shown])
    _square(figure, [states.reshape(-1, 2) for states in arrays.values()], len(arrays))
    figure.update_layout(legend={"itemsizing": "constant"})
    return style(figure, 520)


@checked
def velocity_field(
    fields: Mapping[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]],
    times: Sequence[float],
    data: ArrayLike | None = None,
    extent: float = 3.0,
    n: int = 14,
) -> go.Figure:
    """Arrows of velocity fields in the plane; a row per field, a column per time.

    The arrows of one time have a common scale; those of different times do not compare.

    Args:
        fields: name -> b(t, x) with x of shape (n, 2).
        times: a column each.
        data: points to draw behind them, shape (m, 2).
        extent: the plane is shown from -extent to extent.
        n: arrows per axis.

    Raises:
        ValueError: no field or no time.
    """
    if not fields or not len(times):
        raise ValueError("fields and times must hold at least one entry each")
    check_count("n", n)
    times = [float(t) for t in times]
    axis = torch.linspace(-extent, extent, n, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).reshape(-1, 2)
    values = {}
    with torch.no_grad():
        for name, field in fields.items():
            for t in times:
                at = torch.tensor(t, dtype=torch.float64)
                values[name, t] = field(at, grid).double().numpy()
    longest = {
        t: max(float(np.linalg.norm(values[name, t], axis=1).max()) for name in fields) or 1.0
        for t in times
    }
    titles = [f"{name}, t = {t:g}" for name in fields for t in times]
    figure = make_subplots(
        len(fields),
        len(times),
        subplot_titles=titles,
        shared_xaxes=True,
        shared_yaxes=True,
        horizontal_spacing=0.03,
        vertical_spacing=0.12,
    )
    for (name, t), velocity in values.items():
        place = {"row": list(fields).index(name) + 1, "col": list(times).index(t) + 1}
        if data is not None:
            points = _points("data", data)
            figure.add_scatter(
                x=points[:, 0],
                y=points[:, 1],
                mode="markers",
                hoverinfo="skip",
                marker={"color": GREY, "size": 3, "opacity": 0.5},
                showlegend=False,
                **place,
            )
        x, y = _arrows(grid.numpy(), velocity * (1.6 * extent / n / longest[t] * 2))
        figure.add_scatter(
            x=x.round(3),
            y=y.round(3),
            mode="lines",
            line={"color": BLUE, "width": 1.5},
            name=f"{name}, t = {t:g}",
            showlegend=False,
            hoverinfo="skip",
            **place,
        )
    limits = [np.array([[-extent, -extent], [extent, extent]])]
    _square(figure, limits, len(times), len(fields))
    return style(figure, 60 + 320 * len(fields))


@checked
def loss_curve(history: pd.DataFrame, floor: float | None = None, smooth: int = 25) -> go.Figure:
    """Loss against iteration, each and averaged over some.

    Args:
        history: columns iteration and loss.
        floor: the smallest loss that any network can reach, drawn as a line.
        smooth: iterations to average over.

    Raises:
        ValueError: a column is missing.
    """
    need(history, "iteration", "loss")
    check_count("smooth", smooth)
    mean = history["loss"].rolling(smooth, min_periods=1).mean()
    figure = go.Figure()
    x = history["iteration"]
    faint = {"color": BLUE, "width": 1}
    figure.add_scatter(
        x=x, y=history["loss"], mode="lines", line=faint, opacity=0.5, name="each iteration"
    )
    figure.add_scatter(x=x, y=mean, mode="lines", line={"color": BLUE, "width": 2}, name="averaged")
    if floor is not None:
        figure.add_hline(
            floor,
            line={"color": RED, "dash": "dash"},
            annotation={"text": "loss of the exact velocity", "yanchor": "bottom"},
        )
        # Above the axis: an axis fits curves, not lines across it.
        figure.update_yaxes(autorangeoptions={"include": floor - 0.1 * abs(floor)})
    figure.update_xaxes(title="iteration")
    figure.update_yaxes(title="loss, mean squared error")
    return style(figure, 360, legend_below=True)


def _points(name: str, points: ArrayLike) -> np.ndarray:
    array = np.asarray(points, dtype=float)
    if array.ndim != 2 or array.shape[1] != 2:
        raise ValueError(f"{name} must have shape (n, 2), got {array.shape}")
    return array


def _dots(points: np.ndarray, color: str) -> dict:
    return {
        "x": points[:, 0].astype(np.float32),
        "y": points[:, 1].astype(np.float32),
        "mode": "markers",
        "marker": {"color": color, "size": 5, "opacity": 0.8},
        "name": "samples",
    }


def _arrows(start: np.ndarray, step: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Arrows as one line with gaps: shaft and two barbs."""
    end = start + step
    turned = np.stack([-step[:, 1], step[:, 0]], 1)
    left, right = end - 0.3 * step + 0.18 * turned, end - 0.3 * step - 0.18 * turned
    gap = np.full_like(start, np.nan)
    line = np.stack([start, end, left, end, right, gap], 1).reshape(-1, 2)
    return line[:, 0], line[:, 1]


def _square(figure: go.Figure, points: Sequence[np.ndarray], columns: int, rows: int = 1) -> None:
    """One range and equal scales for all panels."""
    together = np.concatenate(points)
    together = together[np.isfinite(together).all(axis=1)]
    reach = float(np.abs(together).max()) * 1.05 if len(together) else 1.0
    for row in range(1, rows + 1):
        for column in range(1, columns + 1):
            number = (row - 1) * columns + column
            name = "x" if number == 1 else f"x{number}"
            place = {"row": row, "col": column}
            figure.update_xaxes(range=[-reach, reach], constrain="domain", **place)
            figure.update_yaxes(
                range=[-reach, reach], scaleanchor=name, constrain="domain", **place
            )
