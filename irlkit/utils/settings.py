"""torch's settings, which belong to the whole process and which any code may change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


@contextmanager
def torch_settings(*, plain: bool = False) -> Iterator[None]:
    """Put default dtype, default device and the recording of gradients back at the end of a block.

    Args:
        plain: have them in the block as they are when torch has just been imported, and neither
            inference mode nor autocast.

    >>> with torch_settings():
    ...     torch.set_default_dtype(torch.float64)
    >>> torch.zeros(1).dtype
    torch.float32
    """
    before = torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled()
    try:
        with ExitStack() as stack:
            if plain:
                if before[1].type != "cpu":  # it may be that of a block: another goes on top
                    stack.enter_context(torch.device("cpu"))
                if torch.is_inference_mode_enabled():
                    stack.enter_context(torch.inference_mode(False))
                if torch.is_autocast_enabled("cpu"):
                    stack.enter_context(torch.autocast("cpu", enabled=False))
                _set(torch.float32, torch.get_default_device(), True)
            yield
    finally:
        _set(*before)


def _set(dtype: torch.dtype, device: torch.device, gradients: bool) -> None:
    torch.set_default_dtype(dtype)
    torch.set_grad_enabled(gradients)
    if torch.get_default_device() != device:
        # None, not "cpu": any named device slows each of torch's functions down.
        torch.set_default_device(None if device.type == "cpu" else device)
