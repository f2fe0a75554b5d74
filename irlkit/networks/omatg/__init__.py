"""Published OMatG models: a Lightning checkpoint and its YAML configuration become a `FlowModel`.

Neither Lightning, torch-scatter nor OMatG is needed. Checkpoints are pickles; they are read with
torch's weights-only reader, which executes nothing.

| OMatG's configuration | here |
|---|---|
| `stochastic_interpolants` | `FlowModel.interpolants` |
| `sampler` | `FlowModel.base` |
| `encoder`, `time_embedder` | sizes of `FlowModel.network` |
| `epsilon`, `integration_time_steps`, ... | `FlowModel.info["omatg"]` |
"""

from irlkit.networks.omatg._checkpoint import network_weights, read_checkpoint
from irlkit.networks.omatg._config import OMatGConfig, read_config
from irlkit.networks.omatg._generation import dynamics_of
from irlkit.networks.omatg._loading import find_model, load_omatg

__all__ = [
    "OMatGConfig",
    "dynamics_of",
    "find_model",
    "load_omatg",
    "network_weights",
    "read_checkpoint",
    "read_config",
]
