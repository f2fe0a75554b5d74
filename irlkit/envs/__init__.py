"""CrystalGym: skeletons whose sites are filled one by one, judged by a property.

The environment needs the extra `gym`; everything else here works without it.
"""

from irlkit.envs import dft
from irlkit.envs._backends import Backend, CalculatorBackend, PotentialBackend
from irlkit.envs._cache import EvaluationCache
from irlkit.envs._choice import get_backend
from irlkit.envs._properties import PROPERTIES, TARGETS, BulkModulus, Property
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
    "EvaluationCache",
    "Evaluations",
    "Evaluator",
    "PotentialBackend",
    "Property",
    "PropertyReward",
    "Skeletons",
    "dft",
    "get_backend",
]
