"""What a reward is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from irlkit.crystals import CrystalBatch
from irlkit.utils.checks import checked


@checked
@dataclass(frozen=True)
class RewardResult:
    """Rewards of a batch of B structures.

    Attributes:
        values: float64 on the CPU, shape (B,), higher is better.
        info: What else is known of each structure, by name; arrays of shape (B,).

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


class Reward(ABC):
    """Judges generated structures, each on its own.

    A reward can be a context manager, which closes it.
    """

    @property
    def limits_time_here(self) -> bool:
        """Whether it has a time limit that holds in the main thread of this process only."""
        return False

    @abstractmethod
    def __call__(self, batch: CrystalBatch) -> RewardResult:
        """Rewards of all structures; those that are not finite or not valid get one as well."""

    def check(self, compositions: CrystalBatch) -> None:  # noqa: B027
        """Raises a ValueError if it cannot judge structures of these compositions.

        A trainer calls this before anything is generated; only species and n_atoms count.
        """

    def energies(self) -> str:
        """What computes the energies that it needs, for checkpoints; empty if nothing does."""
        return ""

    def close(self) -> None:  # noqa: B027
        """Ends processes and frees memory."""

    def __enter__(self) -> Reward:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
