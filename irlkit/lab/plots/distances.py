"""Distances between atoms: pair distribution functions, and how close atoms come on their way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from irlkit.lab.plots._panels import colored
from irlkit.lab.plots.style import GREY, line_with_band, style
from irlkit.utils.checks import as_numbers, check_finite, checked

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from irlkit.crystals import CrystalBatch

MAX_DISTANCES = 5_000_000
"""Of a structure, in a pair distribution; the nearest images are always counted."""


@checked
def pair_distribution(
    sets: Mapping[str, CrystalBatch], r_max: float = 8.0, n_bins: int = 160
) -> go.Figure:
    """Draw pair distribution functions g(r): how often atoms are r apart, against an ideal gas.

    Args:
        sets: name -> structures, over which g(r) is averaged.
        r_max: largest distance, Å.
        n_bins: bins from 0 to `r_max`.

    Returns:
        A line per set; a set without a valid structure has none. Structures with more than five
        million distances are left out of the bins farther than those that are counted, which are
        nan where no structure is left.

    Raises:
        ValueError: no set, or a range or number of bins that is not positive.
    """
    if not r_max > 0 or n_bins < 1:
        raise ValueError(f"r_max and n_bins must be positive, got {r_max!r} and {n_bins!r}")
    check_finite("r_max", r_max)
    edges = np.linspace(0, r_max, n_bins + 1)
    middles = (edges[1:] + edges[:-1]) / 2
    figure = go.Figure()
    for name, crystals, color in colored("sets of structures", sets):
        # For a figure, not for a reward: one by one.
        each = [g for crystal in crystals if (g := _pair_distribution(crystal, edges)) is not None]
        # The mean of a table leaves nan out.
        mean = pd.DataFrame(each).mean().to_numpy()
        figure.add_scatter(
            x=middles[: len(mean)], y=mean, mode="lines", name=name, line_color=color
        )
    figure.add_hline(1.0, line={"color": GREY, "dash": "dot", "width": 1})
    figure.update_xaxes(title="distance r, Å", range=[0, r_max])
    figure.update_yaxes(title="pair distribution g(r)", rangemode="tozero")
    figure.update_layout(showlegend=True)
    return style(figure, 420, legend_below=True)


def _pair_distribution(crystal: CrystalBatch, edges: np.ndarray) -> np.ndarray | None:
    """Return g(r) of one structure between the edges of bins, Å; of one that is not valid, None."""
    ((_, pos, cell),) = crystal._to_arrays()
    finite = np.isfinite(cell).all() and np.isfinite(pos).all()
    volume, r_max = abs(np.linalg.det(cell)), edges[-1]
    if not finite or volume <= 1e-3:
        return None
    # Spacings of the lattice planes say how many images a sphere of r_max reaches.
    spacing = 1 / np.linalg.norm(np.linalg.inv(cell), axis=0)
    most = max(27.0, MAX_DISTANCES / max(1, len(pos)) ** 2)
    while np.prod(2 * np.floor(r_max / spacing + 0.5) + 1) > most:
        r_max *= 0.95
    reach = (r_max / spacing + 0.5).astype(int)
    shifts = np.stack(np.meshgrid(*(np.arange(-n, n + 1) for n in reach)), -1).reshape(-1, 3)
    # A pair of atoms is there twice, once from either end, and each atom once with itself.
    counts = np.zeros(len(edges) - 1)
    counts[0] = -len(pos)
    for atom in pos:
        nearest = pos - atom
        nearest -= nearest.round()
        vectors = (nearest[:, None] + shifts) @ cell
        counts += np.histogram(np.linalg.norm(vectors, axis=-1), edges)[0]
    counts[edges[1:] > r_max] = np.nan
    return counts * volume / (len(pos) ** 2 * 4 / 3 * np.pi * np.diff(edges**3))


@checked
def minimum_distances(
    sets: Mapping[str, Sequence[CrystalBatch]], times: ArrayLike | None = None
) -> go.Figure:
    """Draw the smallest distance between atoms along trajectories: mean and range of structures.

    Args:
        sets: name -> states, each a batch of the same structures.
        times: of the states; None counts them.

    Raises:
        ValueError: no set, or one without states.
    """
    from irlkit.crystals.validity import check

    if not all(len(states) for states in sets.values()):
        raise ValueError("sets must hold at least one state each")
    figure = go.Figure()
    for name, states, color in colored("sets of states", sets):
        x = np.arange(len(states)) if times is None else as_numbers("times", times, len(states))
        found = [check(state, min_distance=20.0).min_distance for state in states]
        table = pd.DataFrame({"x": np.repeat(x, [len(d) for d in found]), "d": np.hstack(found)})
        table["d"] = table["d"].where(np.isfinite(table["d"]))
        figure.add_traces(line_with_band(table, "x", "d", name, color))
    note = {"text": "below: not valid", "yanchor": "bottom"}
    figure.add_hline(0.5, line={"color": GREY, "dash": "dot", "width": 1}, annotation=note)
    figure.update_xaxes(title="step" if times is None else "time t")
    figure.update_yaxes(title="smallest distance, Å", rangemode="tozero")
    figure.update_layout(showlegend=True)
    return style(figure, 420, legend_below=True)
