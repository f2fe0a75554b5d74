"""Networks with a description in one safetensors file, which is read without executing anything."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from irlkit.utils.foreign import load_tensors
from irlkit.utils.system import write_atomically

M = TypeVar("M", bound=nn.Module)
KINDS = {
    "irlkit-flow-model-1": "a flow model: irlkit.load_pretrained reads it",
    "irlkit-autoencoder-1": "an autoencoder of crystals: Autoencoder.load reads it",
    "irlkit-latent-diffusion-1": "a latent diffusion: LatentDiffusion.load reads it",
}
"""Format -> what such a file is, for whoever reads it as another."""


class _AnotherFile(ValueError):
    """A file of this package that something else reads."""


def write(
    path: str | os.PathLike[str],
    model: nn.Module,
    description: Mapping[str, Any],
    leave_out: str = "-",
) -> None:
    """Write weights and description, whose "format" is one of `KINDS`, to a file.

    Weights whose name begins with `leave_out` are not written: the description says where they are.

    Raises:
        ValueError: the description, or the metadata in it, is nothing that JSON can hold.
    """
    from safetensors.torch import save

    tensors = {
        name: value.detach().cpu().contiguous()
        for name, value in model.state_dict().items()
        if not name.startswith(leave_out)
    }
    try:
        header = json.dumps(description)
    except TypeError as error:
        raise ValueError(
            f"metadata (a model's info) must be what JSON can hold: {error}"
        ) from error
    write_atomically(path, save(tensors, metadata={"irlkit": header}))


def shipped(path: str | os.PathLike[str], folder: str) -> Path:
    """Return the file that a name stands for in a folder of the package's assets, else the path."""
    file = Path(__file__).parents[1] / "assets" / folder / f"{path}.safetensors"
    return file if os.sep not in str(path) and file.is_file() else Path(path)


def read(
    path: str | os.PathLike[str],
    kind: str,
    build: Callable[[dict[str, Any]], M],
    device: str | torch.device = "cpu",
    writer: str = "FlowModel.save",
    left_out: Callable[[dict[str, Any]], str] = lambda description: "-",
) -> M:
    """Read a model that `write` wrote, in evaluation mode; half-precision weights become float32.

    Args:
        path: file.
        kind: expected format.
        build: makes the model of its description, with any weights but those that were left out.
        device: where to put the weights.
        writer: what writes such files, for messages.
        left_out: how the names of weights begin that a file of this description does not have.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a checkpoint of this kind, or its tensors do not fit.
    """
    source = Path(path)
    if not source.is_file():
        raise FileNotFoundError(f"path: no checkpoint at {source}")
    try:
        header, tensors = load_tensors(source)
    except ValueError as error:
        raise ValueError(
            f"path: {source} is not a safetensors checkpoint ({error}); expected a file written by "
            f"{writer}"
        ) from error
    try:
        description = json.loads(header)
        if "annealing" in description:
            other = f"path: {source} holds no network, it is an annealing: load_annealing reads it"
            raise _AnotherFile(other)
        found = description["format"]
        if found != kind:
            named = KINDS.get(found) if isinstance(found, str) else None
            said = f"it is {named}" if named else f"format {found!r}"
            raise ValueError(f"{said}, expected {kind!r}")
        model = build(description)
    except _AnotherFile:
        raise
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(
            f"path: {source} is a safetensors file, but not a model of this package "
            f"({type(error).__name__}: {error})"
        ) from error
    try:
        dtype = next(iter(tensors.values())).dtype if tensors else None
        model.to(torch.float32 if dtype == torch.float16 else dtype)
        elsewhere = left_out(description)
        kept = {k: v for k, v in model.state_dict().items() if k.startswith(elsewhere)}
        model.load_state_dict({**kept, **tensors})
    except RuntimeError as error:
        raise ValueError(
            f"path: the tensors in {source} do not fit its description: {error}"
        ) from error
    return model.to(device).eval()
