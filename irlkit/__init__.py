"""irlkit: inference-time reinforcement learning on generative models of crystals."""

import irlkit._waiting  # noqa: F401  # before anything imports torch
from irlkit.crystals import CrystalBatch
from irlkit.networks.flow_model import FlowModel
from irlkit.networks.omatg import load_omatg
from irlkit.networks.pretrained import load_pretrained

__version__ = "0.1.0"
__all__ = ["CrystalBatch", "FlowModel", "load_omatg", "load_pretrained"]
