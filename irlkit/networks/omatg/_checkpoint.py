"""Lightning checkpoints of OMatG, read without Lightning and without executing anything."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from irlkit.networks.cspnet import CSPNet
from irlkit.utils.checks import checked
from irlkit.utils.foreign import load_plain

PREFIX = "model.encoder."
"""Where a checkpoint keeps the network."""

# DiffCSP's network makes so many layers before OMatG's replaces them.
N_PLACEHOLDER_LAYERS = 4


def _allowed_classes() -> list[Any]:
    """What a Lightning checkpoint may hold besides tensors and plain data; none of it acts."""
    scalar = np.float64(0).__reduce__()[0]
    dtypes = [type(np.dtype(kind)) for kind in (bool, np.int32, np.int64, np.float32, np.float64)]
    return [
        # Lightning's dictionaries with attributes, as dictionaries.
        (dict, "lightning.fabric.utilities.data.AttributeDict"),
        (dict, "lightning_fabric.utilities.data.AttributeDict"),
        (dict, "pytorch_lightning.utilities.parsing.AttributeDict"),
        # Paths that cannot touch a file, whatever system they were stored on.
        (PurePosixPath, "pathlib.PosixPath"),
        (PurePosixPath, "pathlib._local.PosixPath"),
        (PureWindowsPath, "pathlib.WindowsPath"),
        (PureWindowsPath, "pathlib._local.WindowsPath"),
        np.dtype,
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
        *dtypes,
    ]


@checked
def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a Lightning checkpoint without executing anything in it.

    Args:
        path: file made by `torch.save`.

    Returns:
        Its content; `state_dict` is a mapping from names to tensors on the CPU.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is no checkpoint, is broken, or holds an object that is not plain data,
            which is named.
    """
    source = Path(path)
    if not source.is_file():
        raise FileNotFoundError(f"checkpoint: no file at {source}")
    try:
        with torch.serialization.safe_globals(_allowed_classes()):
            content = load_plain(source)
    except ValueError as error:
        raise ValueError(f"checkpoint: {source} cannot be read as a checkpoint: {error}") from error
    state = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        found = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"checkpoint: {source} has no state_dict of tensors, found {found}")
    return content


def network_weights(state: Mapping[str, Tensor], network: CSPNet) -> dict[str, Tensor]:
    """Return the tensors for a network, checked against its sizes.

    Args:
        state: state dictionary of an OMatG checkpoint.
        network: with denoiser, of the sizes that a configuration asks for.

    Raises:
        ValueError: a tensor is missing, has another shape, or belongs to nothing.
    """
    weights = {
        name.removeprefix(PREFIX): value for name, value in state.items() if name.startswith(PREFIX)
    }
    if not weights:
        raise ValueError(
            f"checkpoint: no tensor of its state is named {PREFIX}...; found {sorted(state)[:3]}. "
            "It must be one of an OMatG model with the encoder CSPNetFull"
        )
    expected = network.state_dict()
    problems = []
    for name, value in expected.items():
        if name not in weights:
            problems.append(f"{PREFIX}{name} is missing")
        elif weights[name].shape != value.shape:
            problems.append(
                f"{PREFIX}{name} has shape {tuple(weights[name].shape)}, the configuration asks "
                f"for {tuple(value.shape)}"
            )
    for name, value in weights.items():
        if name in expected or name.startswith("type_out"):
            continue
        layer = re.match(r"csp_layer_(\d+)\.(.*)", name)
        if layer and network.n_layers <= int(layer[1]) < N_PLACEHOLDER_LAYERS:
            used = weights.get(f"csp_layer_0.{layer[2]}")
            if used is None or used.shape != value.shape or "edge_mlp" not in name:
                continue
        problems.append(f"{PREFIX}{name} belongs to nothing that the configuration asks for")
    others = [name for name in state if name.startswith("model.") and not name.startswith(PREFIX)]
    problems += [f"{name} is of a part that is not supported" for name in others]
    if problems:
        more = f"; and {len(problems) - 4} more" if len(problems) > 4 else ""
        shown = "; ".join(problems[:4]) + more
        raise ValueError(
            f"checkpoint and config do not fit each other: {shown}. The configuration's sizes are "
            f"{network.sizes}"
        )
    return {name: weights[name] for name in expected}
