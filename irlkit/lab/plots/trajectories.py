"""Structures on their way from noise to crystal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from irlkit.lab.plots import _geometry as geo
from irlkit.lab.plots import _scenes as scenes
from irlkit.lab.plots._panels import add, add_player, colored
from irlkit.lab.plots.style import BLUE, GREY, RED, style
from irlkit.utils.checks import as_numbers, check_count, checked

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from irlkit.crystals import CrystalBatch

States = Sequence["CrystalBatch"]


@checked
def trajectories(
    panels: Mapping[str, States], title: str = "", colors: geo.ElementColors = "vesta"
) -> go.Figure:
    """Draw structures side by side, moving through their states with a slider and a play button.

    Args:
        panels: title -> states, each a batch of one structure. A panel with fewer states than the
            others keeps its last one. Elements may change on the way.
        title: of the figure.
        colors: of elements, as of ``structures``.

    Returns:
        A figure that shows the last states; its frames hold all. Bonds are as in ``structures``,
        between atoms in the cell alone.

    Raises:
        ValueError: no panel, a panel without states, or a state of several structures.
    """
    return _trajectories(panels, title, [GREY] * len(panels), colors)


@checked
def group_trajectories(
    states: States,
    advantages: ArrayLike,
    max_members: int = 5,
    title: str = "",
    colors: geo.ElementColors = "vesta",
) -> go.Figure:
    """Draw members of a group on their way, cells coloured by advantage: blue above, red below 0.

    Args:
        states: each a batch with the whole group.
        advantages: of the members, shape (group_size,).
        max_members: how many are shown: the best, the worst and those between them.
        title: of the figure.
        colors: of elements, as of ``structures``.

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
    cells = [BLUE if values[i] > 0 else RED if values[i] < 0 else GREY for i in shown]
    return _trajectories(panels, title, cells, colors)


def _trajectories(
    panels: Mapping[str, States], title: str, cells: Sequence[str], colors: geo.ElementColors
) -> go.Figure:
    figure, draw = _scenes(panels, list(panels), cells, colors)
    n_frames = max(len(states) for states in panels.values())
    if n_frames > 1:
        figure.frames = [go.Frame(data=draw(i), name=str(i)) for i in range(n_frames)]
        for frame in figure.frames:
            frame.traces = list(range(len(frame.data)))
        add_player(figure, [str(i) for i in range(n_frames)], "step ")
    figure.update_layout(title={"text": title}, legend={"itemsizing": "constant"})
    return style(figure, 480)


@checked
def trajectory_and_curves(
    states: States,
    curves: Mapping[str, Any],
    label: str,
    *,
    times: ArrayLike | None = None,
    reference: CrystalBatch | None = None,
    title: str = "",
    colors: geo.ElementColors = "vesta",
) -> go.Figure:
    """Draw a structure on its way, beside numbers that change with it; a mark moves along.

    Args:
        states: n states, each a batch of one structure.
        curves: name -> n values, such as the reward of each state; nan leaves a gap.
        label: of their axis, with the unit.
        times: of the states; None counts them.
        reference: shown beside the last state, if given.
        title: of the figure.
        colors: of elements, as of ``structures``.

    Raises:
        ValueError: no state, a state of several structures, or a curve of another length.
    """
    n = len(states)
    lines = {
        name: as_numbers(f"curves[{name!r}], a value for each of states,", values, n)
        for name, values in curves.items()
    }
    x = np.arange(n) if times is None else as_numbers("times", times, n)
    if reference is not None and len(reference) != 1:
        raise ValueError(f"reference must be a batch of one structure, got {len(reference)}")
    panels = {"generated": states, **({} if reference is None else {"reference": [reference]})}
    figure, draw = _scenes(panels, [*panels, label], [GREY] * len(panels), colors)
    place = {"row": 1, "col": len(panels) + 1}
    n_moving = len(figure.data)
    shown = list(colored("curves", lines)) if lines else []
    for name, y, color in shown:
        mode = "lines+markers" if n <= 25 else "lines"
        figure.add_scatter(x=x, y=y, name=name, mode=mode, line_color=color, **place)

    def marks(i: int) -> list[go.Scatter]:
        here, hidden = slice(i, i + 1), {"mode": "markers", "name": "now", "showlegend": False}
        look = {"size": 14, "line": {"color": "white", "width": 2}}
        return [
            go.Scatter(x=x[here], y=y[here], marker={"color": color, **look}, **hidden)
            for _, y, color in shown
        ]

    first = len(figure.data)
    add(figure, marks(n - 1), place)
    figure.update_xaxes(title="step" if times is None else "time t")
    if n > 1:
        numbers = [*range(n_moving), *range(first, first + len(shown))]
        figure.frames = [
            go.Frame(data=draw(i) + marks(i), name=str(i), traces=numbers) for i in range(n)
        ]
        labels = [str(i) for i in range(n)] if times is None else [f"{t:.2f}" for t in x]
        add_player(figure, labels, "step " if times is None else "t = ")
        # Below the title of the axis.
        figure.update_layout(
            sliders=[{"pad": {"t": 50}}], updatemenus=[{"pad": {"t": 30}}], margin={"b": 100}
        )
    figure.update_layout(title={"text": title}, legend={"itemsizing": "constant"})
    return style(figure, 470)


