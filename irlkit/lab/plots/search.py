"""A sweep over many parameters at once: parallel coordinates and importance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from irlkit.lab.plots.style import BLUE, GREY, SCALE, need, style
from irlkit.utils.checks import checked


@checked
def parallel_coordinates(
    trials: pd.DataFrame,
    parameters: Sequence[str],
    value: str = "value",
    *,
    label: str | None = None,
    logarithmic: Sequence[str] = (),
) -> go.Figure:
    """Draw every trial as a line through its parameters to its value; drag an axis to select.

    Args:
        trials: one row per trial; those without a finite value are left out.
        parameters: columns, one axis each. What is no number is drawn as categories, and so are
            short numbers that take no more than eight values.
        value: column of the value, higher is better; the last axis, and the colour.
        label: of the value, with its unit; None: the column's name.
        logarithmic: parameters on a logarithmic axis.

    Raises:
        ValueError: a column is missing, or no trial has a finite value.
    """
    need(trials, value, *parameters)
    done = trials[trials[value].notna()]
    done = done[np.isfinite(done[value].astype(float))]
    if not len(done):
        raise ValueError("trials must hold at least one trial with a value, got none")
    label = value if label is None else label
    values = done[value].astype(float)
    axes = [_axis(name, done[name], name in logarithmic) for name in parameters]
    bar = {"title": {"text": label}, "thickness": 12}
    line = {"color": values, "colorscale": SCALE, "showscale": True, "colorbar": bar}
    # Without the halo, which is white on a dark page too.
    font = {"color": GREY, "shadow": "none", "size": 13}
    lines = go.Parcoords(
        line=line,
        dimensions=[*axes, {"label": label, **_linear(values)}],
        labelangle=-20,
        **dict.fromkeys(("labelfont", "tickfont", "rangefont"), font),
        unselected={"line": {"color": GREY, "opacity": 0.1}},
    )
    margin = {"t": 120, "l": 70, "r": 70, "b": 40}
    return style(go.Figure(lines), 480).update_layout(margin=margin)


def _are_short(numbers: pd.Series) -> bool:
    """Whether three digits say them all: choices, and nothing drawn from a range."""
    return all(abs(float(f"{number:.3g}") - number) <= 1e-9 * abs(number) for number in numbers)


def _linear(numbers: pd.Series) -> dict[str, Any]:
    """An axis from one round number to another, with round numbers between them."""
    numbers = numbers.where(np.isfinite(numbers))
    if not numbers.notna().any():
        return {"values": numbers, "range": [0, 1]}
    low, high = float(numbers.min()), float(numbers.max())
    if low == high:
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / 5
    size = 10.0 ** np.floor(np.log10(rough))
    step = size * next(factor for factor in (1, 2, 5, 10) if factor * size >= 0.999 * rough)
    ticks = step * np.arange(np.floor(low / step), np.ceil(high / step) + 1)
    return {
        "values": numbers,
        "range": [float(ticks[0]), float(ticks[-1])],
        "tickvals": list(ticks),
        "ticktext": [f"{tick + 0.0:.6g}" for tick in ticks],
    }


def _axis(name: str, column: pd.Series, logarithmic: bool) -> dict[str, Any]:
    numeric = pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)
    numbers = column.astype(float) if numeric else None
    if numbers is not None and (logarithmic or column.nunique() > 8 or not _are_short(numbers)):
        if not logarithmic:
            return {"label": name, **_linear(numbers)}
        positive = numbers.where((numbers > 0) & np.isfinite(numbers))
        if not positive.notna().any():
            return {"label": name, **_linear(positive)}
        exponents = np.log10(positive)
        low, high = float(exponents.min()), float(exponents.max())
        ticks = np.arange(np.floor(low), np.ceil(high) + 1)
        return {
            "label": name,
            "values": exponents,
            "range": [float(ticks[0]), float(ticks[-1])] if len(ticks) > 1 else None,
            "tickvals": list(ticks),
            "ticktext": [f"{10.0**tick:g}" for tick in ticks],
        }
    # As text, a truth value cannot be taken for a number.
    texts = column.astype(object).map(str)
    order = list(dict.fromkeys(str(v) for v in (sorted(column) if numeric else sorted(texts))))
    return {
        "label": name,
        "values": texts.map({text: i for i, text in enumerate(order)}),
        "tickvals": list(range(len(order))),
        "ticktext": order,
        "range": [-0.5, len(order) - 0.5],
    }


@checked
def parameter_importance(importance: pd.Series) -> go.Figure:
    """Draw the shares of the parameters, the largest on top.

    Args:
        importance: parameter -> share, as of ``irlkit.lab.sweeps.importance``; nan where unknown.
    """
    if not len(importance):
        raise ValueError("importance must hold at least one parameter, got none")
    ordered = importance.fillna(0.0).sort_values(kind="stable")
    bars = {"x": ordered.to_numpy(dtype=float), "y": [str(name) for name in ordered.index]}
    look = {"marker": {"color": BLUE}, "hovertemplate": "%{y}: %{x:.2f}<extra></extra>"}
    figure = go.Figure(go.Bar(**bars, **look, orientation="h"))
    if importance.isna().all():
        figure.update_layout(title={"text": "too few trials to tell"})
    figure.update_xaxes(title="share of the difference between good trials and all", range=[0, 1])
    return style(figure, 120 + 30 * len(ordered))
