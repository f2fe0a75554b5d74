"""Flows in the plane, for teaching: samples, velocity fields, paths and interpolants."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch

from irlkit.flows.interpolants import T_MAX, T_MIN, Interpolant
from irlkit.lab.plots._panels import add_player, colored, grid
from irlkit.lab.plots.style import BLUE, COLORS, GREY, RED, need, style
from irlkit.utils.checks import _to_floats, as_numbers, check_count, checked

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


@checked
def interpolant_coefficients(
    interpolants: Mapping[str, Interpolant], n_points: int = 200
) -> go.Figure:
    """Draw alpha(t), beta(t) and gamma(t) of interpolants (Eq. 1), a panel each.

    Args:
        interpolants: name -> interpolant; one without latent noise has gamma = 0.
        n_points: times between 1e-3 and 1 - 1e-3.

    >>> interpolant_coefficients({"linear": Interpolant()}).data[0].name
    'alpha, weight of x<sub>0</sub>'
    """
    if not interpolants:
        raise ValueError("interpolants must hold at least one entry, got none")
    check_count("n_points", n_points, least=2)
    t = torch.linspace(T_MIN, T_MAX, n_points, dtype=torch.float64)
    figure, places = grid(list(interpolants), shared_yaxes=True)
    for place, entry in zip(places, interpolants.values(), strict=True):
        alpha, beta = entry.path(t)
        curves = {
            "alpha, weight of x<sub>0</sub>": alpha,
            "beta, weight of x<sub>1</sub>": beta,
            "gamma, latent noise": torch.zeros_like(t) if entry.gamma is None else entry.gamma(t),
        }
        for name, curve, color in colored("curves", curves):
            look = {"mode": "lines", "line_color": color, "showlegend": place is places[0]}
            named = {"name": name, "legendgroup": name}
            figure.add_scatter(x=t.numpy(), y=curve.numpy(), **look, **named, **place)
    figure.update_xaxes(title="time t", range=[0, 1])
    figure.update_yaxes(title="coefficient", **places[0])
    return style(figure, 400, legend_below=True)


@checked
def densities(sets: Mapping[str, ArrayLike]) -> go.Figure:
    """Draw samples in the plane side by side.

    Args:
        sets: name -> points, shape (n, 2).

    Raises:
        ValueError: no set, or points of another shape.
    """
    arrays = {name: _points(f"sets[{name!r}]", points) for name, points in sets.items()}
    entries = list(colored("sets of points", arrays))
    figure, places = grid(list(arrays), shared_yaxes=True)
    for place, (_, points, color) in zip(places, entries, strict=True):
        marker = {"color": color, "size": 4, "opacity": 0.6}
        figure.add_scatter(**_at(points), mode="markers", marker=marker, showlegend=False, **place)
    _square(figure, np.concatenate(list(arrays.values())))
    return style(figure, 380)


@checked
def flow(
    panels: Mapping[str, ArrayLike], times: ArrayLike, target: ArrayLike | None = None
) -> go.Figure:
    """Draw points in the plane moving from noise to data, with the paths of some of them.

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
    arrays = {name: _to_floats(states) for name, states in panels.items()}
    for name, states in arrays.items():
        if states.ndim != 3 or states.shape[2] != 2 or len(states) != len(times):
            raise ValueError(
                f"panels: {name!r} must have shape ({len(times)}, n, 2), as there are times, "
                f"got {states.shape}"
            )
    entries = list(colored("panels: positions", arrays, (BLUE, RED, *COLORS[2:])))
    figure, places = grid(list(arrays), shared_yaxes=True)
    wanted = np.empty((0, 2)) if target is None else _points("target", target)
    data = None if target is None else _faint(wanted)
    moving = []
    for place, (_, states, color) in zip(places, entries, strict=True):
        if data is not None:
            figure.add_scatter(**data, name="data", showlegend=place is places[0], **place)
        for i in range(min(12, states.shape[1])):
            line = {"mode": "lines", "line": {"color": color, "width": 1}, "opacity": 0.6}
            hidden = {"name": "path", "showlegend": False, "hoverinfo": "skip"}
            figure.add_scatter(**_at(states[:, i]), **line, **hidden, **place)
        moving.append(len(figure.data))
        figure.add_scatter(**_dots(states[-1], color), showlegend=False, **place)
    if len(times) > 1:
        shown = np.unique(np.linspace(0, len(times) - 1, min(len(times), 26)).round().astype(int))
        names = [str(i) for i in shown]
        figure.frames = [
            go.Frame(
                data=[go.Scatter(**_dots(states[i], color)) for _, states, color in entries],
                name=str(i),
                traces=moving,
            )
            for i in shown
        ]
        add_player(figure, [f"{times[i]:.2f}" for i in shown], "t = ", names)
    _square(figure, np.concatenate([wanted, *(s.reshape(-1, 2) for s in arrays.values())]))
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
    """Draw arrows of velocity fields in the plane; a row per field, a column per time.

    The arrows of one time have a common scale; those of different times do not compare.

    Args:
        fields: name -> b(t, x) with x of shape (n, 2).
        times: a column each.
        data: points to draw behind them, shape (m, 2).
        extent: the plane is shown from -extent to extent.
        n: arrows per axis.
    """
    if not fields or not len(times):
        raise ValueError("fields and times must hold at least one entry each")
    check_count("n", n)
    axis = torch.linspace(-extent, extent, n, dtype=torch.float64)
    points = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).reshape(-1, 2)
    at = [torch.tensor(float(t), dtype=torch.float64) for t in times]
    with torch.no_grad():
        values = [[field(t, points).double().numpy() for t in at] for field in fields.values()]
    velocities = np.array(values)  # (fields, times, n * n, 2)
    longest = np.linalg.norm(velocities, axis=-1).max(axis=(0, 2))
    titles = [f"{name}, t = {t:g}" for name in fields for t in at]
    shared: dict[str, Any] = {"shared_xaxes": True, "shared_yaxes": True}
    figure, places = grid(titles, len(at), horizontal_spacing=0.03, vertical_spacing=0.12, **shared)
    behind = None if data is None else _faint(_points("data", data))
    for i, (title, place) in enumerate(zip(titles, places, strict=True)):
        hidden = {"showlegend": False, "hoverinfo": "skip"}
        if behind is not None:
            figure.add_scatter(**behind, **hidden, **place)
        row, column = divmod(i, len(at))
        scale = 3.2 * extent / n / (longest[column] or 1.0)
        arrows = _arrows(points.numpy(), velocities[row, column] * scale)
        line = {"color": BLUE, "width": 1.5}
        figure.add_scatter(**_at(arrows), mode="lines", line=line, name=title, **hidden, **place)
    _square(figure, np.array([[extent, extent]]))
    return style(figure, 60 + 320 * len(fields))


