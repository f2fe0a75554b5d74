"""What the notebooks do, as functions: each notebook only calls, shows and explains."""

from irlkit.lab.experiments.claims import Claim, claims_table
from irlkit.lab.experiments.energy_presets import (
    ENERGY_PRESETS,
    EnergyPreset,
    Variant,
    resolve_energy,
)
from irlkit.lab.experiments.energy_reinforcement import EnergyReinforcement
from irlkit.lab.experiments.estimate import estimate
from irlkit.lab.experiments.noise_presets import NOISE_PRESETS, NoisePreset, resolve_noise
from irlkit.lab.experiments.noise_schedules import NoiseSchedules
from irlkit.lab.experiments.presets import PRESETS, Preset, Rung, resolve
from irlkit.lab.experiments.results import write_results
from irlkit.lab.experiments.sweep_experiment import (
    SWEEP_PRESETS,
    SweepExperiment,
    SweepPreset,
    resolve_sweep,
)
from irlkit.lab.experiments.velocity_annealing import VelocityAnnealing

__all__ = [
    "ENERGY_PRESETS",
    "NOISE_PRESETS",
    "PRESETS",
    "SWEEP_PRESETS",
    "Claim",
    "EnergyPreset",
    "EnergyReinforcement",
    "NoisePreset",
    "NoiseSchedules",
    "Preset",
    "Rung",
    "SweepExperiment",
    "SweepPreset",
    "Variant",
    "VelocityAnnealing",
    "claims_table",
    "estimate",
    "resolve",
    "resolve_energy",
    "resolve_noise",
    "resolve_sweep",
    "write_results",
]
