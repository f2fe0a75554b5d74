"""Figures: from data to plotly, nothing else.

Every function takes tables or structures and returns a ``plotly.graph_objects.Figure``. Colours are
those of Okabe and Ito, which colour-blind people can tell apart; backgrounds are transparent and
grey is medium, so that figures are readable on light and dark pages.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

if TYPE_CHECKING:
    from irlkit.crystals import CrystalBatch

ORANGE, SKY, GREEN, YELLOW = "#E69F00", "#56B4E9", "#009E73", "#F0E442"
BLUE, RED, PURPLE, GREY = "#0072B2", "#D55E00", "#CC79A7", "#888888"
COLORS = (BLUE, RED, GREEN, PURPLE, ORANGE, SKY, YELLOW)
FIELD_LABELS = {"pos": "atomic positions", "cell": "lattice vectors"}
METRIC_LABELS = {
    "metre": "METRe (share of references)",
    "crmse": "cRMSE, in (V/N)<sup>1/3</sup>",
    "match_rate": "match rate",
    "rmse": "RMSE, in (V/N)<sup>1/3</sup>",
    "valid_rate": "share of valid structures",
}
# The 12 edges of a cell as one line, with gaps.
_CORNERS = np.stack(np.meshgrid([0, 1], [0, 1], [0, 1], indexing="ij"), axis=-1).reshape(8, 3)
_EDGES = [(i, i | bit) for i in range(8) for bit in (1, 2, 4) if not i & bit]


def style(figure: go.Figure, height: int = 400, legend_below: bool = False) -> go.Figure:
    """Give a figure the common look; changes and returns it.

    Args:
        figure: to change.
        height: in pixels.
        legend_below: put the legend in two rows or fewer at the lower edge, in a margin that is
            large enough for it and the axis titles whatever the width.
    """
    axis = {"gridcolor": "rgba(136,136,136,0.25)", "zerolinecolor": "rgba(136,136,136,0.5)"}
    figure.update_layout(
        height=height,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": GREY, "size": 13},
        margin={"l": 65, "r": 20, "t": 50, "b": 115 if legend_below else 60},
        hoverlabel={"namelength": -1},
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": GREY, "activecolor": BLUE},
    )
    if legend_below:
        below = {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom"}
        figure.update_layout(legend=below)
    figure.update_xaxes(**axis, linecolor=GREY, ticks="outside")
    figure.update_yaxes(**axis, linecolor=GREY, ticks="outside")
    return figure


def line_with_band(
    table: pd.DataFrame,
    x: str,
    y: str,
    name: str,
    color: str,
    *,
    legend: bool = True,
    dash: str | None = None,
) -> list[go.Scatter]:
    """Mean over rows with equal `x`, and a band from the smallest to the largest of them.

    Args:
        table: rows of all seeds; those where `y` is nan are left out.
        x: column of the abscissa.
        y: column of the ordinate.
        name: in the legend.
        color: hexadecimal.
        legend: show it there.
        dash: of the line.

    Returns:
        The band, if any `x` has several rows, and the line; with a single `x`, a point with an
        error bar instead of the band.
    """
    groups = table.dropna(subset=[y]).groupby(x)[y]
    counts, mean, low, high = groups.size(), groups.mean(), groups.min(), groups.max()
    traces = []
    error = None
    if len(mean) == 1:
        error = {"array": (high - mean).to_numpy(), "arrayminus": (mean - low).to_numpy()}
    elif len(mean) and counts.to_numpy().max() > 1:
        red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
        traces.append(
            go.Scatter(
                x=np.concatenate([low.index, high.index[::-1]]),
                y=np.concatenate([low, high[::-1]]),
                fill="toself",
                fillcolor=f"rgba({red},{green},{blue},0.2)",
                line={"width": 0},
                mode="lines",
                name=f"{name}: range of seeds",
                legendgroup=name,
                showlegend=False,
                hoverinfo="skip",
            )
        )
    line = {"color": color, "width": 2} | ({} if dash is None else {"dash": dash})
    mode = "lines+markers" if len(mean) <= 25 else "lines"
    traces.append(
        go.Scatter(
            x=mean.index.to_numpy(),
            y=mean.to_numpy(),
            mode=mode,
            name=name,
            legendgroup=name,
            showlegend=legend,
            line=line,
            error_y=error,
        )
    )
    return traces


def schedule_name(schedule: str, tuned_at: float = np.nan) -> str:
    """What a schedule is called in figures; `tuned_at` is nan unless it was tuned by hand."""
    names = {"none": "no annealing", "learned": "learned annealing"}
    if schedule in names:
        return names[schedule]
    return "handcrafted" if np.isnan(tuned_at) else f"handcrafted, tuned at {tuned_at:.0f} steps"


def schedule_color(schedule: str, tuned_at: float = np.nan, few: int | None = None) -> str:
    """One colour per schedule in all figures; `few` tells two handcrafted ones apart."""
    if schedule == "handcrafted":
        return ORANGE if few is not None and tuned_at == few else BLUE
    return {"none": GREY, "learned": RED}[schedule]


def _by_schedule(table: pd.DataFrame, few: int | None) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Name, colour and rows of each schedule in a table, in the table's order."""
    keys = ["schedule", "tuned_at"]
    for schedule, tuned_at in table[keys].drop_duplicates().itertuples(index=False):
        same = table["tuned_at"].isna() if np.isnan(tuned_at) else table["tuned_at"] == tuned_at
        rows = table[(table["schedule"] == schedule) & same]
        yield schedule_name(schedule, tuned_at), schedule_color(schedule, tuned_at, few), rows


