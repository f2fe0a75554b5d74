"""Annealings as files and as plain data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize_tensors
from torch import Tensor

from irlkit.flows.schedules.annealing import (
    Annealing,
    LearnedAnnealing,
    LinearAnnealing,
    NoAnnealing,
)
from irlkit.flows.schedules.control_points import ControlPointAnnealing
from irlkit.flows.schedules.grid import load_weights, weights_to_dict
from irlkit.utils.checks import checked
from irlkit.utils.system import write_atomically

_FORMAT = "irlkit-annealing"
_KINDS = {
    cls.__name__: cls
    for cls in (NoAnnealing, LinearAnnealing, LearnedAnnealing, ControlPointAnnealing)
}


@checked
def save_annealing(
    annealing: Annealing, path: str | Path, metadata: Mapping[str, object] | None = None
) -> None:
    """Write an annealing as safetensors; the file is complete or absent, never half-written.

    Args:
        annealing: ``NoAnnealing``, ``LinearAnnealing``, ``LearnedAnnealing`` or
            ``ControlPointAnnealing``.
        path: file to write.
        metadata: anything JSON can hold, kept beside the weights (what it was trained on, ...).

    Raises:
        ValueError: another kind of annealing, or metadata that JSON cannot hold.
    """
    kind = type(annealing).__name__
    if isinstance(annealing, LearnedAnnealing):
        arguments = annealing.hyperparameters
        tensors = {k: v.detach().cpu().contiguous() for k, v in annealing.state_dict().items()}
    elif isinstance(annealing, NoAnnealing | LinearAnnealing | ControlPointAnnealing):
        arguments = asdict(annealing)
        # A file without tensors is not readable everywhere.
        values = [torch.tensor(v, dtype=torch.float64).reshape(-1) for v in arguments.values()]
        tensors = {"arguments": torch.cat([torch.zeros(0, dtype=torch.float64), *values])}
    else:
        raise ValueError(f"annealing must be one of {sorted(_KINDS)} to be saved, got {kind}")
    header = {"format": _FORMAT, "kind": kind, "arguments": arguments, "metadata": metadata or {}}
    try:
        description = json.dumps(header)
    except TypeError as error:
        raise ValueError(f"metadata must be what JSON can hold: {error}") from error
    write_atomically(path, serialize_tensors(tensors, {"irlkit": description}))


def annealing_to_dict(annealing: Annealing) -> dict[str, Any]:
    """An annealing as JSON can hold it, weights included.

    Raises:
        ValueError: another kind of annealing.
    """
    kind = type(annealing).__name__
    if isinstance(annealing, LearnedAnnealing):
        return {
            "kind": kind,
            "arguments": annealing.hyperparameters,
            **weights_to_dict(annealing),
        }
    if isinstance(annealing, NoAnnealing | LinearAnnealing | ControlPointAnnealing):
        return {"kind": kind, "arguments": asdict(annealing)}
    raise ValueError(f"annealing must be one of {sorted(_KINDS)} to be saved, got {kind}")


@checked
def annealing_from_dict(data: Mapping[str, Any]) -> Annealing:
    """Inverse of ``annealing_to_dict``.

    Raises:
        ValueError: an unknown kind, or what is there does not make an annealing of it.
    """
    kind = str(data.get("kind"))
    if kind not in _KINDS:
        raise ValueError(f"annealing: the data are of an unknown kind {kind!r}")
    try:
        annealing = _KINDS[kind](**data["arguments"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"annealing: the description of {kind} is wrong: {error}") from error
    if isinstance(annealing, LearnedAnnealing):
        load_weights(annealing, data)
    return annealing


@checked
def load_annealing(path: str | Path) -> Annealing:
    """Read what ``save_annealing`` wrote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is no annealing of this package.
    """
    header, tensors = _read(path)
    try:
        annealing = _KINDS[header["kind"]](**header["arguments"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: the description of the annealing is wrong: {error}") from error
    if not isinstance(annealing, LearnedAnnealing):
        return annealing
    try:
        annealing = annealing.to(next(iter(tensors.values())).dtype)
        annealing.load_state_dict(tensors)
    except (RuntimeError, StopIteration, TypeError) as error:
        raise ValueError(f"{path}: weights and arguments disagree: {error}") from error
    return annealing


@checked
def read_annealing_metadata(path: str | Path) -> dict[str, object]:
    """The metadata that was given to ``save_annealing``."""
    return _read(path)[0]["metadata"]


def _read(path: str | Path) -> tuple[dict, dict[str, Tensor]]:
    if not Path(path).is_file():
        raise FileNotFoundError(f"no annealing file at {path}")
    wrong = f"{path} is not an annealing written by save_annealing"
    try:
        with safe_open(str(path), "pt") as file:
            header = json.loads((file.metadata() or {}).get("irlkit", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (RecursionError, SafetensorError, ValueError) as error:
        raise ValueError(f"{wrong}: {error}") from error
    if not isinstance(header, dict) or header.get("format") != _FORMAT:
        raise ValueError(f"{wrong}: it carries no '{_FORMAT}' header")
    if header.get("kind") not in _KINDS:
        raise ValueError(f"{path}: unknown kind of annealing {header.get('kind')!r}")
    return header, tensors
