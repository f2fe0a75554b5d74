"""Hyperparameter sweeps (Appendix F): search spaces as data, run by Optuna or Ray Tune.

    python -m irlkit.sweeps run --policy annealing --out-dir runs/sweep --trials 40
    python -m irlkit.sweeps show runs/sweep

A sweep can be stopped at any moment and started again. Optuna and Ray are optional extras,
``irlkit[sweeps]`` and ``irlkit[ray]``; a sweep is read without either.
"""

from irlkit.sweeps.analysis import importance
from irlkit.sweeps.objective import PolicyObjective, TrainingSettings
from irlkit.sweeps.optuna_backend import run_optuna
from irlkit.sweeps.ray_backend import run_ray
from irlkit.sweeps.spaces import POLICIES, SPACES, Choice, SearchSpace, Uniform
from irlkit.sweeps.store import SweepFolder, TrialRecord
from irlkit.sweeps.trial import Objective, Pruned

__all__ = [
    "POLICIES",
    "SPACES",
    "Choice",
    "Objective",
    "PolicyObjective",
    "Pruned",
    "SearchSpace",
    "SweepFolder",
    "TrainingSettings",
    "TrialRecord",
    "Uniform",
    "importance",
    "run_optuna",
    "run_ray",
]
