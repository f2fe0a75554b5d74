"""Ray, an optional extra: found when needed, without usage statistics, connected to once."""

from __future__ import annotations

import math
import os
from types import ModuleType

# No usage statistics, and paths stay relative to where the work was started.
ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_CHDIR_TO_TRIAL_DIR": "0"}


def import_ray() -> ModuleType:
    """Ray, without usage statistics.

    Raises:
        ImportError: it is not installed; says how to get it.
    """
    os.environ.update(ENVIRONMENT)
    try:
        import ray
    except ImportError as error:
        raise ImportError(
            "this needs Ray, which is not installed: pip install 'irlkit[ray]'"
        ) from error
    return ray


def connect(ray: ModuleType, address: str | None, n_workers: int, cpus: float, gpus: float) -> bool:
    """Connect this process to a cluster, if it is not connected yet.

    Args:
        ray: the module.
        address: of a cluster; None: a new one on this machine, large enough for the workers, which
            ends with the connection.
        n_workers: workers on a new cluster.
        cpus, gpus: of each worker.

    Returns:
        Whether this call has connected, and the caller has to call ``ray.shutdown``.
    """
    if ray.is_initialized():
        return False
    if address is None:
        ray.init(
            num_cpus=max(1, math.ceil(n_workers * cpus)),
            num_gpus=math.ceil(n_workers * gpus) or None,
            include_dashboard=False,
            log_to_driver=False,
            configure_logging=False,
        )
    else:
        ray.init(
            address=address,
            log_to_driver=False,
            configure_logging=False,
            runtime_env={"env_vars": ENVIRONMENT},
        )
    return True
