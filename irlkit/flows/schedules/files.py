"""Schedules as plain data, and annealings as files.

A new schedule is a file and an entry of `ANNEALINGS` or `NOISES`: a frozen dataclass, or a module
whose ``arguments`` are those of its constructor.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize_tensors
from torch import Tensor, nn

from irlkit.flows.schedules.annealing import (
    Annealing,
    LearnedAnnealing,
    LinearAnnealing,
    NoAnnealing,
)
from irlkit.flows.schedules.control_points import ControlPointAnnealing, ControlPointNoise
from irlkit.flows.schedules.noise import (
    ConstantNoise,
    LearnedNoise,
    NoiseSchedule,
    ScaledNoise,
    SquareRootNoise,
)
from irlkit.utils.checks import checked
from irlkit.utils.system import write_atomically

ANNEALINGS: dict[str, type] = {
    kind.__name__: kind
    for kind in (NoAnnealing, LinearAnnealing, LearnedAnnealing, ControlPointAnnealing)
}
NOISES: dict[str, type] = {
    kind.__name__: kind
    for kind in (ConstantNoise, SquareRootNoise, ScaledNoise, LearnedNoise, ControlPointNoise)
}
_FORMAT = "irlkit-annealing"


def schedule_to_dict(schedule: Annealing | NoiseSchedule) -> dict[str, Any]:
    """Return a schedule as JSON can hold it, weights included.

    Raises:
        ValueError: it is of no kind of `ANNEALINGS` or `NOISES`.

    >>> schedule_to_dict(ScaledNoise(ConstantNoise(0.2), 2.0))["arguments"]
    {'noise': {'kind': 'ConstantNoise', 'arguments': {'scale': 0.2}}, 'factor': 2.0}
    """
    kind, kinds = type(schedule).__name__, {**ANNEALINGS, **NOISES}
    if kind not in kinds:
        raise ValueError(f"schedule must be one of {sorted(kinds)} to be saved, got {kind}")
    weights: dict[str, Any] = {}
    if isinstance(schedule, nn.Module):
        given: Any = schedule.arguments
        weights["weights"] = {name: value.tolist() for name, value in schedule.state_dict().items()}
        weights["dtype"] = str(next(schedule.parameters()).dtype).removeprefix("torch.")
    else:
        given = vars(schedule)
    arguments = {
        name: schedule_to_dict(value) if type(value).__name__ in kinds else value
        for name, value in given.items()
    }
    return {"kind": kind, "arguments": arguments, **weights}


def schedule_from_dict(data: Mapping[str, Any], kinds: Mapping[str, type]) -> Any:
    """Undo `schedule_to_dict`.

    Args:
        data: what it returned.
        kinds: which schedules may be described, `ANNEALINGS` or `NOISES`.

    Raises:
        ValueError: an unknown kind, or what is there does not make a schedule of it.
    """
    schedule = _build(data, kinds)
    if isinstance(schedule, nn.Module):
        dtypes = {"float32": torch.float32, "float64": torch.float64}
        try:
            dtype = dtypes[data["dtype"]]
            weights = {k: torch.tensor(v, dtype=dtype) for k, v in data["weights"].items()}
            schedule.to(dtype).load_state_dict(weights)
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"data: weights do not fit {data['kind']}: {error}") from error
    return schedule


def _build(data: Mapping[str, Any], kinds: Mapping[str, type]) -> Any:
    kind = str(data.get("kind"))
    if kind not in kinds:
        raise ValueError(f"data of the unknown kind {kind!r}, known are {sorted(kinds)}")
    try:
        return kinds[kind](
            **{
                name: schedule_from_dict(value, kinds) if isinstance(value, Mapping) else value
                for name, value in data["arguments"].items()
            }
        )
    except (AttributeError, KeyError, RecursionError, TypeError) as error:
        raise ValueError(f"data: the description of {kind} is wrong: {error}") from error


@checked
def save_annealing(
    annealing: Annealing, path: str | Path, metadata: Mapping[str, object] | None = None
) -> None:
    """Write an annealing as safetensors; the file is complete or absent, never half-written.

    Args:
        annealing: of a kind of `ANNEALINGS`.
        path: file to write.
        metadata: anything JSON can hold, kept beside the weights (what it was trained on, ...).

    Raises:
        ValueError: another kind of annealing, or metadata that JSON cannot hold.
    """
    if type(annealing).__name__ not in ANNEALINGS:
        raise ValueError(f"annealing must be one of {sorted(ANNEALINGS)}, got {annealing!r}")
    data = schedule_to_dict(annealing)
    header = {name: data[name] for name in ("kind", "arguments")}
    tensors = {"none": torch.zeros(1)}  # A file without tensors is not readable everywhere.
    if isinstance(annealing, nn.Module):
        tensors = {k: v.detach().cpu().contiguous() for k, v in annealing.state_dict().items()}
    try:
        description = json.dumps({"format": _FORMAT, **header, "metadata": metadata or {}})
    except TypeError as error:
        raise ValueError(f"metadata must be what JSON can hold: {error}") from error
    write_atomically(path, serialize_tensors(tensors, {"irlkit": description}))


@checked
def load_annealing(path: str | Path) -> Annealing:
    """Read what `save_annealing` wrote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is no annealing of this package.
    """
    header, tensors = _read(path)
    try:
        annealing = _build(header, ANNEALINGS)
        if isinstance(annealing, nn.Module):
            annealing.to(next(iter(tensors.values())).dtype).load_state_dict(tensors)
    except (RuntimeError, StopIteration, TypeError, ValueError) as error:
        raise ValueError(f"{path}: description or weights are wrong: {error}") from error
    return annealing


@checked
def read_annealing_metadata(path: str | Path) -> dict[str, object]:
    """Return the metadata that was given to `save_annealing`."""
    return _read(path)[0]["metadata"]


def _read(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
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
    return header, tensors
