"""What the notebooks do, as functions: each notebook only calls, shows and explains."""

from irlkit.experiments.claims import Claim, claims_table
from irlkit.experiments.presets import PRESETS, Preset, Rung, resolve
from irlkit.experiments.results import write_results
from irlkit.experiments.velocity_annealing import VelocityAnnealing

__all__ = [
    "PRESETS",
    "Claim",
    "Preset",
    "Rung",
    "VelocityAnnealing",
    "claims_table",
    "resolve",
    "write_results",
]
