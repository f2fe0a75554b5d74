"""Figures: from data to plotly, nothing else.

Every function takes tables or structures and returns a ``plotly.graph_objects.Figure``. Colours are
those of Okabe and Ito, which colour-blind people can tell apart; backgrounds are transparent and
grey is medium, so that figures are readable on light and dark pages. Where there are several seeds,
a line is their mean and its band reaches from the lowest to the highest. A table that lacks a
column, and a mapping or a table without an entry, raise a ValueError that says so.
"""

from irlkit.lab.plots.distances import minimum_distances, pair_distribution
from irlkit.lab.plots.distributions import distributions, group_advantages, reward_against
from irlkit.lab.plots.evaluation import metrics_vs_noise, metrics_vs_steps
from irlkit.lab.plots.flow import (
    densities,
    flow,
    interpolant_coefficients,
    loss_curve,
    velocity_field,
)
from irlkit.lab.plots.group import group
from irlkit.lab.plots.live import crystal_toolkit_view
from irlkit.lab.plots.periodic_table import periodic_table
from irlkit.lab.plots.schedules import annealing_schedules, noise_schedules, schedule_and_structures
from irlkit.lab.plots.search import parallel_coordinates, parameter_importance
from irlkit.lab.plots.structures import structure, structures
from irlkit.lab.plots.style import (
    BLUE,
    COLORS,
    FIELD_LABELS,
    GREY,
    METRIC_LABELS,
    RED,
    line_with_band,
    style,
)
from irlkit.lab.plots.sweeps import sweep_results, sweep_trials
from irlkit.lab.plots.training import grpo_diagnostics, training_curves
from irlkit.lab.plots.trajectories import group_trajectories, trajectories, trajectory_and_curves

__all__ = [
    "BLUE",
    "COLORS",
    "FIELD_LABELS",
    "GREY",
    "METRIC_LABELS",
    "RED",
    "annealing_schedules",
    "crystal_toolkit_view",
    "densities",
    "distributions",
    "flow",
    "group",
    "group_advantages",
    "group_trajectories",
    "grpo_diagnostics",
    "interpolant_coefficients",
    "line_with_band",
    "loss_curve",
    "metrics_vs_noise",
    "metrics_vs_steps",
    "minimum_distances",
    "noise_schedules",
    "pair_distribution",
    "parallel_coordinates",
    "parameter_importance",
    "periodic_table",
    "reward_against",
    "schedule_and_structures",
    "structure",
    "structures",
    "style",
    "sweep_results",
    "sweep_trials",
    "training_curves",
    "trajectories",
    "trajectory_and_curves",
    "velocity_field",
]
