"""The figure of a latent space."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from irlkit.lab.plots._panels import colored
from irlkit.lab.plots.style import GREY, need, style


def latent_map(table: pd.DataFrame, rest: str = "metals alone") -> go.Figure:
    """Draw structures as points of a plane, coloured by class.

    Args:
        table: a row per structure: columns first, second (coordinates), class and formula.
        rest: the class that is drawn in grey.
    """
    need(table, "first", "second", "class", "formula")
    figure = go.Figure()
    classes = {str(name): rows for name, rows in table.groupby("class")}
    behind = [(rest, classes.pop(rest), GREY)] if rest in classes else []
    for name, rows, color in [*behind, *(colored("table", classes) if classes else ())]:
        figure.add_scatter(
            x=rows["first"].round(3),
            y=rows["second"].round(3),
            mode="markers",
            name=name,
            text=rows["formula"],
            marker={"color": color, "size": 5, "opacity": 0.6},
        )
    shares = table.attrs.get("explained", ())
    texts = [f", {share:.0%} of the variance" for share in shares] or ["", ""]
    figure.update_xaxes(title=f"first component{texts[0]}")
    figure.update_yaxes(title=f"second component{texts[1]}")
    figure.update_layout(legend={"itemsizing": "constant"})
    return style(figure, 480)
