"""CrystalGym: skeletons whose sites are filled one by one, judged by a property.

The environment needs the extra `gym`; everything else here works without it.
"""

import importlib.util

from irlkit.envs import dft
from irlkit.envs._backends import Backend, CalculatorBackend, PotentialBackend
from irlkit.envs._benchmark import Comparison, benchmark
from irlkit.envs._cache import EvaluationCache
from irlkit.envs._choice import get_backend
from irlkit.envs._properties import TARGETS, BulkModulus, Property
from irlkit.envs._site_filling import SiteFilling, SiteFillingPolicy
from irlkit.envs._stability import PROPERTIES, EnergyAboveHull
from irlkit.envs.evaluation import Evaluations, Evaluator, PropertyReward
from irlkit.envs.skeletons import ELEMENTS, PROTOTYPES, UNSEEN, Skeletons

__all__ = [
    "ELEMENTS",
    "PROPERTIES",
    "PROTOTYPES",
    "TARGETS",
    "UNSEEN",
    "Backend",
    "BulkModulus",
    "CalculatorBackend",
    "Comparison",
    "EnergyAboveHull",
    "EvaluationCache",
    "Evaluations",
    "Evaluator",
    "PotentialBackend",
    "Property",
    "PropertyReward",
    "SiteFilling",
    "SiteFillingPolicy",
    "Skeletons",
    "benchmark",
    "dft",
    "get_backend",
]

if importlib.util.find_spec("gymnasium") is not None:
    import gymnasium

    gymnasium.register(
        "irlkit/CrystalGym-v0",
        entry_point="irlkit.envs._crystal_gym:CrystalGym",
        vector_entry_point="irlkit.envs._crystal_gym:CrystalGymVector",
    )
