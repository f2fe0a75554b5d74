"""Models by name or path: those that come with the package, published ones, and files."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from irlkit.networks import _files
from irlkit.networks.flow_model import FlowModel
from irlkit.networks.omatg import load_omatg
from irlkit.utils.checks import checked
from irlkit.utils.settings import torch_settings

PRETRAINED = Path(__file__).parents[1] / "assets"


def pretrained_names() -> list[str]:
    """List the names of the models that come with the package.

    >>> pretrained_names()
    ['denovo-mask', 'linear-ode', 'linear-ode-28', 'trig-sde-gamma']
    """
    return sorted(path.stem for path in PRETRAINED.glob("*.safetensors"))


@checked
@torch_settings(plain=True)
def load_pretrained(
    name_or_path: str | os.PathLike[str], device: str | torch.device = "cpu"
) -> FlowModel:
    """Load a model that comes with the package, a published one, or a checkpoint from a path.

    Args:
        name_or_path: for instance "linear-ode"; a safetensors file written by `FlowModel.save`; a
            downloaded model of OMatG, such as "omatg/MP-20-CSP/Linear-ODE"; or a `.ckpt` of
            OMatG, or its folder, with the configuration beside it (see `irlkit.load_omatg`).
        device: where to put the weights.

    Returns:
        Model in evaluation mode.

    Raises:
        FileNotFoundError: neither a shipped model nor a file, or not downloaded; the message says
            how to get it.
        ValueError: the file is not a checkpoint of this package or of OMatG.
    """
    if _is_omatg(name_or_path):
        return load_omatg(name_or_path, device=device)
    # Those of the other family are told apart by their content.
    found = (_files.shipped(name_or_path, folder) for folder in (".", "latent"))
    file = next((path for path in found if path.is_file()), None)
    if file is None:
        raise FileNotFoundError(
            f"name_or_path: {str(name_or_path)!r} is neither a file nor one of the models in the "
            f"package, {pretrained_names()}"
        )
    return FlowModel.load(file, device)


def _is_omatg(name_or_path: str | os.PathLike[str]) -> bool:
    """Whether it is a published model's name, a Lightning checkpoint, or a folder with one."""
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return any(path.glob("*.ckpt"))
    return path.suffix == ".ckpt" or str(name_or_path).startswith("omatg/")
