"""Explorers for people; they call ``irlkit.plots`` and complete headless without anybody.

Each shows an ordinary figure that is complete and stays in the saved notebook, and controls below
it. A live figure appears when somebody moves one, and long work runs in a thread of its own, which
can be cancelled. Values are watched with ``observe``: widgets that capture output can hang a
headless run.
"""

from irlkit.schedules import ControlPointAnnealing, ControlPointNoise
from irlkit.widgets.group import GroupExplorer
from irlkit.widgets.schedule import NoiseExplorer, ScheduleExplorer
from irlkit.widgets.training import TrainingDashboard
from irlkit.widgets.trajectory import TrajectoryExplorer

__all__ = [
    "ControlPointAnnealing",
    "ControlPointNoise",
    "GroupExplorer",
    "NoiseExplorer",
    "ScheduleExplorer",
    "TrainingDashboard",
    "TrajectoryExplorer",
]
