"""Schedules over time: noise sigma(t) and velocity annealing s(t).

A noise schedule maps a time to the noise scale of the dynamics (Eqs. 7, 13, 14). An annealing maps
a time and a step size to one scalar ``s`` per field; it multiplies a velocity by ``1 + s`` (15).
"""

from irlkit.flows.schedules.annealing import (
    Annealing,
    LearnedAnnealing,
    LinearAnnealing,
    NoAnnealing,
    annealing_on_grid,
)
from irlkit.flows.schedules.control_points import ControlPointAnnealing, ControlPointNoise
from irlkit.flows.schedules.endpoint import EndpointAnnealing
from irlkit.flows.schedules.files import (
    ANNEALINGS,
    NOISES,
    load_annealing,
    read_annealing_metadata,
    save_annealing,
)
from irlkit.flows.schedules.grid import FIELD_NAMES, check_n_steps, time_grid
from irlkit.flows.schedules.noise import (
    ConstantNoise,
    LearnedNoise,
    NoiseSchedule,
    ScaledNoise,
    SquareRootNoise,
)
from irlkit.flows.schedules.state import StateAnnealing

__all__ = [
    "ANNEALINGS",
    "FIELD_NAMES",
    "NOISES",
    "Annealing",
    "ConstantNoise",
    "ControlPointAnnealing",
    "ControlPointNoise",
    "EndpointAnnealing",
    "LearnedAnnealing",
    "LearnedNoise",
    "LinearAnnealing",
    "NoAnnealing",
    "NoiseSchedule",
    "ScaledNoise",
    "SquareRootNoise",
    "StateAnnealing",
    "annealing_on_grid",
    "check_n_steps",
    "load_annealing",
    "read_annealing_metadata",
    "save_annealing",
    "time_grid",
]
