"""Which schedules there are, and annealings as files.

A new schedule is a file and an entry of `ANNEALINGS` or `NOISES`: a frozen dataclass, or a module
whose ``arguments`` are those of its constructor.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as serialize_tensors
from torch import Tensor, nn

from irlkit.flows._plain import by_name, from_plain, to_plain
from irlkit.flows.schedules.annealing import (
    Annealing,
    LearnedAnnealing,
    LinearAnnealing,
    NoAnnealing,
)
from irlkit.flows.schedules.control_points import ControlPointAnnealing, ControlPointNoise
from irlkit.flows.schedules.endpoint import EndpointAnnealing
from irlkit.flows.schedules.noise import ConstantNoise, LearnedNoise, ScaledNoise, SquareRootNoise
from irlkit.flows.schedules.state import StateAnnealing
from irlkit.utils.checks import checked
from irlkit.utils.foreign import load_tensors
from irlkit.utils.system import write_atomically

ANNEALINGS = by_name(
    NoAnnealing,
    LinearAnnealing,
    LearnedAnnealing,
    ControlPointAnnealing,
    EndpointAnnealing,
    StateAnnealing,
)
NOISES = by_name(ConstantNoise, SquareRootNoise, ScaledNoise, LearnedNoise, ControlPointNoise)
_FORMAT = "irlkit-annealing-2"


@checked
def save_annealing(
    annealing: Annealing | StateAnnealing,
    path: str | Path,
    metadata: Mapping[str, object] | None = None,
) -> None:
    """Write an annealing as safetensors; the file is complete or absent, never half-written.

    Args:
        annealing: of a kind of `ANNEALINGS`.
        path: file to write.
        metadata: anything JSON can hold, kept beside the weights (what it was trained on, ...).

    Raises:
        ValueError: another kind of annealing, or metadata that JSON cannot hold.
    """
    data = to_plain(annealing, ANNEALINGS)
    tensors = {"none": torch.zeros(1)}  # A file without tensors is not readable everywhere.
    if isinstance(annealing, nn.Module):
        del data["weights"]
        tensors = {k: v.detach().cpu().contiguous() for k, v in annealing.state_dict().items()}
    try:
        header = {"format": _FORMAT, "annealing": data, "metadata": metadata or {}}
        description = json.dumps(header)
    except TypeError as error:
        raise ValueError(f"metadata must be what JSON can hold: {error}") from error
    write_atomically(path, serialize_tensors(tensors, {"irlkit": description}))


@checked
def load_annealing(path: str | Path) -> Annealing | StateAnnealing:
    """Read what `save_annealing` wrote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is no annealing of this package.
    """
    header, tensors = _read(path)
    try:
        data = dict(header["annealing"])
        return from_plain({**data, "weights": tensors} if "dtype" in data else data, ANNEALINGS)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


@checked
def read_annealing_metadata(path: str | Path) -> dict[str, object]:
    """Return the metadata that was given to `save_annealing`."""
    return _read(path)[0]["metadata"]


def _read(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not Path(path).is_file():
        raise FileNotFoundError(f"no annealing file at {path}")
    wrong = f"{path} is not an annealing written by save_annealing"
    try:
        text, tensors = load_tensors(Path(path))
        header = json.loads(text)
    except (RecursionError, ValueError) as error:
        raise ValueError(f"{wrong}: {error}") from error
    if isinstance(header, dict) and "network" in header:
        reads = "load_dynamics" if "policy" in header.get("info", {}) else "load_pretrained"
        raise ValueError(f"{wrong}: it is a network, which {reads} reads")
    if not isinstance(header, dict) or header.get("format") != _FORMAT:
        raise ValueError(f"{wrong}: it carries no '{_FORMAT}' header")
    return header, tensors
