"""Numbers per element on the periodic table."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import plotly.graph_objects as go

from irlkit.lab.plots.style import GREY, style
from irlkit.utils.checks import checked


@checked
def periodic_table(
    values: Mapping[str, float], label: str, counts: Mapping[str, int] | None = None
) -> go.Figure:
    """Draw a number per element on the periodic table.

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
    finite = {symbol: float(v) for symbol, v in values.items() if np.isfinite(v)}
    low, high = (min(finite.values()), max(finite.values())) if finite else (0.0, 0.0)
    shown = np.full((9, 18), np.nan)
    hover = np.full((9, 18), "", dtype=object)
    figure = go.Figure()
    for element in (Element.from_Z(z) for z in range(1, 104)):
        symbol, row, column = element.symbol, element.row - 1, element.group - 1
        for first, below in ((57, 7), (89, 8)):  # lanthanides and actinides
            if first <= element.Z < first + 14:
                row, column = below, element.Z - first + 2
        value = finite.get(symbol)
        color = GREY
        if value is not None:
            shown[row, column] = value
            # Light on the dark end of the scale, dark on the light end.
            color = "#ffffff" if value - low < 0.55 * (high - low) or low == high else "#222222"
        hover[row, column] = f"{symbol}: " + ("no value" if value is None else f"{value:.3g}")
        if counts and symbol in counts:
            hover[row, column] += f" ({counts[symbol]} structures)"
        font = {"size": 12, "color": color}
        figure.add_annotation(x=column, y=row, text=symbol, showarrow=False, font=font)
    figure.add_heatmap(
        z=shown,
        text=hover,
        hovertemplate="%{text}<extra></extra>",
        colorscale="Cividis",
        xgap=2,
        ygap=2,
        hoverongaps=False,
        colorbar={"title": {"text": label, "side": "right"}, "thickness": 14},
    )
    style(figure, 430)
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False, autorange="reversed", scaleanchor="x")
    return figure.update_layout(margin={"l": 10, "r": 10, "t": 20, "b": 10})