def metrics_vs_steps(
    evaluation: pd.DataFrame,
    metrics: Sequence[str] = ("metre", "crmse"),
    mark: int | None = None,
) -> go.Figure:
    """Metrics against the number of integration steps, a line per schedule (Fig. 4).

    Args:
        evaluation: columns schedule, n_steps, seed, the metrics, and optionally tuned_at; seeds
            make a band.
        metrics: a panel each.
        mark: draw a line at this number of steps; handcrafted schedules tuned there have another
            colour than the rest.

    Raises:
        ValueError: a column is missing.
    """
    _need(evaluation, "schedule", "n_steps", *metrics)
    titles = [METRIC_LABELS.get(metric, metric) for metric in metrics]
    figure = make_subplots(1, len(metrics), subplot_titles=titles, horizontal_spacing=0.1)
    if "tuned_at" not in evaluation:
        evaluation = evaluation.assign(tuned_at=np.nan)
    for name, color, rows in _by_schedule(evaluation, mark):
        for column, metric in enumerate(metrics, start=1):
            traces = line_with_band(rows, "n_steps", metric, name, color, legend=column == 1)
            figure.add_traces(traces, rows=1, cols=column)
    ticks = sorted(evaluation["n_steps"].unique())
    figure.update_xaxes(type="log", tickvals=ticks, title="number of integration steps")
    for column, metric in enumerate(metrics, start=1):
        if metric != "crmse":
            figure.update_yaxes(range=[0, 1], row=1, col=column)
    if mark is not None:
        figure.add_vline(mark, line={"color": GREY, "dash": "dot", "width": 1})
    return style(figure, 450, legend_below=True)


def training_curves(history: pd.DataFrame) -> go.Figure:
    """Reward during training: of the rollouts, and on validation without noise (Fig. 8).

    Args:
        history: columns iteration, seed, reward and validation_reward; seeds make a band.

    Raises:
        ValueError: a column is missing.
    """
    _need(history, "iteration", "seed", "reward", "validation_reward")
    figure = make_subplots(
        1, 2, subplot_titles=("rollouts, with noise", "validation, without"), shared_yaxes=True
    )
    for column, (metric, color) in enumerate(
        (("reward", BLUE), ("validation_reward", RED)), start=1
    ):
        traces = line_with_band(history, "iteration", metric, "mean of seeds", color)
        figure.add_traces(traces, rows=1, cols=column)
    for seed, rows in history.groupby("seed"):
        best = rows.dropna(subset=["validation_reward"])
        best = best.loc[best["validation_reward"] == best["validation_reward"].max()].head(1)
        figure.add_scatter(
            x=best["iteration"],
            y=best["validation_reward"],
            mode="markers",
            marker={"color": RED, "symbol": "star", "size": 12},
            name=f"best of seed {seed}",
            row=1,
            col=2,
        )
    figure.update_xaxes(title="iteration")
    figure.update_yaxes(title="reward, 0.5 - cRMSE", row=1, col=1)
    figure.update_layout(showlegend=False)
    return style(figure, 380)


def annealing_schedules(curves: pd.DataFrame, few: int | None = None) -> go.Figure:
    """1 + s(t), what velocities are multiplied by, a panel per field (Fig. 5).

    Args:
        curves: columns schedule, tuned_at, seed, n_steps, field, t, factor; seeds make a band. A
            schedule on several grids has a line for each, in another colour.
        few: the small number of steps; a handcrafted schedule tuned for it has its own colour.

    Raises:
        ValueError: a column is missing.
    """
    _need(curves, "schedule", "tuned_at", "seed", "n_steps", "field", "t", "factor")
    titles = [FIELD_LABELS[field] for field in ("pos", "cell")]
    figure = make_subplots(1, 2, subplot_titles=titles, horizontal_spacing=0.08)
    for column, field in enumerate(("pos", "cell"), start=1):
        for name, color, rows in _by_schedule(curves[curves["field"] == field], few):
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


