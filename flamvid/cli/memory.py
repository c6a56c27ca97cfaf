"""Keep freed memory in the process: on a CPU that nearly doubles the speed of a convnet.

glibc gives every large block back to the kernel when it is freed, and the next layer's output
faults it in again page by page. A command that does little else but allocate such blocks may keep
them. This is set for our own process only: a library must not change the allocator of its host.
"""

from __future__ import annotations

import ctypes
import sys

__all__ = ["keep_freed_memory"]

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # malloc.h


def keep_freed_memory() -> None:
    """Serve large blocks from the heap and leave it as it is; does nothing without glibc."""
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl
        return
    mallopt(_MMAP_MAX, 0)
    mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_TOP_PAD, 64 << 20)
