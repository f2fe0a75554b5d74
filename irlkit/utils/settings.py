"""torch's settings, which belong to the whole process and which any code may change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def torch_settings(*, plain: bool = False) -> Iterator[None]:
    """Put default dtype, default device and the recording of gradients back at the end of a block.

    Args:
        plain: have them in the block as they are when torch has just been imported.

    >>> with torch_settings():
    ...     torch.set_default_dtype(torch.float64)
    >>> torch.zeros(1).dtype
    torch.float32
    """
    before = torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled()
    try:
        if plain:
            _set(torch.float32, torch.device("cpu"), True)
        yield
    finally:
        _set(*before)


def _set(dtype: torch.dtype, device: torch.device, gradients: bool) -> None:
    torch.set_default_dtype(dtype)
    torch.set_grad_enabled(gradients)
    if torch.get_default_device() != device:
        # None, not "cpu": any named device slows each of torch's functions down.
        torch.set_default_device(None if device.type == "cpu" else device)