@checked
def loss_curve(history: pd.DataFrame, floor: float | None = None, smooth: int = 25) -> go.Figure:
    """Draw the loss against the iteration, each and averaged over some.

    Args:
        history: columns iteration and loss.
        floor: the smallest loss that any network can reach, drawn as a line.
        smooth: iterations to average over.
    """
    need(history, "iteration", "loss")
    check_count("smooth", smooth)
    mean = history["loss"].rolling(smooth, min_periods=1).mean()
    figure = go.Figure()
    x, lines = history["iteration"], {"mode": "lines", "line_color": BLUE}
    faint = {"line_width": 1, "opacity": 0.5}
    figure.add_scatter(x=x, y=history["loss"], name="each iteration", **lines, **faint)
    figure.add_scatter(x=x, y=mean, name="averaged", **lines)
    if floor is not None:
        note = {"text": "loss of the exact velocity", "yanchor": "bottom"}
        figure.add_hline(floor, line={"color": RED, "dash": "dash"}, annotation=note)
        # Above the axis: an axis fits curves, not lines across it.
        figure.update_yaxes(autorangeoptions={"include": floor - 0.1 * abs(floor)})
    figure.update_xaxes(title="iteration")
    figure.update_yaxes(title="loss, mean squared error")
    return style(figure, 360, legend_below=True)


def _points(name: str, points: ArrayLike) -> np.ndarray:
    array = _to_floats(points)
    if array.ndim != 2 or array.shape[1] != 2:
        raise ValueError(f"{name} must have shape (n, 2), got {array.shape}")
    return array


def _at(points: np.ndarray) -> dict[str, np.ndarray]:
    return {"x": points[:, 0].round(3), "y": points[:, 1].round(3)}


def _faint(points: np.ndarray) -> dict[str, Any]:
    """Points to compare with, behind others."""
    marker = {"color": GREY, "size": 3, "opacity": 0.5}
    return {**_at(points), "mode": "markers", "marker": marker}


def _dots(points: np.ndarray, color: str) -> dict[str, Any]:
    look = {"mode": "markers", "marker": {"color": color, "size": 5, "opacity": 0.8}}
    return {**_at(points.astype(np.float32)), **look, "name": "samples"}


def _arrows(start: np.ndarray, step: np.ndarray) -> np.ndarray:
    """Return arrows as one line with gaps, shape (6 n, 2): shaft and two barbs."""
    end = start + step
    turned = np.stack([-step[:, 1], step[:, 0]], 1)
    left, right = end - 0.3 * step + 0.18 * turned, end - 0.3 * step - 0.18 * turned
    gap = np.full_like(start, np.nan)
    return np.stack([start, end, left, end, right, gap], 1).reshape(-1, 2)


def _square(figure: go.Figure, points: np.ndarray) -> None:
    """Give all panels one range, which holds the points, and equal scales."""
    finite = points[np.isfinite(points).all(axis=1)]
    reach = float(np.abs(finite).max(initial=0.0)) * 1.05 or 1.0
    figure.update_xaxes(range=[-reach, reach], constrain="domain")
    figure.update_yaxes(range=[-reach, reach], constrain="domain")
    figure.for_each_yaxis(lambda axis: axis.update(scaleanchor=axis.anchor))