def _scenes(
    panels: Mapping[str, States],
    titles: Sequence[str],
    cells: Sequence[str],
    colors: geo.ElementColors,
) -> tuple[go.Figure, Callable[[int], list[Any]]]:
    """Return a figure of the last states, all at one scale, and what draws state i of all panels.

    Titles beyond the panels' are of plane panels right of them.
    """
    if not panels or not all(len(states) for states in panels.values()):
        raise ValueError("panels must hold at least one panel, each with at least one state")
    for name, states in panels.items():
        if any(len(state) != 1 for state in states):
            raise ValueError(f"panels: the states of {name!r} must hold one structure each")
    kinds = [{"type": "scene" if i < len(panels) else "xy"} for i in range(len(titles))]
    figure = make_subplots(
        1, len(titles), specs=[kinds], subplot_titles=list(titles), horizontal_spacing=0.04
    )
    drawn = [[_geometry(state) for state in states] for states in panels.values()]
    seen = [[state.species.tolist() for state in states] for states in panels.values()]
    species = {z for states in seen for state in states for z in state}
    lasting = all(state == states[0] for states in seen for state in states)
    by_number = geo.element_colors(species, colors)
    n_balls = sum(len(part.atoms) for states in drawn for part in states)
    rounds = 2 if n_balls <= 40 else 1

    def draw(i: int) -> list[Any]:
        data: list[Any] = []
        for number, (states, color) in enumerate(zip(drawn, cells, strict=True), start=1):
            scene = "scene" if number == 1 else f"scene{number}"
            traces = _traces(states[min(i, len(states) - 1)], by_number, color, rounds)
            data += [trace.update(scene=scene) for trace in traces]
        return data

    def moved(i: int) -> list[Any]:
        data = draw(i)
        for trace in data:
            if trace.type == "mesh3d" and lasting:  # what stays is not written again
                trace.update(i=None, j=None, k=None, lighting=None)
        return data

    figure.add_traces(draw(max(len(states) for states in drawn) - 1))
    in_legend: set[str] = set()
    for trace in figure.data:
        if trace.type == "mesh3d":
            trace.showlegend = trace.name not in in_legend
            in_legend.add(trace.name)
    boxes = [scenes.box_of(*(part.cell for part in states), room=0.5) for states in drawn]
    size = np.max([high - low for low, high in boxes], axis=0)
    for column, (low, high) in enumerate(boxes, start=1):
        figure.update_scenes(
            **scenes.fixed_axes((low + high) / 2, size, len(titles)), row=1, col=column
        )
    return figure, moved


def _add_crystal(
    figure: go.Figure, crystal: CrystalBatch, place: Mapping[str, int], columns: int
) -> None:
    """Add one structure, as it is, to the scene at a place; as many traces for as many elements."""
    part = _geometry(crystal)
    add(figure, _traces(part, geo.element_colors(part.species, "vesta"), GREY, 2), place)
    figure.update_traces(showlegend=False, **place)
    low, high = scenes.box_of(part.cell, part.atoms)
    figure.update_scenes(**scenes.fixed_axes((low + high) / 2, high - low, columns), **place)
    figure.update_scenes(annotations=scenes.axis_letters(part.cell), **place)


def _geometry(state: CrystalBatch) -> geo.Geometry:
    arrays = (state.species, state.pos.double(), state.cell[0].double())
    species, pos, cell = (array.detach().cpu().numpy() for array in arrays)
    part = geo.geometry(species, pos, cell, images=False)
    if not len(part.atoms):  # as many as ever, but nowhere
        part.species, part.atoms = species, np.full((len(species), 3), np.nan)
    return part


def _traces(
    part: geo.Geometry, colors: Mapping[int, str], cell_color: str, rounds: int
) -> list[go.Scatter3d | go.Mesh3d]:
    """Return cell, bonds, and a mesh of balls per element, always as many."""
    gaps = np.full((len(part.bonds), 1, 3), np.nan)
    x, y, z = np.concatenate([part.atoms[part.bonds], gaps], axis=1).reshape(-1, 3).round(3).T
    sticks = {"mode": "lines", "line": {"color": GREY, "width": 8}, "name": "bonds"}
    hidden = {"showlegend": False, "hoverinfo": "skip"}
    traces = [
        scenes.edge_trace(part.cell, cell_color, 3 if cell_color == GREY else 6),
        go.Scatter3d(x=x, y=y, z=z, **sticks, **hidden),
    ]
    for number in colors:
        balls = geo.spheres(part.atoms[part.species == number], geo.element_radius(number), rounds)
        traces.append(scenes.mesh_trace(balls, **scenes.element_look(number, colors)))
    return traces
