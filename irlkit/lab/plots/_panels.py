"""What figures share: colours handed out, panels in a grid, a player for frames."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import cycle
from typing import Any, TypeVar

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from irlkit.lab.plots.style import BLUE, COLORS, GREY, RED, line_with_band

T = TypeVar("T")
SIGNS = {"colorscale": [[0, RED], [0.5, GREY], [1, BLUE]], "cmin": -1, "cmax": 1}
"""Of markers whose colour is the sign of a number."""


def colored(
    what: str, entries: Mapping[str, T], colors: Sequence[str] = COLORS
) -> Iterator[tuple[str, T, str]]:
    """Return the name, entry and colour of each; raise a ValueError if there is none.

    Args:
        what: the argument, and what it holds: "sets: points".
        entries: name -> entry.
        colors: in order; they repeat.
    """
    if not len(entries):
        raise ValueError(f"{what} must hold at least one entry, got none")
    return ((*item, color) for item, color in zip(entries.items(), cycle(colors), strict=False))


def lines_of(table: pd.DataFrame, column: str) -> Iterator[tuple[str, pd.DataFrame, str]]:
    """Return each value of a column as text, its rows and its colour, in the table's order."""
    groups = {str(name): rows for name, rows in table.groupby(column, sort=False)}
    return colored(f"table of rows by {column}", groups)


def add_lines(
    figure: go.Figure,
    places: Sequence[Mapping[str, int]],
    columns: Sequence[str],
    x: str,
    lines: Iterable[tuple[str, pd.DataFrame, str]],
) -> None:
    """Draw columns over that of `x`, a panel each, with a line per name, rows and colour."""
    for name, rows, color in lines:
        for column, place in zip(columns, places, strict=True):
            traces = line_with_band(rows, x, column, name, color, legend=place is places[0])
            add(figure, traces, place)


def grid(
    titles: Sequence[str], columns: int | None = None, kind: str = "xy", **options: Any
) -> tuple[go.Figure, list[dict[str, int]]]:
    """Make a figure of panels and return it with their places, ``{"row": 1, "col": 1}`` and so on.

    Args:
        titles: a panel each.
        columns: at most so many in a row; None: all.
        kind: "xy" or "scene".
        **options: of ``plotly.subplots.make_subplots``.
    """
    columns = max(1, min(columns or len(titles), len(titles)))
    rows = -(-len(titles) // columns)
    specs = [[{"type": kind}] * columns] * rows
    figure = make_subplots(rows, columns, specs=specs, subplot_titles=list(titles), **options)
    return figure, [{"row": i // columns + 1, "col": i % columns + 1} for i in range(len(titles))]


def add(figure: go.Figure, traces: Sequence[Any], place: Mapping[str, int]) -> None:
    """Add traces to the panel at a place."""
    figure.add_traces(traces, rows=place["row"], cols=place["col"])


def add_player(
    figure: go.Figure, labels: Sequence[str], prefix: str, names: Sequence[str] | None = None
) -> None:
    """Add slider and play button; frames are called "0", "1", ... unless `names` are given."""
    names = [str(i) for i in range(len(labels))] if names is None else names
    options = {"frame": {"duration": 0, "redraw": True}, "mode": "immediate"}
    play = {"frame": {"duration": 250, "redraw": True}, "fromcurrent": False}
    stop = {"frame": {"duration": 0, "redraw": False}, "mode": "immediate"}
    look = {"bgcolor": "rgba(136,136,136,0.2)", "bordercolor": GREY}
    slider = {
        "active": len(labels) - 1,
        "currentvalue": {"prefix": prefix},
        "activebgcolor": BLUE,
        "tickcolor": GREY,
        "steps": [
            {"label": label, "method": "animate", "args": [[name], options]}
            for name, label in zip(names, labels, strict=True)
        ],
        "x": 0.17,
        "len": 0.8,
    }
    menu = {
        "type": "buttons",
        "direction": "left",
        "x": 0.14,
        "y": -0.08,
        "showactive": False,
        "buttons": [
            {"label": "Play", "method": "animate", "args": [None, play]},
            {"label": "Stop", "method": "animate", "args": [[None], stop]},
        ],
    }
    figure.update_layout(sliders=[slider | look], updatemenus=[menu | look])
