"""Conversion of published composition networks to the package's form.

The wheel of mattervial (MIT) holds two Roost networks, of band gaps of the Materials Project and of
formation energies of the OQMD, as pickles. Their tensors are read by a loader that makes nothing
else; what is kept is in `irlkit.networks.composition`'s names.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pymatgen.core import Element
from torch import Tensor

from irlkit.networks.composition import CompositionNetwork

_FOLDER = "mattervial/featurizers/custom_models/"
_FILES = {
    "band-gap": "mpgap_checkpoint-r0.pth.tar",
    "formation-energy": "oqmd_eform_checkpoint-r0.pth.tar",
}
_NAMES = (
    (r"^material_nn\.embedding", "embed"),
    (r"^material_nn\.graphs\.(\d)\.pooling\.(\d)", r"layers.\1.\2"),
    (r"^material_nn\.cry_pool\.(\d)", r"pool.\1"),
    (r"\.pow$", ".power"),
    (r"(gate|message)_nn\.fcs\.0", r"\1.0"),
    (r"(gate|message)_nn\.fc_out", r"\1.2"),
    (r"^trunk_nn", "trunk"),
    (r"^output_nns\.0", "head"),
    (r"\.res_fcs\.", ".skips."),
    (r"\.fcs\.", ".layers."),
    (r"\.fc_out\.", ".last."),
)


def convert(wheel: str | Path, name: str) -> dict[str, Tensor]:
    """Read a network's parameters from the wheel.

    Args:
        wheel: path of mattervial 0.1.5.
        name: "band-gap" or "formation-energy".

    Returns:
        The state of a `CompositionNetwork`.
    """
    with zipfile.ZipFile(wheel) as files:
        content = files.read(_FOLDER + _FILES[name])
        embedding = json.loads(files.read(_FOLDER + "matscholar-embedding.json"))
    # The best validation score is a NumPy scalar; everything else is tensors and plain values.
    scalar = np.float32(0).__reduce__()[0]
    allowed: list[Any] = [
        (scalar, "numpy.core.multiarray.scalar"),
        np.dtype,
        type(np.dtype("float32")),
    ]
    with torch.serialization.safe_globals(allowed):
        checkpoint = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    state = {}
    for key, value in checkpoint["state_dict"].items():
        for pattern, ours in _NAMES:
            key = re.sub(pattern, ours, key)
        state[key] = value
    features = torch.full((118, len(next(iter(embedding.values())))), torch.nan)
    for symbol, values in embedding.items():
        if Element.is_valid_symbol(symbol) and Element(symbol).Z <= 118:
            features[Element(symbol).Z - 1] = torch.tensor(values)
    (normal,) = checkpoint["normalizer_dict"].values()
    state |= {"features": features, "scale": torch.stack([normal["mean"], normal["std"]])}
    CompositionNetwork(features.shape[1]).load_state_dict(state)
    return state
