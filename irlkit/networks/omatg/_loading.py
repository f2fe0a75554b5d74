"""From files to a `FlowModel`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from irlkit.networks.cspnet import CSPNet
from irlkit.networks.flow_model import FlowModel
from irlkit.networks.omatg._checkpoint import PREFIX, network_weights, read_checkpoint
from irlkit.networks.omatg._config import read_config
from irlkit.utils.checks import checked
from irlkit.utils.settings import torch_settings


@checked
@torch_settings(plain=True)
def load_omatg(
    checkpoint: str | os.PathLike[str],
    config: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> FlowModel:
    """Load a published OMatG model for crystal structure prediction or de novo generation.

    Args:
        checkpoint: lightning checkpoint (`.ckpt`); a folder with one; or the name of a downloaded
            model, such as "omatg/MP-20-CSP/Linear-ODE" (see `irlkit.networks.omatg.download`).
        config: the YAML configuration that the model was trained with; None takes the one in the
            checkpoint's folder.
        device: where to put the weights.
        dtype: of the weights; None keeps the checkpoint's.

    Returns:
        Model in evaluation mode. `info["omatg"]` holds the settings of `OMatGConfig.settings`;
        `dynamics_of` generates with them.

    Raises:
        FileNotFoundError: a file is missing; for the name of a model, how to get it.
        ImportError: PyYAML is not installed.
        ValueError: a file cannot be read or is refused; the configuration needs something that is
            not supported; or configuration and checkpoint do not fit each other. Each is named.
    """
    path = find_model(checkpoint)
    if path.is_dir():
        path = _only(path, ("*.ckpt",), "checkpoint")
    if config is None:
        config = _only(path.parent, ("*.yaml", "*.yml"), "config")
    parsed = read_config(config)
    content = read_checkpoint(path)
    sizes = parsed.network
    embedded = content["state_dict"].get(f"{PREFIX}node_embedding.weight")
    if parsed.species is not None and embedded is not None:
        # With the uniform base, the row of the mask is there or not.
        masked = parsed.species.base == "mask" or len(embedded) > sizes["n_species"]
        sizes = {**sizes, "mask_token": masked}
    with torch.random.fork_rng(devices=[]):  # the weights that are drawn here are replaced
        network = CSPNet(**sizes, denoiser=True)
    weights = network_weights(content["state_dict"], network)
    dtype = dtype or next(iter(weights.values())).dtype
    network.load_state_dict({k: v.to(device, dtype) for k, v in weights.items()}, assign=True)
    settings = {**parsed.settings, "checkpoint": path.name}
    for name in ("epoch", "global_step"):
        if isinstance(content.get(name), int):
            settings[name] = content[name]
    model = FlowModel(
        network,
        parsed.interpolants,
        parsed.base,
        {"name": path.parent.name or path.stem, "source": "OMatG", "omatg": settings},
        parsed.species,
    )
    return model.eval()


def find_model(name_or_path: str | os.PathLike[str]) -> Path:
    """Return the file or folder of a checkpoint, or of a model that has been downloaded."""
    path = Path(name_or_path).expanduser()
    if path.exists() or not str(name_or_path).startswith("omatg/"):
        return path
    # Here, as `python -m irlkit.networks.omatg.download` warns where it has been imported before.
    from irlkit.networks.omatg.download import find_downloaded

    return find_downloaded(str(name_or_path))


def _only(folder: Path, patterns: tuple[str, ...], what: str) -> Path:
    """The one file in a folder that fits."""
    found = sorted(path for pattern in patterns for path in folder.glob(pattern))
    if len(found) == 1:
        return found[0]
    if not found:
        raise FileNotFoundError(f"{what}: no file {' or '.join(patterns)} in {folder}")
    names = ", ".join(path.name for path in found)
    raise ValueError(f"{what}: name one of the files in {folder}: {names}")
