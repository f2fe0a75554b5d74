"""Paths and schedules as plain data: the name of the class, its arguments, learned weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

DTYPES = {"float32": torch.float32, "float64": torch.float64}


def by_name(*kinds: type) -> dict[str, Any]:
    """Return a registry: name -> frozen dataclass, or module with its ``arguments``."""
    return {kind.__name__: kind for kind in kinds}


def to_plain(item: Any, kinds: Mapping[str, Any]) -> dict[str, Any]:
    """Return an object as JSON can hold it, the objects among its arguments as well.

    Args:
        item: of one of the kinds.
        kinds: a registry.

    Raises:
        ValueError: it is none of these.
    """
    name = type(item).__name__
    if name not in kinds:
        raise ValueError(f"{name} cannot be saved, it must be one of {sorted(kinds)}")
    given: Any = item.arguments if isinstance(item, nn.Module) else vars(item)
    data: dict[str, Any] = {"name": name}
    for key, value in given.items():
        data[key] = to_plain(value, kinds) if type(value).__name__ in kinds else value
    if isinstance(item, nn.Module):
        data["weights"] = {key: value.tolist() for key, value in item.state_dict().items()}
        data["dtype"] = str(next(item.parameters()).dtype).removeprefix("torch.")
    return data


def from_plain(data: Mapping[str, Any], kinds: Mapping[str, Any]) -> Any:
    """Undo `to_plain`; weights may be tensors.

    Raises:
        ValueError: an unknown name, or what is there does not make an object of it.
    """
    name = str(data.get("name")) if isinstance(data, Mapping) else None
    if name not in kinds:
        raise ValueError(f"data of the unknown kind {name!r}, known are {sorted(kinds)}")
    try:
        arguments = {
            key: from_plain(value, kinds) if isinstance(value, Mapping) else value
            for key, value in data.items()
            if key not in ("name", "weights", "dtype")
        }
        item = kinds[name](**arguments)
        if isinstance(item, nn.Module):
            dtype = DTYPES[data["dtype"]]
            weights = {k: torch.as_tensor(v, dtype=dtype) for k, v in data["weights"].items()}
            item.to(dtype).load_state_dict(weights)
    except (AttributeError, KeyError, RecursionError, RuntimeError, TypeError) as error:
        raise ValueError(f"data: the description of {name} is wrong: {error}") from error
    return item
