"""What the notebooks do, as functions: each notebook only calls, shows and explains."""

from irlkit.lab.experiments.claims import Claim, claims_table
from irlkit.lab.experiments.energy_reinforcement import EnergyReinforcement
from irlkit.lab.experiments.estimate import estimate
from irlkit.lab.experiments.noise_schedules import NoiseSchedules
from irlkit.lab.experiments.presets import (
    AnnealingPreset,
    EnergyPreset,
    NoisePreset,
    Rung,
    SweepPreset,
    Variant,
    presets,
    resolve,
)
from irlkit.lab.experiments.sweep_experiment import SweepExperiment
from irlkit.lab.experiments.velocity_annealing import VelocityAnnealing

__all__ = [
    "AnnealingPreset",
    "Claim",
    "EnergyPreset",
    "EnergyReinforcement",
    "NoisePreset",
    "NoiseSchedules",
    "Rung",
    "SweepExperiment",
    "SweepPreset",
    "Variant",
    "VelocityAnnealing",
    "claims_table",
    "estimate",
    "presets",
    "resolve",
]
