"""irlkit: inference-time reinforcement learning on generative models of crystals."""

from typing import TYPE_CHECKING

import irlkit._heap
import irlkit._home
import irlkit._waiting  # noqa: F401  # before anything imports torch
from irlkit._lazy import from_homes

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

__getattr__ = from_homes(globals(), _HOMES)
