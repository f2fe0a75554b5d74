"""The rewards of one group and what they become."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from irlkit.lab.plots.style import BLUE, ORANGE, style
from irlkit.utils.checks import checked


@checked
def group(rewards: Sequence[float], advantages: Sequence[float]) -> go.Figure:
    """Draw the rewards of a group's structures beside their advantages (Eq. 9).

    Args:
        rewards: shape (G,).
        advantages: shape (G,).

    Raises:
        ValueError: they differ in number, or there are none.

    >>> [len(bars.y) for bars in group([0.1, 0.3], [-1.0, 1.0]).data]
    [2, 2]
    """
    if not len(rewards) == len(advantages) > 0:
        raise ValueError(
            f"rewards and advantages must be as many, got {len(rewards)} and {len(advantages)}"
        )
    rewards, advantages = list(map(float, rewards)), list(map(float, advantages))
    figure = make_subplots(1, 2, subplot_titles=("reward", "advantage"))
    structures = list(range(1, len(rewards) + 1))
    figure.add_bar(x=structures, y=rewards, marker_color=BLUE, row=1, col=1)
    figure.add_hline(sum(rewards) / len(rewards), line_dash="dot", row=1, col=1)
    figure.add_bar(x=structures, y=advantages, marker_color=ORANGE, row=1, col=2)
    figure.update_xaxes(
        title_text="structure of the group", dtick=1 if len(rewards) <= 20 else None
    )
    return style(figure, height=300).update_layout(showlegend=False)
