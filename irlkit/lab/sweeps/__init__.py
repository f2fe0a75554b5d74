"""Hyperparameter sweeps (Appendix F): search spaces as data, run by Optuna or Ray Tune.

    python -m irlkit.lab.sweeps run --policy annealing --out-dir runs/sweep --trials 40
    python -m irlkit.lab.sweeps show runs/sweep

A sweep can be stopped at any moment and started again. Optuna and Ray are optional extras,
``irlkit[sweeps]`` and ``irlkit[ray]``; a sweep is read without either.
"""

from irlkit.lab.sweeps.analysis import importance
from irlkit.lab.sweeps.objective import PolicyObjective, TrainingSettings
from irlkit.lab.sweeps.optuna_backend import run_optuna
from irlkit.lab.sweeps.ray_backend import run_ray
from irlkit.lab.sweeps.spaces import POLICIES, SPACES, Choice, SearchSpace, Uniform
from irlkit.lab.sweeps.store import SweepFolder, TrialRecord
from irlkit.lab.sweeps.trial import Objective, Pruned

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
