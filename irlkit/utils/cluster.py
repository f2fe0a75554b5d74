"""Ray, an optional extra: found when needed, without usage statistics, connected to once."""

from __future__ import annotations

import math
import os
from types import ModuleType
from typing import Any

# No usage statistics, and paths stay relative to where the work was started.
ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_CHDIR_TO_TRIAL_DIR": "0"}


def connect(
    address: str | None, n_workers: int, cpus: float, gpus: float
) -> tuple[ModuleType, bool]:
    """Return Ray, and whether this call has connected to a cluster: then ``shutdown`` is due.

    Args:
        address: of a cluster; None: a new one on this machine, large enough for the workers, which
            ends with the connection.
        n_workers: workers on a new cluster.
        cpus, gpus: of each worker.

    Raises:
        ImportError: Ray is not installed; says how to get it.
    """
    os.environ.update(ENVIRONMENT)
    try:
        import ray
    except ImportError as error:
        raise ImportError(
            "this needs Ray, which is not installed: pip install 'irlkit[ray]'"
        ) from error
    if ray.is_initialized():
        return ray, False
    options: dict[str, Any] = {"address": address, "runtime_env": {"env_vars": ENVIRONMENT}}
    if address is None:
        n_cpus, n_gpus = max(1, math.ceil(n_workers * cpus)), math.ceil(n_workers * gpus) or None
        options = {"num_cpus": n_cpus, "num_gpus": n_gpus, "include_dashboard": False}
    ray.init(log_to_driver=False, configure_logging=False, **options)
    return ray, True
