"""Hyperparameter sweeps (Appendix F): search spaces as data, Optuna's trials, run here or by Ray.

    irlkit sweeps run --policy annealing --out-dir runs/sweep --trials 40
    irlkit sweeps show runs/sweep

A sweep can be stopped at any moment and started again. Ray is an optional extra, ``irlkit[ray]``.
"""

from irlkit.lab.sweeps.objective import PolicyObjective
from irlkit.lab.sweeps.run import Objective, run_optuna, run_ray
from irlkit.lab.sweeps.spaces import SPACES, SearchSpace
from irlkit.lab.sweeps.study import Sweep, importance, open_study, trials_table

__all__ = [
    "SPACES",
    "Objective",
    "PolicyObjective",
    "SearchSpace",
    "Sweep",
    "importance",
    "open_study",
    "run_optuna",
    "run_ray",
    "trials_table",
]
