"""What a reward is, and how one is asked."""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from numbers import Real
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from irlkit.crystals import CrystalBatch
from irlkit.utils.checks import checked
from irlkit.utils.settings import torch_settings
from irlkit.utils.system import Closing


@checked
@dataclass(frozen=True)
class RewardResult:
    """Rewards of a batch of B structures.

    Attributes:
        values: float64 on the CPU, shape (B,), higher is better.
        info: what else is known of each structure, by name; arrays of shape (B,).

    Raises:
        ValueError: a dtype or a shape is not as above.
    """

    values: Tensor
    info: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        values = self.values
        if values.ndim != 1 or values.dtype != torch.float64 or values.device.type != "cpu":
            raise ValueError(
                "values must be a one-dimensional float64 tensor on the CPU, "
                f"got {values.dtype} of shape {tuple(values.shape)} on {values.device}"
            )
        for name, array in self.info.items():
            if array.shape != (len(values),):
                raise ValueError(
                    f"info[{name!r}] must have shape ({len(values)},), got {array.shape}"
                )

    def __len__(self) -> int:
        return len(self.values)


class Reward(Closing, ABC):
    """Judges generated structures, each on its own or compared with those of its group.

    A reward can be a context manager, which closes it.

    Attributes:
        compares: whether a structure's reward depends on the others of its group.
        compares_all: whether it depends on all structures that are judged together, as what is
            scaled by their range; such a reward cannot be asked in parts.
        group_size: structures per group that it is made for; None: any.
        on_non_finite: what takes the place of values that are not finite; None: a trainer stops
            with an error that names the structures.
        limits_time_here: whether it has a time limit that holds in the main thread of this process
            only.
        parts: the rewards that it asks, by name.
    """

    compares: bool = False
    compares_all: bool = False
    group_size: int | None = None
    on_non_finite: float | None = None
    limits_time_here: bool = False
    parts: Mapping[str, Reward] = MappingProxyType({})

    @abstractmethod
    def __call__(self, batch: CrystalBatch) -> RewardResult:
        """Judge all structures; those that are not finite or not valid get a reward as well."""

    def in_groups(self, batch: CrystalBatch, group_size: int) -> RewardResult:
        """Judge structures that were generated in groups, one for each request.

        Args:
            batch: groups adjacent.
            group_size: structures per group.
        """
        return self(batch)

    def check(self, compositions: CrystalBatch) -> None:
        """Raise a ValueError if it cannot judge structures of these compositions.

        A trainer calls this before anything is generated; only species and n_atoms count.
        """

    def energies(self) -> str:
        """Return what computes the energies that it needs, for checkpoints; empty if nothing."""
        return ""


class ReturnError(ValueError):
    """A function that ought to judge structures returned something else than a number for each."""


def ask(judge: Callable[[CrystalBatch], Any], batch: CrystalBatch) -> RewardResult:
    """Return what a function says of structures, whatever it does to them and to torch's settings.

    >>> ask(lambda batch: batch.n_atoms, CrystalBatch.from_formulas(["Na1 Cl1", "C1"])).values
    tensor([2., 1.], dtype=torch.float64)

    Args:
        judge: is given copies; returns B numbers, or an object with `values` and `info` like
            `RewardResult`. None among the numbers, and what a mask hides, is nan.
        batch: B structures.

    Raises:
        ReturnError: it returns something else; the message names what.
    """
    fields = {name: getattr(batch, name) for name in ("species", "pos", "cell", "n_atoms")}
    copies = {name: tensor.detach().clone() for name, tensor in fields.items()}
    with torch_settings():
        returned = judge(CrystalBatch._unchecked(**copies))
    info: dict[str, np.ndarray] = {}
    if hasattr(returned, "values") and not callable(getattr(returned, "info", print)):
        info = {name: _array(values, len(batch)) for name, values in (returned.info or {}).items()}
        returned = returned.values
    values = _numbers(returned)
    if values.shape != (len(batch),):
        raise ReturnError(
            f"the reward function must return one value per structure, shape ({len(batch)},), "
            f"got {tuple(values.shape)} (a {type(returned).__name__})"
        )
    return RewardResult(values, {k: v for k, v in info.items() if v.shape == values.shape})


def _array(values: Any, n: int) -> np.ndarray:
    array = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values)
    # What is one for all is each structure's.
    return np.full(n, array.item()) if array.size == 1 else array


def _numbers(returned: Any) -> Tensor:
    """Numbers as float64 on the CPU."""
    if isinstance(returned, Tensor) and not returned.is_complex():
        dense = returned.detach() if returned.layout == torch.strided else returned.to_dense()
        return dense.to("cpu", torch.float64, copy=True)
    array = returned
    if isinstance(returned, list | tuple):
        single = [isinstance(v, Tensor | np.ndarray) and math.prod(v.shape) == 1 for v in returned]
        entries = [v.item() if one else v for v, one in zip(returned, single, strict=True)]
        entries = [
            None if v is np.ma.masked else entry for v, entry in zip(returned, entries, strict=True)
        ]
        array = np.fromiter(entries, dtype=object, count=len(entries))
    elif isinstance(returned, np.ma.MaskedArray):
        array = returned.data.astype(object)
        array[np.ma.getmaskarray(returned)] = None
    elif hasattr(returned, "to_numpy"):  # a column of a table
        array = returned.to_numpy()
        labels = list(getattr(returned, "axes", [()])[0])
        if set(labels) == set(range(len(labels))) and labels != list(range(len(labels))):
            raise ReturnError(
                "the reward function must return one number per structure in their order, got a "
                f"{type(returned).__name__} whose index says another: sort_index() helps"
            )
    kind = type(returned).__name__
    if isinstance(array, np.ndarray) and array.dtype.kind == "O":
        wrong = [v for v in array.flat if not isinstance(v, Real | np.bool_ | None)]
        kind = f"{kind} with a {type(wrong[0]).__name__}" if wrong else kind
        array = array if wrong else array.astype(np.float64)
    elif isinstance(array, Tensor | np.ndarray):
        kind = f"{kind} of {array.dtype}"
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
        if inspect.iscoroutine(returned):
            returned.close()
        raise ReturnError(
            "the reward function must return one number per structure, as a tensor, an array or a "
            f"list, got a {kind}"
        )
    return torch.from_numpy(np.array(array, dtype=np.float64, order="C"))