def sweep_results(
    trials: pd.DataFrame, metric: str = "crmse", targets: Mapping[str, float] | None = None
) -> go.Figure:
    """Trials of a handcrafted sweep: where they lie, and how good they are in order (Appendix H).

    Args:
        trials: columns pos, cell and the metric.
        metric: "crmse" (lower is better) or another (higher is).
        targets: name -> value of other schedules on the same data, drawn as lines.

    Raises:
        ValueError: a column is missing, or there is no trial.
    """
    _need(trials, "pos", "cell", metric)
    if not len(trials):
        raise ValueError("trials must hold at least one trial, got none")
    label = METRIC_LABELS.get(metric, metric)
    ordered = trials.sort_values(metric, ascending=metric in ("crmse", "rmse"))
    figure = make_subplots(
        1, 2, subplot_titles=("coefficients", "trials, best first"), horizontal_spacing=0.2
    )
    marker = {
        "size": 13,
        "color": ordered[metric],
        "colorscale": "Cividis",
        "reversescale": metric in ("crmse", "rmse"),
        "colorbar": {"title": {"text": label.split(",")[0]}, "x": 0.41, "thickness": 12},
        "line": {"color": GREY, "width": 1},
    }
    hover = [
        f"positions {pos:.2f}, lattice {cell:.2f}: {value:.3f}"
        for pos, cell, value in ordered[["pos", "cell", metric]].itertuples(index=False)
    ]
    figure.add_scatter(
        x=ordered["pos"],
        y=ordered["cell"],
        mode="markers",
        marker=marker,
        hovertext=hover,
        hoverinfo="text",
        name="trials",
        row=1,
        col=1,
    )
    figure.add_scatter(
        x=ordered["pos"].head(1),
        y=ordered["cell"].head(1),
        mode="markers",
        marker={"symbol": "circle-open", "size": 20, "color": RED, "line": {"width": 3}},
        name="best",
        row=1,
        col=1,
    )
    figure.add_scatter(
        x=np.arange(1, len(ordered) + 1),
        y=ordered[metric],
        mode="lines+markers",
        line={"color": ORANGE},
        hovertext=hover,
        hoverinfo="text",
        name="handcrafted",
        row=1,
        col=2,
    )
    for (name, value), color in zip(
        (targets or {}).items(), (RED, BLUE, GREEN, PURPLE), strict=False
    ):
        figure.add_scatter(
            x=[1, len(ordered)],
            y=[value, value],
            mode="lines",
            line={"color": color, "dash": "dash"},
            name=name,
            row=1,
            col=2,
        )
    figure.update_xaxes(title="coefficient of positions", row=1, col=1)
    figure.update_yaxes(title="coefficient of lattice", row=1, col=1)
    figure.update_xaxes(title="rank of trial", row=1, col=2)
    figure.update_yaxes(title=label, row=1, col=2)
    return style(figure, 450, legend_below=True)


def schedule_and_structures(
    t: np.ndarray, curves: Mapping[str, np.ndarray], table: pd.DataFrame, stol: float = 0.5
) -> go.Figure:
    """A schedule beside what it makes of a few structures.

    The number of traces depends on nothing, so that a live figure can be updated in place.

    Args:
        t: times, shape (n_steps,).
        curves: field -> 1 + s(t), shape (n_steps,).
        table: columns formula and rmsd, a row per structure; nan means no match.
        stol: height of the bars of structures without a match.

    Raises:
        ValueError: a column is missing.
    """
    _need(table, "formula", "rmsd")
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
    figure.update_xaxes(title="time t", range=[0, 1], row=1, col=1)
    figure.update_yaxes(title="1 + s(t)", rangemode="tozero", row=1, col=1)
    figure.update_yaxes(title="RMSD, in (V/N)<sup>1/3</sup>", range=[0, stol], row=1, col=2)
    figure.update_layout(barmode="stack")
    return style(figure, 420, legend_below=True)


# --------------------------------------------------------------------------------------------------
# Structures
# --------------------------------------------------------------------------------------------------


def trajectories(panels: Mapping[str, Sequence[CrystalBatch]], title: str = "") -> go.Figure:
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
    if not panels or not all(panels.values()):
        raise ValueError("panels must hold at least one panel, each with at least one state")
    for name, states in panels.items():
        if any(len(state) != 1 for state in states):
            raise ValueError(f"panels: the states of {name!r} must hold one structure each")
    figure = make_subplots(
        1,
        len(panels),
        specs=[[{"type": "scene"}] * len(panels)],
        subplot_titles=list(panels),
        horizontal_spacing=0.02,
    )
    elements = sorted({int(z) for states in panels.values() for z in states[0].species})
    boxes = [_box(states) for states in panels.values()]
    size = np.max([high - low for low, high in boxes], axis=0)
    for column, (states, (low, high)) in enumerate(
        zip(panels.values(), boxes, strict=True), start=1
    ):
        traces = _structure_traces(states[-1], elements, legend=column == 1)
        figure.add_traces(traces, rows=[1] * len(traces), cols=[column] * len(traces))
        figure.update_scenes(**_fixed_axes((low + high) / 2, size), row=1, col=column)
    n_frames = max(len(states) for states in panels.values())
    if n_frames > 1:
        _animate(figure, list(panels.values()), elements, n_frames)
    figure.update_layout(title={"text": title}, legend={"itemsizing": "constant"})
    return style(figure, 480)


