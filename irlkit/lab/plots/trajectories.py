"""Structures on their way from noise to crystal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from irlkit.lab.plots._panels import add_player
from irlkit.lab.plots.geometry import cell_edges, element_colors
from irlkit.lab.plots.structures import edge_trace, fixed_axes
from irlkit.lab.plots.style import BLUE, COLORS, GREY, RED, style
from irlkit.utils.checks import as_numbers, check_count, checked

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from irlkit.crystals import CrystalBatch

States = Sequence["CrystalBatch"]


@checked
def trajectories(panels: Mapping[str, States], title: str = "") -> go.Figure:
    """Structures side by side, moving through their states with a slider and a play button.

    Args:
        panels: title -> states, each a batch of one structure; of one composition. A panel with
            fewer states than the others keeps its last one.
        title: of the figure.

    Returns:
        A figure that shows the last states; its frames hold all.

    Raises:
        ValueError: no panel, a panel without states, or a state of several structures.
    """
    return _trajectories(panels, title, [GREY] * len(panels))


@checked
def group_trajectories(
    states: States, advantages: ArrayLike, max_members: int = 5, title: str = ""
) -> go.Figure:
    """Members of a group on their way, cells coloured by advantage: blue above, red below 0.

    Args:
        states: each a batch with the whole group.
        advantages: of the members, shape (group_size,).
        max_members: how many are shown: the best, the worst and those between them.
        title: of the figure.

    Raises:
        ValueError: no states, or another number of advantages than of structures.
    """
    values = as_numbers("advantages", advantages)
    check_count("max_members", max_members)
    if not len(states) or any(len(state) != len(values) for state in states):
        raise ValueError(
            f"states must hold one structure per advantage: got {len(values)} advantages and "
            f"states of {sorted({len(state) for state in states})} structures"
        )
    order = np.argsort(-values, kind="stable")
    shown = order[np.unique(np.linspace(0, len(order) - 1, max_members).round().astype(int))]
    panels = {f"{i}: A = {values[i]:+.2f}": [state[int(i)] for state in states] for i in shown}
    colors = [BLUE if values[i] > 0 else RED if values[i] < 0 else GREY for i in shown]
    return _trajectories(panels, title, colors)


@checked
def trajectory_and_curves(
    states: States,
    curves: Mapping[str, Any],
    label: str,
    *,
    times: ArrayLike | None = None,
    reference: CrystalBatch | None = None,
    title: str = "",
) -> go.Figure:
    """A structure on its way, beside numbers that change with it; a mark moves along.

    Args:
        states: n states, each a batch of one structure.
        curves: name -> n values, such as the reward of each state; nan leaves a gap.
        label: of their axis, with the unit.
        times: of the states; None counts them.
        reference: shown beside the last state, if given.
        title: of the figure.

    Raises:
        ValueError: no state, a state of several structures, or a curve of another length.
    """
    if not len(states):
        raise ValueError("states must hold at least one state, got none")
    _check({"states": states})
    for name, values in curves.items():
        as_numbers(f"curves[{name!r}], a value for each of states,", values, len(states))
    x = np.arange(len(states)) if times is None else as_numbers("times", times, len(states))
    if reference is not None and len(reference) != 1:
        raise ValueError(f"reference must be a batch of one structure, got {len(reference)}")
    panels = {"generated": states, **({} if reference is None else {"reference": [reference]})}
    titles = [*panels, label]
    figure = make_subplots(
        1,
        len(titles),
        specs=[[*[{"type": "scene"}] * len(panels), {"type": "xy"}]],
        subplot_titles=titles,
        horizontal_spacing=0.06,
    )
    elements = sorted({int(z) for z in states[0].species})
    _place(figure, panels, elements, [GREY] * len(panels), len(titles))
    column = len(titles)
    for (name, values), color in zip(curves.items(), COLORS, strict=False):
        line = {"color": color, "width": 2}
        mode = "lines+markers" if len(x) <= 25 else "lines"
        figure.add_scatter(x=x, y=values, name=name, mode=mode, line=line, row=1, col=column)
    marks = [
        {"x": x, "y": np.asarray(values, dtype=float), "color": color}
        for values, color in zip(curves.values(), COLORS, strict=False)
    ]
    first = len(figure.data)
    figure.add_traces(
        [_mark(mark, len(x) - 1) for mark in marks],
        rows=[1] * len(marks),
        cols=[column] * len(marks),
    )
    figure.update_xaxes(title="step" if times is None else "time t")
    if len(states) > 1:
        structures = list(panels.values())
        frames = []
        for i in range(len(states)):
            data = _frame(structures, elements, i, [GREY] * len(panels))
            for trace, placed in zip(data, figure.data, strict=False):
                trace.scene = placed.scene
            moved = [_mark(mark, i) for mark in marks]
            numbers = [*range(len(data)), *range(first, first + len(marks))]
            frames.append(go.Frame(data=data + moved, name=str(i), traces=numbers))
        figure.frames = frames
        labels = [str(i) for i in range(len(states))] if times is None else [f"{t:.2f}" for t in x]
        add_player(figure, labels, "step " if times is None else "t = ")
        # Below the title of the axis.
        figure.update_layout(
            sliders=[{"pad": {"t": 50}}], updatemenus=[{"pad": {"t": 30}}], margin={"b": 100}
        )
    figure.update_layout(title={"text": title}, legend={"itemsizing": "constant"})
    return style(figure, 470)


def _mark(curve: Mapping[str, Any], i: int) -> go.Scatter:
    return go.Scatter(
        x=curve["x"][i : i + 1],
        y=curve["y"][i : i + 1],
        mode="markers",
        marker={"color": curve["color"], "size": 14, "line": {"color": "white", "width": 2}},
        showlegend=False,
        name="now",
    )


def _check(panels: Mapping[str, States]) -> None:
    if not panels or not all(len(states) for states in panels.values()):
        raise ValueError("panels must hold at least one panel, each with at least one state")
    for name, states in panels.items():
        if any(len(state) != 1 for state in states):
            raise ValueError(f"panels: the states of {name!r} must hold one structure each")


def _trajectories(panels: Mapping[str, States], title: str, colors: Sequence[str]) -> go.Figure:
    _check(panels)
    figure = make_subplots(
        1,
        len(panels),
        specs=[[{"type": "scene"}] * len(panels)],
        subplot_titles=list(panels),
        horizontal_spacing=0.02,
    )
    elements = sorted({int(z) for states in panels.values() for z in states[0].species})
    _place(figure, panels, elements, colors, len(panels))
    n_frames = max(len(states) for states in panels.values())
    if n_frames > 1:
        structures = list(panels.values())
        frames = []
        for i in range(n_frames):
            data = _frame(structures, elements, i, colors)
            for trace, placed in zip(data, figure.data, strict=True):
                trace.scene = placed.scene
            frames.append(go.Frame(data=data, name=str(i), traces=list(range(len(data)))))
        figure.frames = frames
        add_player(figure, [str(i) for i in range(n_frames)], "step ")
    figure.update_layout(title={"text": title}, legend={"itemsizing": "constant"})
    return style(figure, 480)


def _place(
    figure: go.Figure,
    panels: Mapping[str, States],
    elements: Sequence[int],
    colors: Sequence[str],
    n_columns: int,
) -> None:
    """Add the last state of each panel, all at one scale; the figure has so many columns."""
    boxes = [_box(states) for states in panels.values()]
    size = np.max([high - low for low, high in boxes], axis=0)
    last = [states[-1:] for states in panels.values()]
    # Browsers scale a scene by its height; narrower panels take smaller structures.
    fill = {1: 2.6, 2: 2.3, 3: 1.9}.get(n_columns, 1.6)
    for column, (states, (low, high), color) in enumerate(
        zip(last, boxes, colors, strict=True), start=1
    ):
        traces = _frame([states], elements, 0, [color], legend=column == 1)
        figure.add_traces(traces, rows=[1] * len(traces), cols=[column] * len(traces))
        figure.update_scenes(**fixed_axes((low + high) / 2, size, fill), row=1, col=column)


def _frame(
    structures: Sequence[States],
    elements: Sequence[int],
    i: int,
    colors: Sequence[str],
    legend: bool = False,
) -> list[Any]:
    """Traces of all panels at one state."""
    data: list[Any] = []
    for column, (states, color) in enumerate(zip(structures, colors, strict=True)):
        data += _structure_traces(
            states[min(i, len(states) - 1)], elements, color, legend and column == 0
        )
    return data


def _structure_traces(
    structure: CrystalBatch, elements: Sequence[int], cell_color: str, legend: bool
) -> list[go.Scatter3d]:
    """Cell edges, and one trace per element with the atoms in the cell."""
    from ase.data import chemical_symbols, covalent_radii

    cell = structure.cell[0].detach().cpu().double().numpy()
    pos = structure.pos.detach().cpu().double().numpy() % 1.0
    species = structure.species.cpu().numpy()
    width = 3 if cell_color == GREY else 6
    traces = [edge_trace(cell_edges(cell), cell_color, width)]
    colors = element_colors(elements)
    for z in elements:
        atoms = (pos[species == z] @ cell).round(4)
        symbol = chemical_symbols[z]
        traces.append(
            go.Scatter3d(
                x=atoms[:, 0],
                y=atoms[:, 1],
                z=atoms[:, 2],
                mode="markers",
                marker={
                    "size": 8 + 10 * float(covalent_radii[z]),
                    "color": colors[z],
                    "line": {"color": "#444444", "width": 1},
                },
                name=symbol,
                legendgroup=symbol,
                showlegend=legend,
                hovertemplate=f"{symbol} (%{{x:.2f}}, %{{y:.2f}}, %{{z:.2f}}) Å<extra></extra>",
            )
        )
    return traces


def _box(states: States) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest coordinates of the cells of all states, with a margin, in Å."""
    corners = np.concatenate([cell_edges(s.cell[0].cpu().double().numpy()) for s in states])
    corners = corners[np.isfinite(corners).all(axis=1)]
    if not len(corners):
        corners = np.zeros((1, 3))
    return corners.min(axis=0) - 0.5, corners.max(axis=0) + 0.5
