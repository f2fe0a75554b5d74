"""What the C library does with memory that was freed.

By default, glibc gives arrays above some megabytes back to the system, and the top of its heap as
soon as it is free. A network that works by parts takes arrays of the same sizes again and again,
and each time the system has to clear thousands of pages: up to a quarter of a forward pass
(benchmarks/README.md). So arrays of up to 32 MB come from the heap, whose top is kept up to 256 MB,
unless the environment says otherwise.
"""

import ctypes
import os
import sys

_ENVIRONMENT = (
    "GLIBC_TUNABLES",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TRIM_THRESHOLD_",
    "MALLOC_TOP_PAD_",
    "LD_PRELOAD",
)
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names of malloc.h


def _keep_memory() -> None:
    """Set the two thresholds, where there is a C library that knows them."""
    if not sys.platform.startswith("linux") or any(name in os.environ for name in _ENVIRONMENT):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, 32 << 20)
        mallopt(_TRIM_THRESHOLD, 256 << 20)


_keep_memory()