def _animate(
    figure: go.Figure,
    panels: list[Sequence[CrystalBatch]],
    elements: list[int],
    n_frames: int,
) -> None:
    """Add frames, slider and play button."""
    frames = []
    for i in range(n_frames):
        data: list[Any] = []
        for column, states in enumerate(panels, start=1):
            data += _structure_traces(states[min(i, len(states) - 1)], elements, column == 1)
        for trace, placed in zip(data, figure.data, strict=True):
            trace.scene = placed.scene
        frames.append(go.Frame(data=data, name=str(i), traces=list(range(len(data)))))
    figure.frames = frames
    options = {"frame": {"duration": 0, "redraw": True}, "mode": "immediate"}
    steps = [
        {"label": str(i), "method": "animate", "args": [[str(i)], options]} for i in range(n_frames)
    ]
    play = {"frame": {"duration": 250, "redraw": True}, "fromcurrent": False}
    figure.update_layout(
        sliders=[
            {
                "active": n_frames - 1,
                "currentvalue": {"prefix": "step "},
                "steps": steps,
                "x": 0.12,
                "len": 0.85,
            }
        ],
        updatemenus=[
            {
                "type": "buttons",
                "x": 0.08,
                "y": -0.08,
                "bgcolor": "rgba(136,136,136,0.2)",
                "buttons": [{"label": "Play", "method": "animate", "args": [None, play]}],
            }
        ],
    )


def _structure_traces(
    structure: CrystalBatch, elements: Sequence[int], legend: bool
) -> list[go.Scatter3d]:
    """Cell edges, and one trace per element with the atoms in the cell."""
    from ase.data import chemical_symbols, covalent_radii

    cell = structure.cell[0].detach().cpu().double().numpy()
    pos = structure.pos.detach().cpu().double().numpy() % 1.0
    species = structure.species.cpu().numpy()
    corners = _CORNERS @ cell
    edges = np.concatenate([[*corners[[i, j]], [np.nan] * 3] for i, j in _EDGES]).round(4)
    traces = [
        go.Scatter3d(
            x=edges[:, 0],
            y=edges[:, 1],
            z=edges[:, 2],
            mode="lines",
            line={"color": GREY, "width": 3},
            name="cell",
            showlegend=False,
            hoverinfo="skip",
        )
    ]
    for z, color in zip(elements, COLORS * (len(elements) // len(COLORS) + 1), strict=False):
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
                    "color": color,
                    "line": {"color": "#444444", "width": 1},
                },
                name=symbol,
                legendgroup=symbol,
                showlegend=legend,
                hovertemplate=f"{symbol} (%{{x:.2f}}, %{{y:.2f}}, %{{z:.2f}}) Å",
            )
        )
    return traces


def _box(states: Sequence[CrystalBatch]) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest coordinates of the cells of all states, with a margin, in Å."""
    corners = np.concatenate([_CORNERS @ s.cell[0].cpu().double().numpy() for s in states])
    corners = corners[np.isfinite(corners).all(axis=1)]
    if not len(corners):
        corners = np.zeros((1, 3))
    return corners.min(axis=0) - 0.5, corners.max(axis=0) + 0.5


def _fixed_axes(center: np.ndarray, size: np.ndarray) -> dict[str, Any]:
    """Axes of that size (Å) around a point, with equal scales."""
    low, high = center - size / 2, center + size / 2
    axes = {
        f"{name}axis": {
            "range": [float(low[i]), float(high[i])],
            "visible": False,
        }
        for i, name in enumerate("xyz")
    }
    # The diagonal of the box about as long as a panel is wide, found by trying.
    ratio = dict(zip("xyz", (2.6 * size / np.linalg.norm(size)).tolist(), strict=True))
    camera = {"eye": {"x": 1.1, "y": 1.3, "z": 0.6}, "projection": {"type": "orthographic"}}
    return {**axes, "aspectmode": "manual", "aspectratio": ratio, "camera": camera}


def _need(table: pd.DataFrame, *columns: str) -> None:
    missing = [column for column in columns if column not in table]
    if missing:
        raise ValueError(f"the table lacks the columns {missing}; it has {list(table.columns)}")
