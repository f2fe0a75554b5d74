"""How much is done at once: as much as fits in the memory of the device."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")


def halve_until_it_fits(
    compute: Callable[[int | None], T], limit: int | None, size: int, name: str, unit: str
) -> tuple[T, int | None]:
    """Halve a bound on what is done at once, as often as the memory of the device is too small.

    Args:
        compute: does it with a bound.
        limit: the bound to try first; None: no bound.
        size: what is done at once without a bound.
        name: of the bound, for a warning.
        unit: what it counts.

    Returns:
        The result, and the bound that it was computed with.

    Raises:
        torch.OutOfMemoryError: the memory is too small even for one at a time.
    """
    while True:
        try:
            return compute(limit), limit
        except torch.OutOfMemoryError:
            largest = size if limit is None else min(size, limit)
            if largest <= 1:
                raise
        # Only here, after the error, is the memory of its frames free.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        limit = largest // 2
        warnings.warn(
            f"out of memory with {largest} {unit} at once: {name} is {limit} from now on",
            RuntimeWarning,
            stacklevel=3,
        )


def split_sizes(n_structures: int, n_steps: int, limit: int | None) -> tuple[int, int]:
    """Cut a (step, structure) table into the fewest minibatches of even size.

    Args:
        n_structures: structures.
        n_steps: steps.
        limit: largest number of pairs in a minibatch, at least 1; None: no limit.

    Returns:
        Structures and steps per minibatch (the last ones may have fewer).
    """
    if limit is None or limit >= n_structures * n_steps:
        return n_structures, n_steps

    def cost(k: int) -> tuple[int, int]:
        per_part = min(limit // k, n_structures)
        return math.ceil(n_structures / per_part) * math.ceil(n_steps / k), -k

    k = min(range(1, min(n_steps, limit) + 1), key=cost)
    n_parts = math.ceil(n_structures / min(limit // k, n_structures))
    return math.ceil(n_structures / n_parts), math.ceil(n_steps / math.ceil(n_steps / k))
