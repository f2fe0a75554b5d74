"""irlkit: inference-time reinforcement learning on generative models of crystals."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import irlkit._heap
import irlkit._home
import irlkit._waiting  # noqa: F401  # before anything imports torch

if TYPE_CHECKING:
    from irlkit.crystals import CrystalBatch
    from irlkit.networks.flow_model import FlowModel
    from irlkit.networks.omatg import load_omatg
    from irlkit.networks.pretrained import load_pretrained

__version__ = "0.1.0"
__all__ = ["CrystalBatch", "FlowModel", "load_omatg", "load_pretrained"]

_HOMES = {
    "CrystalBatch": "irlkit.crystals",
    "FlowModel": "irlkit.networks.flow_model",
    "load_omatg": "irlkit.networks.omatg",
    "load_pretrained": "irlkit.networks.pretrained",
}
"""Imported when first asked for: worker processes, which need no torch, start without it."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value
