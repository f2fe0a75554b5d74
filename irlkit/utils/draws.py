"""Random numbers from a caller's generator, the same ones on every device and number of ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SharedDraws:
    """A generator of which a process takes its share of each draw.

    Every rank draws the numbers of the whole batch, so that the generators of all ranks stay equal
    and N ranks draw what one would.

    Attributes:
        generator: the same state on every rank.
        total: events in the whole batch.
        part: those of this rank.
    """

    generator: torch.Generator
    total: int
    part: slice

    def take(self, like: Tensor, whole: Tensor) -> Tensor:
        """Return this rank's share of ``whole`` (k, total, ...), of the shape of ``like``.

        Raises:
            ValueError: the share is not of that shape.
        """
        share = whole[:, self.part]
        if share.shape != like.shape:
            raise ValueError(
                "max_batch: a rank's share of the groups has to fit at once; use more ranks or "
                "smaller groups"
            )
        return share


Draws = torch.Generator | SharedDraws


def standard_normal(like: Tensor, draws: Draws) -> Tensor:
    """Draw standard normal numbers of the shape, dtype and device of ``like``.

    They are drawn on the generator's device, so a CPU generator gives the same ones everywhere.

    Args:
        like: shape (k, events, ...).
        draws: a generator, or a rank's share of one.
    """
    return _draw(torch.randn, like, draws)


def uniform(like: Tensor, draws: Draws) -> Tensor:
    """Draw numbers in [0, 1) of the shape, dtype and device of ``like``, as `standard_normal`."""
    return _draw(torch.rand, like, draws)


def _draw(function: Callable[..., Tensor], like: Tensor, draws: Draws) -> Tensor:
    if isinstance(draws, SharedDraws):
        whole = like.new_empty(1).expand(like.shape[0], draws.total, *like.shape[2:])
        return draws.take(like, _draw(function, whole, draws.generator))
    numbers = function(like.shape, generator=draws, dtype=like.dtype, device=draws.device)
    return numbers.to(like.device)
