"""Numbers per element on the periodic table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go

from irlkit.lab.plots.style import GREY, style
from irlkit.utils.checks import checked

if TYPE_CHECKING:
    from pymatgen.core import Element


@checked
def periodic_table(
    values: Mapping[str, float], label: str, counts: Mapping[str, int] | None = None
) -> go.Figure:
    """A number per element on the periodic table.

    Args:
        values: symbol -> number; elements without one, or with nan, stay empty.
        label: of the numbers, with their unit.
        counts: symbol -> of how many structures the number is, shown on hovering.

    Raises:
        ValueError: a symbol is no element.
    """
    from pymatgen.core import Element

    unknown = sorted(symbol for symbol in values if not Element.is_valid_symbol(symbol))
    if unknown:
        raise ValueError(f"values must be given for elements, got {unknown}")
    grid = np.full((9, 18), np.nan)
    hover = np.full((9, 18), "", dtype=object)
    figure = go.Figure()
    for element in Element:
        if element.Z > 103 or element.symbol in ("D", "T"):
            continue
        row, column = _place(element)
        value = float(values.get(element.symbol, np.nan))
        grid[row, column] = value if np.isfinite(value) else np.nan
        known = f"{value:.3g}" if np.isfinite(value) else "no value"
        count = (counts or {}).get(element.symbol)
        hover[row, column] = f"{element.symbol}: {known}" + (
            "" if count is None else f" ({count} structures)"
        )
        figure.add_annotation(
            x=column,
            y=row,
            text=element.symbol,
            showarrow=False,
            font={"size": 12, "color": _text_color(value, values)},
        )
    figure.add_heatmap(
        z=grid,
        text=hover,
        hovertemplate="%{text}<extra></extra>",
        colorscale="Cividis",
        xgap=2,
        ygap=2,
        hoverongaps=False,
        colorbar={"title": {"text": label, "side": "right"}, "thickness": 14},
    )
    hidden = {"showgrid": False, "zeroline": False, "visible": False}
    style(figure, 430)
    figure.update_xaxes(**hidden)
    figure.update_yaxes(**hidden, autorange="reversed", scaleanchor="x")
    figure.update_layout(margin={"l": 10, "r": 10, "t": 20, "b": 10})
    return figure


def _place(element: Element) -> tuple[int, int]:
    """Row and column; lanthanides and actinides lie below."""
    if 57 <= element.Z <= 70:
        return 7, element.Z - 57 + 2
    if 89 <= element.Z <= 102:
        return 8, element.Z - 89 + 2
    return element.row - 1, element.group - 1


def _text_color(value: float, values: Mapping[str, float]) -> str:
    """Light on the dark end of the scale, dark on the light end, grey where there is no number."""
    finite = [float(v) for v in values.values() if np.isfinite(v)]
    if not np.isfinite(value) or not finite:
        return GREY
    low, high = min(finite), max(finite)
    return "#ffffff" if low == high or (value - low) / (high - low) < 0.55 else "#222222"
