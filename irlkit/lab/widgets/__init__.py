"""Explorers for people; they call ``irlkit.lab.plots`` and complete headless without anybody.

Each shows an ordinary figure that is complete and stays in the saved notebook, and controls below
it. When somebody moves one, a live figure takes the place of the other. Long work runs in a thread
of its own, which can be cancelled. Values are watched with ``observe``: widgets that capture output
can hang a headless run.
"""

from irlkit.flows.schedules import ControlPointAnnealing, ControlPointNoise
from irlkit.lab.widgets.schedule import NoiseExplorer, ScheduleExplorer
from irlkit.lab.widgets.training import TrainingDashboard
from irlkit.lab.widgets.trajectory import TrajectoryExplorer

__all__ = [
    "ControlPointAnnealing",
    "ControlPointNoise",
    "NoiseExplorer",
    "ScheduleExplorer",
    "TrainingDashboard",
    "TrajectoryExplorer",
]
