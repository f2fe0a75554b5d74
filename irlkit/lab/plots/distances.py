"""Distances between atoms: pair distribution functions, and how close atoms come on their way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from irlkit.lab.plots.style import COLORS, GREY, line_with_band, style
from irlkit.utils.checks import as_numbers, checked

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from irlkit.crystals import CrystalBatch


def distances_of(crystals: CrystalBatch, r_max: float) -> tuple[np.ndarray, np.ndarray]:
    """All distances of at most `r_max` between an atom of the cell and any other or its images.

    Args:
        crystals: structures; those with coordinates that are not finite have no distances.
        r_max: Å.

    Returns:
        Distances in Å, and the number of the structure that each belongs to. A pair of atoms is
        there twice, once from either end.
    """
    found: list[np.ndarray] = []
    owner: list[np.ndarray] = []
    for number, crystal in enumerate(crystals):  # for a figure, not for a reward
        cell = crystal.cell[0].detach().cpu().double().numpy()
        pos = crystal.pos.detach().cpu().double().numpy() % 1.0
        volume = abs(np.linalg.det(cell))
        if not (np.isfinite(cell).all() and np.isfinite(pos).all() and volume > 1e-3):
            continue
        # Spacings of the lattice planes say how many images a sphere of r_max reaches.
        spacing = volume / np.linalg.norm(
            np.cross(np.roll(cell, -1, 0), np.roll(cell, -2, 0)), axis=1
        )
        reach = np.minimum(r_max / spacing + 0.5, 12).astype(int)
        shifts = np.stack(
            np.meshgrid(*(np.arange(-n, n + 1) for n in reach), indexing="ij"), -1
        ).reshape(-1, 3)
        nearest = pos[None] - pos[:, None]
        nearest -= nearest.round()
        difference = nearest[:, :, None] + shifts
        length = np.sqrt(((difference @ cell) ** 2).sum(-1)).ravel()
        itself = ((np.eye(len(pos), dtype=bool))[:, :, None] & (shifts == 0).all(-1)).ravel()
        length = length[~itself & (length <= r_max)]
        found.append(length)
        owner.append(np.full(len(length), number))
    if not found:
        return np.empty(0), np.empty(0, dtype=int)
    return np.concatenate(found), np.concatenate(owner)


@checked
def pair_distribution(
    sets: Mapping[str, CrystalBatch], r_max: float = 8.0, n_bins: int = 160
) -> go.Figure:
    """Pair distribution functions g(r): how often atoms are r apart, relative to an ideal gas.

    Args:
        sets: name -> structures, over which g(r) is averaged.
        r_max: largest distance, Å.
        n_bins: bins from 0 to `r_max`.

    Returns:
        A line per set; a set without a valid structure has none.

    Raises:
        ValueError: no set, or a range or number of bins that is not positive.
    """
    if not sets:
        raise ValueError("sets must hold at least one set of structures, got none")
    if not r_max > 0 or n_bins < 1:
        raise ValueError(f"r_max and n_bins must be positive, got {r_max!r} and {n_bins!r}")
    edges = np.linspace(0, r_max, n_bins + 1)
    shells = 4 / 3 * np.pi * np.diff(edges**3)
    figure = go.Figure()
    for (name, crystals), color in zip(sets.items(), COLORS * len(sets), strict=False):
        length, owner = distances_of(crystals, r_max)
        g = np.zeros(n_bins)
        used = np.unique(owner)
        n_atoms = crystals.n_atoms.cpu().double().numpy()
        volume = crystals.volume.detach().cpu().double().numpy()
        for number in used:
            counts = np.histogram(length[owner == number], edges)[0]
            density = n_atoms[number] / volume[number]
            g += counts / (n_atoms[number] * density * shells) / len(used)
        centers = (edges[1:] + edges[:-1]) / 2 if len(used) else np.empty(0)
        line = {"color": color, "width": 2}
        figure.add_scatter(x=centers, y=g[: len(centers)], mode="lines", name=name, line=line)
    figure.add_hline(1.0, line={"color": GREY, "dash": "dot", "width": 1})
    figure.update_xaxes(title="distance r, Å", range=[0, r_max])
    figure.update_yaxes(title="pair distribution g(r)", rangemode="tozero")
    figure.update_layout(showlegend=True)
    return style(figure, 420, legend_below=True)


@checked
def minimum_distances(
    sets: Mapping[str, Sequence[CrystalBatch]], times: ArrayLike | None = None
) -> go.Figure:
    """Smallest distance between atoms along trajectories: mean, and range of all structures.

    Args:
        sets: name -> states, each a batch of the same structures.
        times: of the states; None counts them.

    Raises:
        ValueError: no set, or one without states.
    """
    from irlkit.crystals.validity import check

    if not sets or not all(len(states) for states in sets.values()):
        raise ValueError("sets must hold at least one set, each with at least one state")
    figure = go.Figure()
    for (name, states), color in zip(sets.items(), COLORS * len(sets), strict=False):
        x = np.arange(len(states)) if times is None else as_numbers("times", times, len(states))
        rows = [
            pd.DataFrame({"x": x[i], "d": check(state, min_distance=20.0).min_distance})
            for i, state in enumerate(states)
        ]
        table = pd.concat(rows, ignore_index=True)
        table["d"] = table["d"].where(np.isfinite(table["d"]))
        figure.add_traces(line_with_band(table, "x", "d", name, color))
    figure.add_hline(
        0.5,
        line={"color": GREY, "dash": "dot", "width": 1},
        annotation={"text": "below: not valid", "yanchor": "bottom"},
    )
    figure.update_xaxes(title="step" if times is None else "time t")
    figure.update_yaxes(title="smallest distance, Å", rangemode="tozero")
    figure.update_layout(showlegend=True)
    return style(figure, 420, legend_below=True)
